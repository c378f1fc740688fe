"""Small data of every kind that recipes name, built by the commands in their headers."""

from __future__ import annotations

import gzip
import shlex
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from shards.build import main as build_command

SIDE = 256  # of the tiles of photographs
ATTRIBUTES = ("Eyeglasses", "Male", "Smiling", "Wearing_Hat", "No_Beard")
FACES, DIGITS = 96, 120


def kind(train: str) -> str:
    """mnist, celeba or pairs; all other recipes want photographs."""
    name = train.split("/")[1]
    return name if name in ("mnist", "celeba", "pairs") else "photographs"


def tiles() -> dict[str, list[Image.Image]]:
    """Four tiles of each of two photographs."""
    photos = {"class0": data.astronaut(), "class1": data.retina()[300:812, 300:812]}
    corners = [(top, left) for top in (0, SIDE) for left in (0, SIDE)]
    return {name: [Image.fromarray(p[t : t + SIDE, l : l + SIDE]) for t, l in corners] for name, p in photos.items()}  # noqa: E741


def write_photographs(folder: Path) -> None:
    for name, images in tiles().items():
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(folder / name / f"{number}.png")


def write_mnist(folder: Path) -> None:
    """Digits that a font draws, in the two files of MNIST's training part."""
    folder.mkdir(parents=True)
    images, labels = [], []
    for number in range(DIGITS):
        image = Image.new("L", (28, 28))
        place = (7 + number % 3, 2 + number % 4)
        ImageDraw.Draw(image).text(place, str(number % 10), fill=255, font=ImageFont.load_default(20 + number % 5))
        images.append(np.asarray(image))
        labels.append(number % 10)
    for name, array in (("images-idx3", np.stack(images)), ("labels-idx1", np.array(labels, np.uint8))):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


def write_celeba(folder: Path) -> None:
    """One face, 178 x 218, moved a little from image to image, with all combinations of the attributes."""
    (folder / "img_align_celeba").mkdir(parents=True)
    face = Image.fromarray(data.astronaut()).crop((120, 0, 340, 260))
    lines = [str(FACES), " ".join(ATTRIBUTES)]
    for number in range(FACES):
        name = f"{number + 1:06d}.jpg"
        left, top = number % 8 * 4, number // 8 * 4
        face.crop((left, top, left + 178, top + 218)).save(folder / "img_align_celeba" / name, quality=95)
        lines.append(" ".join([name, *("1" if number >> bit & 1 else "-1" for bit in range(len(ATTRIBUTES)))]))
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")


def write_pairs(folder: Path) -> None:
    """Upright and lying photographs, 3:2, whose LR a camera of a quarter of the pixels might have made."""
    for part in ("HR", "LR"):
        (folder / part).mkdir(parents=True)
    for name, images in tiles().items():
        for number, image in enumerate(images):
            size = (384, 256) if number % 2 else (256, 384)
            image.resize(size).save(folder / "HR" / f"{name}{number}.png")
            image.resize((size[0] // 4, size[1] // 4), Image.Resampling.BOX).save(folder / "LR" / f"{name}{number}.png")


def build(recipe: Path, folder: Path) -> Path:
    """Shards of the kind that the recipe names: by the command in its header if it has one."""
    name = kind(train_of(recipe))
    shards = folder / name
    if shards.exists():
        return shards
    source = folder / "source" / name
    {"mnist": write_mnist, "celeba": write_celeba, "pairs": write_pairs, "photographs": write_photographs}[name](source)
    command = next(
        (line for line in recipe.read_text().splitlines() if line.startswith("#") and "python -m shards.build" in line), ""
    )
    words = (
        shlex.split(command.split("shards.build")[1]) if command else ["class_folders", "/data/photographs", "data/photographs"]
    )
    words = [str(shards) if word.startswith("data/") else word.replace(data_root(words), str(source)) for word in words]
    assert build_command([*words, "--per_shard=16"]) in (0, None)
    return shards


def data_root(words: list[str]) -> str:
    """/data/NAME, the folder of the published files."""
    return "/".join(words[1].split("/")[:3])


def train_of(recipe: Path) -> str:
    return next(line.split("train: ")[1].split()[0] for line in recipe.read_text().splitlines() if line.startswith("  train: "))
