"""Files and URLs from elsewhere: what they may name, how large they may be, and what is written about them."""

from __future__ import annotations

import io
import itertools
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from made_shards import handmade
from PIL import EpsImagePlugin, Image
from processes import ROOT, metrics, run, small_gan
from safetensors.torch import save_file
from servers import serving
from torch.nn.modules.module import register_module_parameter_registration_hook

from shards import pixels, show
from shards.image_header import Rejected, SourceImage, inspect_image
from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.core.pixels import FORMATS
from sr_dist.data.folder_images import FolderImages
from sr_dist.data.format import open_shards
from sr_dist.data.reader import decode
from sr_dist.models import image_files, trained
from sr_dist.models.generators import srcnn
from sr_dist.models.metadata import classifier_metadata, generator_metadata
from sr_dist.recipe.labels import Labels

SECRET = "s3cret-Pa55"


@pytest.fixture
def url(photo_shards):
    """A server's address with a user name and a password in it."""
    with serving(photo_shards) as store:
        yield store.url.replace("://", f"://me:{SECRET}@")


def files_with(text: str, folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_password_in_a_url_is_written_nowhere_and_may_change(url, photo_shards, tmp_path):
    """Mixed data sets, which the log names, with W&B, continued with another password, and evaluated."""
    sources = f"{{{url}: 1, {photo_shards}: 1}}"
    more = {"log.wandb": "offline", "data.cache": tmp_path / "cache", "data.batch": 4}
    printed = []
    for steps, address in ((2, sources), (3, sources.replace(SECRET, f"{SECRET}-new"))):
        printed += run(0, "sr_dist.train", *small_gan(address, tmp_path, steps=steps, data__validation=url, **more))
    printed += run(0, "sr_dist.evaluate", "bicubic", f"--data={url}", "--scale=2", "--metrics=psnr", "--cache=none", cwd=tmp_path)
    assert "me:" not in "".join(printed) and SECRET not in "".join(printed)
    assert files_with(SECRET, tmp_path) == []
    assert "://***@127.0.0.1" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert "://***@127.0.0.1" in (tmp_path / "run" / "log.txt").read_text()
    assert "://***@127.0.0.1" in json.loads((tmp_path / "run" / "environment.json").read_text())["command"]
    assert json.loads((tmp_path / "eval" / "report.json").read_text())["data"].startswith("http://***@127.0.0.1")
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3]


def test_errors_hide_passwords_and_a_hidden_one_is_asked_for(run_commands, tmp_path):
    gone = f"http://me:{SECRET}@127.0.0.1:1/x"
    hidden = small_gan("http://***@host/x", tmp_path)
    pipe = f"pipe:false http://me:{SECRET}@host/"
    failed, again, piped = run_commands(
        [("sr_dist.train", small_gan(words, tmp_path)) if isinstance(words, str) else ("sr_dist.train", words)
         for words in (f"{{{gone}: 1, {gone.replace('me', 'you')}: 2}}", hidden, pipe)]
    )  # fmt: skip
    assert "named twice" in failed.err and "'http://***@127.0.0.1:1/x'" in failed.err
    assert again.err == (
        "error: data.train: 'http://***@host/x' has *** where a password or a token was; give the whole URL: --data.train=...\n"
    )
    assert "has no {} for" in piped.err
    assert not any(SECRET in answer.out + answer.err for answer in (failed, again, piped))


# ---------------------------------------------------------------------------------------------------------- what files may name

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from sr_dist.models.generators.srcnn import *
"""
SECTION = {"name": "zoo.evil"}


@pytest.fixture
def zoo(tmp_path, monkeypatch) -> Path:
    """A folder from elsewhere: weights whose metadata name the file beside them."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL)
    tensors = srcnn.build(srcnn.Config(), 2).state_dict()
    generator, labels = generator_metadata(SECTION, 2), Labels("class", ("a", "b"))
    save_file(tensors, folder / "m.safetensors", generator)
    torch.save({"params": tensors, **generator}, folder / "m.pth")
    save_file(tensors, folder / "k.safetensors", classifier_metadata(SECTION, labels, 16))
    run_folder = folder / "run" / "checkpoints" / "0000001"
    run_folder.mkdir(parents=True)
    (folder / "run" / "recipe.yaml").write_text("name: run\ngenerator: {name: srcnn}\n")
    save_file(tensors, run_folder / "generator.ema.safetensors", generator)
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")
    return folder


