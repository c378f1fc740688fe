"""Model cards of exported weights, files that would be lost, and files that other programs cannot read."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from processes import run

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.export import Export, export
from sr_dist.models import export as writer
from sr_dist.models import trained
from sr_dist.models.model_card import dataset_name
from sr_dist.models.other_readers import unreadable
from sr_dist.models.trained import open_generator


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory, photo_shards):
    """Two steps of an RRDB from `photos`, with a validation and an evaluation."""
    root = tmp_path_factory.mktemp("card")
    (root / "rrdb.yaml").write_text(
        f"""
        name: small
        scale: 2
        steps: 2
        runs: {root}/runs
        data: {{train: {photo_shards}, validation: {photo_shards}, validation_limit: 2, crop: 16, batch: 4, workers: 0}}
        generator: {{name: rrdb, num_blocks: 1, width: 8, growth: 4}}
        objective: {{name: pixel, content: {{l1: 1.0}}}}
        optimizer: {{learning_rate: 1e-3}}
        validate_every: 2
        save_every: 2
        log_every: 1
        """
    )
    run(0, "sr_dist.train", root / "rrdb.yaml")
    run(
        0,
        "sr_dist.evaluate",
        root / "runs/small",
        f"--data={photo_shards}",
        "--limit=3",
        "--metrics=psnr",
        f"--out={root}/runs/small/eval/a",
    )
    return root / "runs" / "small"


def parts(path):
    """The header and the body of a card."""
    _, header, body = path.read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def test_a_folder_gets_the_weights_and_a_card_of_what_the_run_knows(trained_run, photo_shards, tmp_path, capsys):
    export(Export(source=str(trained_run), out=f"{tmp_path}/hub/", license="cc-by-4.0"))
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {"small.safetensors", "README.md"}
    header, body = parts(tmp_path / "hub" / "README.md")
    assert header == {
        "license": "cc-by-4.0", "library_name": "sr_dist", "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "image-super-resolution", "x2", "rrdb"], "datasets": ["photos"], "metrics": ["psnr", "ssim"],
    }  # fmt: skip
    opened = open_generator(str(tmp_path / "hub" / "small.safetensors"), "RUN")
    parameters = sum(p.numel() for p in opened.network.parameters())
    row = next(row for row in map(json.loads, (trained_run / "metrics.jsonl").open()) if "validation/psnr_y" in row)
    report = json.loads((trained_run / "eval/a/report.json").read_text())
    for text in (
        f"{parameters:,} parameters, step 2 of the run `small`", "objective `pixel`: ", "LR by `bicubic`", f"`{photo_shards}`",
        f"| small | {row['validation/psnr_y']:.4f} |", f"| bicubic | {row['bicubic/psnr_y']:.4f} |",
        f"Evaluation of 3 images of `{photo_shards}`, protocol matlab-y:",
        f"| small | {report['methods']['small']['psnr_y']:.4f} |",
        "sr_dist.load('small.safetensors')", "cc-by-4.0, as stated by",
    ):  # fmt: skip
        assert text in body, text
    assert (
        "note: spandrel and Real-ESRGAN cannot read it: they build RRDB with growth 32, and this one has 4"
        in capsys.readouterr().out
    )


def test_a_weights_file_has_a_card_without_what_nobody_knows(trained_run, tmp_path, capsys):
    export(Export(source=str(trained_run), out=str(tmp_path / "a.pth"), card=True))
    header, body = parts(tmp_path / "README.md")
    assert header["license"] == "unknown" and "Not stated." in body
    (tmp_path / "other").mkdir()
    export(Export(source=str(tmp_path / "a.pth"), out=str(tmp_path / "other")))
    header, body = parts(tmp_path / "other" / "README.md")
    assert "datasets" not in header and "metrics" not in header
    assert "## Numbers" not in body and "## Training" not in body
    assert (tmp_path / "other" / "a.safetensors").is_file()


def test_no_other_file_is_overwritten(trained_run, tmp_path, capsys):
    """The same content may be written again; another one needs --overwrite, of the weights and of the card."""
    out = tmp_path / "a.safetensors"
    for _ in range(2):
        export(Export(source=str(trained_run), out=str(out), card=True))
    for name in ("a.safetensors", "README.md"):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(
            UserError, match=rf"^OUT: '{tmp_path}/{name}' would be overwritten; say --overwrite, or name another place$"
        ):
            export(Export(source=str(trained_run), out=str(out), card=True))
        assert (tmp_path / name).read_bytes() == b"mine"
        (tmp_path / name).write_bytes(before)
    written = out.read_bytes()
    out.write_bytes(b"mine")
    export(Export(source=str(trained_run), out=str(out), overwrite=True))
    assert out.read_bytes() == written


def test_a_licence_is_an_identifier(trained_run, tmp_path):
    with pytest.raises(UserError, match=r"^license: 'Apache 2' is not an identifier in lower case"):
        export(Export(source=str(trained_run), out=str(tmp_path / "a.pth"), license="Apache 2"))
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize(
    ("licence", "note"),
    [
        ("nonsense", "'nonsense' is not one of the identifiers that Hugging Face knows; 'other' is for"),
        (
            "apache-2",
            "'apache-2' is not one of the identifiers that Hugging Face knows; did you mean 'apache-2.0'?",
        ),
        ("cc-by-4.0", None),
        ("unknown", None),
    ],
)
def test_a_licence_that_hugging_face_does_not_know_is_written_with_a_note(trained_run, tmp_path, capsys, licence, note):
    export(Export(source=str(trained_run), out=f"{tmp_path}/hub/", license=licence))
    assert parts(tmp_path / "hub" / "README.md")[0]["license"] == licence
    out = capsys.readouterr().out
    assert (f"note: license: {note}" in out) if note else ("note: license" not in out)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/div2k/train", "div2k"),
        ("/scratch/imagenet256/train", "imagenet256"),
        ("data/mine", "mine"),
        ("a b/x-{00..12}.tar", "a-b"),
    ],
)
def test_names_of_data_sets(source, name):
    assert dataset_name(source) == name


RRDB = [
    {"num_blocks": 1, "width": 8, "growth": 32}, {"num_blocks": 2, "width": 16, "growth": 16},
    {"num_blocks": 1, "width": 8, "growth": 8},
    {"num_blocks": 1, "width": 8, "growth": 32, "channels": 1},
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("options", RRDB, ids=str)
def test_what_is_said_of_spandrel_is_what_spandrel_does(tmp_path, options, suffix):
    spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed")
    section = trained.complete({"name": "rrdb", **options}, "generator")
    torch.manual_seed(0)
    network = trained.build(PACKAGES["generator"], section, 4, "generator").eval()
    generator = trained.TrainedGenerator("a", None, 4, network, tmp_path / "source", "0", section)
    writer.write(generator, None, tmp_path / f"a{suffix}")
    lines = [line for line in unreadable(section, suffix) if "spandrel" in line]
    images = torch.rand(1, generator.channels, 12, 10)
    try:
        opened = spandrel.ModelLoader(device="cpu").load_from_file(tmp_path / f"a{suffix}")
    except Exception:
        assert lines, "spandrel cannot read it, and nobody said so"
        return
    assert not lines
    with torch.no_grad():
        assert (opened.model(images) - network(images)).abs().max() < 1e-5
