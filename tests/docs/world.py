"""A folder with all that the manual's commands name: data sets of a few small images, and files of one's own."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import data_kinds
import lmdb
import numpy as np
import torch
from photographs import made_photo
from PIL import Image
from scipy.io import savemat

from shards.build import main as build_shards
from sr_dist.models.generators import rrdb

WNIDS = ("n01440764", "n01443537")
PUBLISHED = "RealESRGAN_x4plus_anime_6B.pth"
METRIC = """
BETTER = {"sharpness": "higher"}
NO_REFERENCE = True


def per_image(sr, hr, protocol, grey):
    return {"sharpness": sr.diff(dim=-1).abs().mean((1, 2, 3)).tolist()}
"""


OPTIONS = """
name: theirs
model_type: SRModel
scale: 4
num_gpu: 1
manual_seed: 0
datasets:
  train: {name: mine, type: PairedImageDataset, dataroot_gt: photos, dataroot_lq: small, gt_size: 128, batch_size_per_gpu: 16}
network_g: {type: RRDBNet, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_block: 23}
train:
  optim_g: {type: Adam, lr: !!float 2e-4}
  total_iter: 1000
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
"""


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def photo(number: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(made_photo(number, height, width))


def write_pictures(folder: Path, count: int, width: int, height: int, shrink: int = 1) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        image = photo(number, width, height)
        image.resize((width // shrink, height // shrink), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def write_imagenet(published: Path) -> None:
    """The folders of classes, and the three files that are handed out."""
    tars = published / "imagenet-tars"
    tars.mkdir()
    inner = {}
    for label, wnid in enumerate(WNIDS):
        files = {f"{wnid}_{n}.JPEG": encoded(photo(10 * label + n, 300, 280), "JPEG") for n in range(6)}
        (published / "imagenet" / "train" / wnid).mkdir(parents=True)
        for name, data in files.items():
            (published / "imagenet" / "train" / wnid / name).write_bytes(data)
        inner[f"{wnid}.tar"] = tar(published / "inner.tar", files).read_bytes()
    tar(tars / "ILSVRC2012_img_train.tar", inner)
    (published / "inner.tar").unlink()
    tar(tars / "ILSVRC2012_img_val.tar", {"ILSVRC2012_val_00000001.JPEG": encoded(photo(30, 64, 64), "JPEG")})
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    table = io.BytesIO()
    savemat(table, {"synsets": np.array([(n + 1, wnid, f"class {n}", 0) for n, wnid in enumerate(WNIDS)], kind)})
    kit = "ILSVRC2012_devkit_t12/data"
    truth = {f"{kit}/meta.mat": table.getvalue(), f"{kit}/ILSVRC2012_validation_ground_truth.txt": b"1\n"}
    tar(tars / "ILSVRC2012_devkit_t12.tar.gz", truth, "w:gz")


def write_lmdb(folder: Path, pictures: Path) -> None:
    folder.mkdir()
    images = {path.stem: path for path in sorted(pictures.iterdir())}
    with lmdb.open(str(folder), map_size=10_000_000) as environment, environment.begin(write=True) as transaction:
        for key, path in images.items():
            transaction.put(key.encode(), path.read_bytes())
    sizes = {key: Image.open(path).size for key, path in images.items()}
    lines = (f"{key}.png ({height},{width},3) 1\n" for key, (width, height) in sizes.items())
    (folder / "meta_info.txt").write_text("".join(lines))


def write_published(published: Path) -> None:
    """What the manual has in /data."""
    published.mkdir()
    write_imagenet(published)
    data_kinds.write_mnist(published / "mnist")
    for path in list((published / "mnist").iterdir()):
        shutil.copy(path, path.with_name(path.name.replace("train", "t10k")))
    data_kinds.write_celeba(published / "celeba")
    faces = sorted(path.name for path in (published / "celeba" / "img_align_celeba").iterdir())
    (published / "celeba" / "list_eval_partition.txt").write_text("".join(f"{name} {n % 3}\n" for n, name in enumerate(faces)))
    data_kinds.write_pairs(published / "own")
    write_pictures(published / "DIV2K", 2, 720, 500)
    for name in ("Set5", "Set14", "RealPhotos", "DIV2K_valid_HR"):
        write_pictures(published / name, 2, 64, 48)
    write_pictures(published / "DIV2K_valid_LR_bicubic" / "X4", 2, 64, 48, shrink=4)
    write_lmdb(published / "HR.lmdb", published / "own" / "HR")
    write_lmdb(published / "LR_x4.lmdb", published / "own" / "LR")
    (published / "wds").mkdir()
    for number in range(2):
        members = {f"{number}{n}.{end}": data for n in range(4) for end, data in (
            ("jpg", encoded(photo(4 * number + n, 64, 64), "JPEG")), ("cls", f"{n % 2}".encode()))}  # fmt: skip
        tar(published / "wds" / f"train-{number:04d}.tar", members)


def write_own(folder: Path) -> None:
    """What a user has in the folder where the commands are typed."""
    for name in ("photos", "small"):
        write_pictures(folder / name, 2, 48, 32)
    (folder / "photos" / "crab").mkdir()
    photo(7, 200, 160).save(folder / "photos" / "crab" / "7.png")
    write_pictures(folder / "results" / "Set5", 2, 64, 48)
    write_pictures(folder / "results" / "RealPhotos", 2, 256, 192)
    (folder / "mine").mkdir()
    (folder / "mine" / "sharpness.py").write_text(METRIC)
    (folder / "FILE.yml").write_text(OPTIONS)
    network = rrdb.build(rrdb.Config(num_blocks=2, width=8, growth=4), 4)
    for name in (PUBLISHED, "others.pth"):
        torch.save({"params_ema": network.state_dict()}, folder / name)


def write(folder: Path) -> None:
    write_published(folder / "published")
    write_own(folder)
    tiles = folder / "tiles"
    data_kinds.write_photographs(tiles)
    for part in ("train", "validation"):
        assert build_shards(["class_folders", str(tiles), str(folder / "data" / "sample_photos" / part)]) in (0, None)