def answers_in(folder: Path, calls: list[tuple[str, list[str]]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of commands that are given in a folder."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    out, _ = run(0, "run_commands", json.dumps(calls), cwd=folder, PYTHONPATH=path)
    return [(code, printed, problem) for code, printed, problem, _ in json.loads(out.splitlines()[-1])]


def test_metadata_run_no_file_that_lies_beside_them(zoo, tmp_path, photo_shards):
    data = [f"--data={photo_shards}", "--scale=2", "--metrics=psnr", "--cache=none"]
    weights = ["zoo/m.safetensors", "zoo/m.pth", "zoo/run"]
    calls = [("sr_dist.upscale", [path, "in.png", "out.png"]) for path in weights]
    calls += [("sr_dist.evaluate", [path, *data]) for path in weights]
    calls += [("sr_dist.export", [path, "out.onnx"]) for path in weights]
    calls += [("sr_dist.interpolate", [path, path, "out.pth", "--alpha=0.5"]) for path in weights]
    calls += [("sr_dist.evaluate", ["bicubic", *data, f"--{option}=zoo/k.safetensors"]) for option in ("attributes", "extractor")]
    calls += [("sr_dist.train", [*small_gan(photo_shards, tmp_path), f"--init.generator={path}"]) for path in weights]
    for (module, words), (code, _, err) in zip(calls, answers_in(tmp_path, calls), strict=True):
        assert code == 2 and err.count("\n") == 1, (module, words, err)
        assert "its metadata name 'zoo.evil', which is not a part of sr_dist" in err
    assert not (zoo / "ran").exists()


def test_a_recipe_may_name_a_file_and_the_log_says_so_first(zoo, tmp_path, photo_shards):
    """The same file, named by a recipe; it is then opened by its run folder, and starts another run of the same network."""
    recipe = small_gan(
        photo_shards, tmp_path / "runs", steps=1, generator="{name: zoo.evil}", objective="{name: pixel, content: {l1: 1}}"
    )
    words = [word for word in recipe if not word.startswith("--discriminator")] + ["--discriminator=none"]
    run(0, "sr_dist.train", *words, "--init.generator=zoo/m.safetensors", cwd=tmp_path)
    first, *_ = (tmp_path / "runs" / "run" / "log.txt").read_text().splitlines()
    note = f"note: '{zoo / 'evil.py'}' (generator.name) is not part of sr_dist; its code runs with all rights of this process"
    assert first.endswith(note)
    out, _ = run(0, "sr_dist.evaluate", "runs/run", f"--data={photo_shards}", "--metrics=psnr", "--cache=none", cwd=tmp_path)
    assert out.startswith("note: ") and "evil.py' (generator.name) is not part of sr_dist" in out.splitlines()[0]
    run(0, "sr_dist.upscale", "runs/run", "in.png", "out.png", cwd=tmp_path)
    assert (tmp_path / "out.png").exists()


def test_a_torchscript_file_is_named_before_it_is_used(tmp_path, photo_shards, run_commands):
    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            torch.save(images, "/dev/null")
            return images.mean((2, 3))

    torch.jit.script(Means()).save(tmp_path / "means.pt")
    words = ["bicubic", f"--data={photo_shards}", "--scale=2", "--metrics=kid", "--cache=none", f"--out={tmp_path / 'out'}"]
    answer, usage = run_commands(
        [("sr_dist.evaluate", [*words, f"--extractor={tmp_path / 'means.pt'}"]), ("sr_dist.evaluate", ["--help"])]
    )
    assert answer.code == 0, answer.err
    assert answer.out.startswith(f"note: '{tmp_path / 'means.pt'}' (extractor) is not part of sr_dist; its code runs")
    assert "A TorchScript file runs code" in " ".join(usage.out.split())


# ------------------------------------------------------------------------------------------------------ what metadata may ask


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its metadata are not JSON"),
        ("[" * 100_000, "its metadata are not JSON: it is nested too deeply"),
        ("[1]", "its metadata are not those of sr_dist"),
        (json.dumps({"generator": {"name": "srcnn"}}), "scale: this key is missing"),
        (json.dumps({"generator": {"name": "srcnn"}, "scale": "two"}), "scale: input should be a valid integer"),
        (json.dumps({"generator": {"name": "srcnn"}, "scale": 10**6}), "scale: input should be less than or equal to 16"),
        (json.dumps({"generator": "srcnn", "scale": 2}), "generator: "),
        (json.dumps({"generator": {"name": ["srcnn"]}, "scale": 2}), r"generator\.name: "),
        (json.dumps({"generator": {"name": "../srcnn"}, "scale": 2}), "not a part of sr_dist"),
        (json.dumps({"generator": {"name": "nothing"}, "scale": 2}), "no 'nothing' in"),
        (json.dumps({"generator": {"name": "rrdb", "width": 200_000}, "scale": 2}), "a larger network than its 6 tensors"),
        (json.dumps({"generator": {"name": "rrdb", "width": 2**62}, "scale": 2}), "cannot be built"),
        (json.dumps({"generator": {"name": "rrdb", "width": 1, "num_blocks": 10**9}, "scale": 2}), "a larger network than"),
        (json.dumps({"generator": {"name": "srugan", "widths": [1] * 100_000}, "scale": 2}), "a larger network than"),
        (json.dumps({"classifier": {"name": "resnet18"}, "size": 32}), "labels: this key is missing"),
    ],
)  # fmt: skip
def test_metadata_that_make_no_sense_are_one_line_and_take_no_memory(tmp_path, text, message):
    """A network that its tensors cannot fill is counted without numbers, and given up at twice the tensors and 1000 more."""
    save_file(srcnn.build(srcnn.Config(), 2).state_dict(), tmp_path / "m.safetensors", {"sr_dist": text})
    made: list[str] = []

    def count(module, name, parameter):
        made.append(parameter.device.type)
        assert len(made) <= 1000 + 2 * 6 + 1

    hook = register_module_parameter_registration_hook(count)
    try:
        with pytest.raises(UserError, match=rf"^METHOD: '{tmp_path}/m\.safetensors'.*{message}") as caught:
            trained.open_generator(str(tmp_path / "m.safetensors"), "METHOD")
    finally:
        hook.remove()
    assert len(str(caught.value)) < 1500 and set(made) <= {"meta"}


def test_a_classifier_has_an_output_per_label(tmp_path):
    facts = classifier_metadata({"name": "resnet18", "outputs": 10**7}, Labels("class", ("a", "b")), 32)
    save_file({"a": torch.zeros(1)}, tmp_path / "k.safetensors", facts)
    with pytest.raises(UserError, match=r"classifier\.outputs: 10000000, but there are 2 labels"):
        trained.open_classifier(str(tmp_path / "k.safetensors"), "attributes")


def holds_itself() -> dict:
    loop: dict = {}
    loop["params"] = {"net": loop}
    return loop


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to_sparse(), "is torch.sparse_coo, not dense"),
        (lambda value: value.to("meta"), "is meta, not dense"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "is quantized, not dense"),
        (lambda value: value.to(torch.complex64), "is of torch.complex64, not of real numbers"),
        (lambda value: value.to(torch.bool), "is of torch.bool, not of real numbers"),
        (lambda value: value.to(torch.int8), "is of torch.int8, not of real numbers"),
        (lambda value: value * float("nan"), "has values that are not finite"),
        (lambda value: torch.zeros(1).expand(10**7, 10**7), "claims 100000000000000 values, and the file holds fewer"),
    ],
    ids=["sparse", "meta", "quantized", "complex", "bool", "int8", "nan", "expanded"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_named(tmp_path, change, message):
    network = srcnn.build(srcnn.Config(), 2)
    tensors = {name: change(value) for name, value in network.state_dict().items()}
    torch.save({**tensors, **generator_metadata({"name": "srcnn"}, 2)}, tmp_path / "m.pth")
    path, refusal = str(tmp_path / "m.pth"), rf"^KEY: '{tmp_path}/m\.pth' cannot be used: its tensor '[a-z0-9.]+' {message}"
    with pytest.raises(UserError, match=refusal):
        trained.open_generator(path, "KEY")
    if "claims" not in message:
        with pytest.raises(UserError, match=refusal):
            trained.load_starting_weights(network, {"name": "srcnn"}, path, "generator", "KEY", partial=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_still_opened(tmp_path, dtype):
    tensors = {name: value.to(dtype) for name, value in srcnn.build(srcnn.Config(), 2).state_dict().items()}
    torch.save({**tensors, **generator_metadata({"name": "srcnn"}, 2)}, tmp_path / "m.pth")
    assert trained.open_generator(str(tmp_path / "m.pth"), "METHOD").scale == 2


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    torch.save(holds_itself(), tmp_path / "m.pth")
    with pytest.raises(UserError, match="holds a dictionary that holds itself"):
        trained.open_generator(str(tmp_path / "m.pth"), "METHOD")


# ----------------------------------------------------------------------------------------------------------- recipes

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 26))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "it holds more than 100000 values"),
        ("a: &a [*a]", "nested more than 50 levels deep"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested more than 50 levels deep"),
        ("name: a\n[1, 2]: 3", "line 2: a list or section cannot be a key"),
        ('name: "a\\0b"', r"line 1: 'a\x00b' has a character that is not allowed"),
        ("a" * 5_000_000, "it has 5000000 bytes; a recipe has at most 4000000"),
    ],
    ids=["laughs", "loop", "nested", "key", "nul", "large"],
)
def test_a_recipe_that_makes_no_sense_is_one_line_at_once(tmp_path, text, message, monkeypatch):
    """Nothing is built of it, and no node is measured for each of its aliases: LAUGHS stands for 9^25 values."""
    (tmp_path / "r.yaml").write_text(text)
    visits, measure = itertools.count(1), config._measure

    def counted(*arguments):
        assert next(visits) <= len(text) + config.DEEPEST
        return measure(*arguments)

    def refuse(*_):
        raise AssertionError("values were made")

    monkeypatch.setattr(config, "_measure", counted)
    monkeypatch.setattr(config.yaml.BaseLoader, "construct_document", refuse)
    with pytest.raises(UserError) as caught:
        config.read(tmp_path / "r.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 3000, "{[a]: 1}", "{a: &a [*a]}"])
def test_an_option_that_makes_no_sense_is_one_line(run_commands, write_recipe, text):
    recipe, sections = write_recipe(), ".".join(["a"] * 100)
    calls = [("sr_dist.train", [str(recipe), f"--data.select={text}"]), ("sr_dist.train", [str(recipe), f"--{sections}=1"])]
    for answer in run_commands(calls):
        assert answer.code == 2 and answer.err.startswith("error: ") and answer.err.count("\n") == 1


def test_anchors_are_still_read(tmp_path):
    (tmp_path / "r.yaml").write_text("a: &shared {b: 1}\nc: *shared\n")
    assert config.read(tmp_path / "r.yaml") == {"a": {"b": "1"}, "c": {"b": "1"}}


def test_messages_have_an_end():
    message = str(UserError("x" * 10**6 + " is the end"))
    assert len(message) < 2100 and message.endswith(" is the end")


# ------------------------------------------------------------------------------------------------------- formats of images


@pytest.fixture
def postscript(tmp_path, monkeypatch) -> bytes:
    """An EPS, and a stand-in for Ghostscript, which Pillow runs on it."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


def test_postscript_in_a_png_reaches_no_ghostscript(postscript, tmp_path):
    file = tmp_path / "in" / "x.png"
    file.parent.mkdir()
    file.write_bytes(postscript)
    (tmp_path / "shards").mkdir()
    shards = open_shards(str(handmade(tmp_path / "shards", [postscript], sizes=[(64, 64)])))
    for readers, message in (
        (lambda: decode(postscript, 3), "no image of a known format"),
        (lambda: FolderImages(file.parent, None, "data").load(0), "cannot be decoded"),
        (lambda: FolderImages(file.parent, None, "data").shape(0), "is not an image that can be read"),
        (lambda: image_files.read(file), "cannot identify"),
        (lambda: inspect_image(postscript), "not an image of a known format"),
        (lambda: pixels.decode(SourceImage(postscript, "PNG", "RGB", 64, 64, False)), "cannot be decoded"),
        (
            lambda: show.contact_sheet(shards, 1, tmp_path / "s.png"),
            "cannot be shown",
        ),
    ):
        with pytest.raises((RuntimeError, UserError, Rejected, image_files.ImageFileError), match=message):
            readers()
    assert not (tmp_path / "ran").exists()


def test_every_image_is_opened_with_the_list_of_formats():
    calls = [
        (path, line.strip())
        for package in ("sr_dist", "shards")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if "Image.open(" in line
    ]
    assert calls and [call for call in calls if "formats=FORMATS" not in call[1]] == []
    assert "EPS" not in FORMATS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "MPO"])
def test_the_formats_of_builds_are_still_read(kind):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(file, kind)
    assert inspect_image(file.getvalue()).width == 16
    assert decode(file.getvalue(), 3).shape == (3, 16, 16)


def test_whatever_a_decoder_raises_is_a_damaged_image(monkeypatch):
    def fail(file):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr("sr_dist.data.reader.open_image", fail)
    with pytest.raises(RuntimeError, match="unpack requires"):
        decode(b"II*\0", 3)
