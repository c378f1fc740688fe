"""Files are verified whenever they are opened: weights by the sha256 in the manifest, indexes by their checksum."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sr_dist.core.errors import UserError
from sr_dist.core.files import sha256
from sr_dist.data.format import HEADER, Index, index_columns
from sr_dist.evaluation.distances.features import Features
from sr_dist.evaluation.distances.reference_cache import References
from sr_dist.evaluation.methods import source
from sr_dist.evaluation.partial_results import PartialResults
from sr_dist.models import export, trained, verified

FILES = Path(__file__).resolve().parents[1] / "version_0_1"
EMA = "checkpoints/0000003/generator.ema.safetensors"


@pytest.fixture
def old(tmp_path) -> Path:
    """Runs and shards of 0.1.0 that may be changed."""
    return Path(shutil.copytree(FILES, tmp_path / "old"))


def flip(path: Path, at: int = -50, bit: int = 64) -> Path:
    """Flips one bit; by default in the tensors at the end of the file, whose header stays as it is."""
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)
    return path


def flip_mode(path: Path) -> Path:
    """Flips a bit of the storage mode of the first sample of an index: RGB becomes L."""
    index = Index(path)
    before = 0
    for name, kind in index_columns(index["key"].dtype.itemsize, index["attributes"].dtype.itemsize):
        if name == "mode":
            break
        before += kind.itemsize
    return flip(path, HEADER.size + before * len(index), 1)


def assert_one_line(answer, *texts: str) -> None:
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1, answer.err
    assert [text for text in texts if text not in answer.err] == [], answer.err


def commands_that_open(old: Path, out: Path) -> list[tuple[str, str, list[str]]]:
    """(key of the error, command, words) for every way to name the generator of the GAN, and the classifier."""
    gan, k, shards = str(old / "runs/gan"), str(old / "runs/classifier"), f"--data={old / 'shards'}"
    Image.new("RGB", (8, 8)).save(old / "a.png")
    shutil.copy(old / "runs/gan" / EMA, old / "whole.safetensors")
    whole = str(old / "whole.safetensors")
    plain = [shards, "--metrics=psnr", f"--out={out / 'report'}", "--cache=none"]
    train = [f"{gan}/recipe.yaml", "--name=new", f"--runs={out}", f"--data.train={old / 'shards'}", "--data.validation=none",
             "--log.wandb=off"]  # fmt: skip
    classifier = [f"{k}/recipe.yaml", *train[1:], f"--init.classifier={k}"]
    return [
        ("METHOD", "sr_dist.evaluate", [gan, *plain]),
        ("METHOD", "sr_dist.evaluate", [f"{gan}/{EMA}", *plain]),
        ("attributes", "sr_dist.evaluate", ["bicubic", "--scale=2", *plain, f"--attributes={k}"]),
        ("extractor", "sr_dist.evaluate", ["bicubic", "--scale=2", *plain[:1], "--metrics=fid", *plain[2:], f"--extractor={k}"]),
        ("RUN_OR_WEIGHTS", "sr_dist.upscale", [gan, str(old / "a.png"), str(out / "b.png")]),
        ("RUN", "sr_dist.export", [gan, str(out / "x.safetensors")]),
        ("RUN", "sr_dist.export", [f"{gan}/{EMA}", str(out / "x.pth")]),
        ("A", "sr_dist.interpolate", [gan, whole, str(out / "x.safetensors"), "--alpha=0.5"]),
        ("B", "sr_dist.interpolate", [whole, f"{gan}/{EMA}", str(out / "x.safetensors"), "--alpha=0.5"]),
        ("init.generator", "sr_dist.train", [*train, f"--init.generator={gan}"]),
        ("init.generator", "sr_dist.train", [*train, f"--init.generator={gan}/{EMA}"]),
        ("init.classifier", "sr_dist.train", classifier),
    ]


def test_no_command_opens_weights_with_a_flipped_bit(old, tmp_path, run_commands):
    out = tmp_path / "out"
    commands = commands_that_open(old, out)
    damaged = [flip(old / "runs/gan" / EMA), flip(old / "runs/classifier/checkpoints/0000003/classifier.ema.safetensors")]
    answers = run_commands([(module, words) for _, module, words in commands])
    for (key, _, words), answer in zip(commands, answers, strict=True):
        file = damaged[key in ("attributes", "extractor", "init.classifier")]
        assert_one_line(answer, f"error: {key}: ", f"'{file}' is damaged", "sha256"), words
    assert not list(out.rglob("*.p*")) and not list(out.rglob("*.safetensors"))


def test_the_raw_weights_and_the_discriminator_are_verified_too(old, tmp_path, run_commands):
    folder = old / "runs/gan/checkpoints/0000003"
    raw, discriminator = flip(folder / "generator.safetensors"), flip(folder / "discriminator.safetensors")
    words = [f"{old}/runs/gan/recipe.yaml", "--name=new", f"--runs={tmp_path}", f"--data.train={old / 'shards'}",
             "--data.validation=none", "--log.wandb=off", f"--init.discriminator={old / 'runs/gan'}"]  # fmt: skip
    export, train = run_commands([("sr_dist.export", [str(old / "runs/gan"), str(tmp_path / "x.pth")]), ("sr_dist.train", words)])
    assert_one_line(export, f"error: RUN: '{raw}' is damaged")
    assert_one_line(train, f"error: init.discriminator: '{discriminator}' is damaged")


def test_a_link_to_a_checkpoints_file_is_verified_as_the_file(old, tmp_path):
    link = tmp_path / "best.safetensors"
    link.symlink_to(old / "runs/gan" / EMA)
    assert trained.open_generator(str(link)).step == 3
    flip(old / "runs/gan" / EMA)
    with pytest.raises(UserError, match=rf"^method: '{link}' is damaged"):
        trained.open_generator(str(link))


def test_a_damaged_newest_checkpoint_is_refused_and_an_earlier_one_named(old):
    """Other weights than those that were asked for would be worse than an error."""
    run = old / "runs/gan"
    shutil.copytree(run / "checkpoints/0000003", run / "checkpoints/0000009")
    file = flip(run / "checkpoints/0000009/generator.ema.safetensors")
    with pytest.raises(UserError) as problem:
        trained.open_generator(str(run))
    assert str(problem.value) == (
        f"method: '{file}' is damaged: it does not match its sha256 in manifest.json; copy it again from its source, "
        f"or name an earlier one, such as '{(run / EMA).resolve()}'"
    )
    assert trained.open_generator(str(run / EMA)).step == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").write_text("{"), "'manifest.json' beside it cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 1, "files": []}'), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 1, "files": {}}'), "does not list it"),
        (
            lambda folder: flip(folder / "manifest.json", (folder / "manifest.json").read_bytes().index(b"generator.ema"), 1),
            "list it",
        ),
        (lambda folder: (folder / "generator.ema.safetensors").write_bytes(b""), "is damaged: it has 0 bytes, not"),
    ],
)
def test_a_damaged_manifest_is_damage_too(old, damage, message):
    damage(old / "runs/gan/checkpoints/0000003")
    with pytest.raises(UserError, match=message):
        trained.open_generator(str(old / "runs/gan"))


def test_a_manifest_of_another_format_is_refused_with_its_version(old):
    path = old / "runs/gan/checkpoints/0000003/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9, "sr_dist": "9.0.0"}))
    with pytest.raises(UserError, match=r"has format 9, written by sr_dist 9\.0\.0"):
        trained.open_generator(str(old / "runs/gan"))


def test_the_record_of_the_best_checkpoint_is_verified(old):
    """It decides which weights a classifier's run stands for."""
    state = old / "runs/classifier/checkpoints/0000003/state.json"
    state.write_text(state.read_text().replace('"step": 3', '"step": 1'))
    with pytest.raises(UserError, match=rf"^attributes: '{state}' is damaged"):
        trained.open_classifier(str(old / "runs/classifier"), "attributes")


def test_other_files_and_folders_need_no_manifest(old, tmp_path):
    """A file that was copied elsewhere, also beside a manifest of something else."""
    shutil.copy(old / "runs/gan" / EMA, old / "shards" / "mine.safetensors")
    assert trained.open_generator(str(old / "shards" / "mine.safetensors")).scale == 2
    (old / "runs/gan/checkpoints/0000003/manifest.json").unlink()
    assert trained.open_generator(str(old / "runs/gan")).step == 3


def test_a_training_that_goes_on_disturbs_no_report_and_no_export(old, tmp_path, monkeypatch):
    """It saves a checkpoint and removes the one that has just been opened, or keeps both."""
    run = old / "runs/gan"
    generator = trained.open_generator(str(run))
    expected = sha256(run / EMA)

    def open_and_go_on(*words):
        shutil.copytree(run / "checkpoints/0000003", run / "checkpoints/0000009")
        flip(run / "checkpoints/0000009/generator.safetensors")
        return generator

    monkeypatch.setattr(trained, "open_generator", open_and_go_on)
    export.export(str(run), str(tmp_path / "x.pth"))  # both of step 3
    shutil.rmtree(run / "checkpoints/0000003")
    assert source(generator)["sha256"] == expected


def test_a_digest_is_computed_once_and_shared_with_the_report(old, monkeypatch):
    calls = []
    monkeypatch.setattr(verified, "sha256", lambda path: calls.append(path) or "f" * 64)
    verified._digest.cache_clear()
    weights = old / "whole.safetensors"
    shutil.copy(old / "runs/gan" / EMA, weights)
    generator = trained.open_generator(str(weights))
    assert [source(generator)["sha256"] for _ in range(3)] == ["f" * 64] * 3
    assert calls == [weights]
    tensors = {name: value + 1 for name, value in load_file(weights).items()}
    save_file(tensors, weights)  # another file under the same name
    assert verified.digest(weights) and calls == [weights, weights]
    monkeypatch.undo()
    verified._digest.cache_clear()


def test_indexes_are_verified_in_evaluation_and_validation(old, tmp_path, run_commands):
    """A flipped bit of `mode` made colour images grey in the numbers."""
    (first, *_) = sorted((old / "shards").glob("*.idx"))
    flip_mode(first)
    shards = old / "shards"
    evaluation = ["bicubic", f"--data={shards}", "--scale=2", "--metrics=psnr", f"--out={tmp_path / 'out'}"]
    training = [f"{old}/runs/gan/recipe.yaml", "--name=new", f"--runs={tmp_path / 'runs'}", f"--data.train={FILES / 'shards'}",
                f"--data.validation={shards}", "--log.wandb=off", "--steps=1"]  # fmt: skip
    answers = run_commands([("sr_dist.evaluate", evaluation), ("sr_dist.train", training)])
    for answer in answers:
        assert_one_line(answer, f"'{first}' does not match its own checksum")
    assert not (tmp_path / "out").exists()


FACTS = {"rows": [{"image": "a", "psnr_y": 31.25}], "labels": [-1]}


def flips(path: Path, every: int = 1) -> Iterator[int]:
    """Flips a bit of each byte, or of every n-th, one at a time."""
    whole = path.read_bytes()
    for at in range(0, len(whole), every):
        damaged = bytearray(whole)
        damaged[at] ^= 8
        path.write_bytes(damaged)
        yield at


def test_partial_results_with_any_flipped_bit_are_computed_again_or_unchanged(tmp_path):
    PartialResults(tmp_path).put(0, FACTS, {"whole/0": np.ones((4, 4))})
    missing = 0
    for at in flips(tmp_path / "0000000.npz"):
        results = PartialResults(tmp_path)
        if results.missing([0], ["whole/0"]):
            missing += 1
        else:
            assert results.facts(0) == FACTS and np.array_equal(results.array(0, "whole/0"), np.ones((4, 4))), at
    assert missing > 400


def test_cached_features_with_any_flipped_bit_are_computed_again_or_unchanged(tmp_path):
    rows = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    references = References(tmp_path, {"images": "abc", "extractor": "inception"})
    references.store("whole", Features(rows, np.arange(9) // 3, 3, torch.device("cpu")))
    (path,) = tmp_path.iterdir()
    missing = 0
    for at in flips(path, every=5):
        reference = references.load("whole")
        missing += reference is None
        assert reference is None or (np.array_equal(reference.rows, rows) and reference.moments.n == 9), at
    assert missing > 200
    path.write_bytes(b"")
    assert references.load("whole") is None


def test_no_command_writes_into_a_checkpoint(old, run_commands):
    """`export RUN RUN/checkpoints/N/generator.safetensors` put the average in the place of the raw weights."""
    gan = old / "runs/gan"
    target = gan / "checkpoints/0000003/generator.safetensors"
    before = sha256(target)
    words = [str(gan), str(target)]
    exported, mixed = run_commands(
        [("sr_dist.export", words), ("sr_dist.interpolate", [str(gan), str(gan / EMA), str(target), "--alpha=0.5"])]
    )
    assert_one_line(exported, "OUT: ", "would change a checkpoint; name a file in another folder")
    assert_one_line(mixed, "OUT: ", "would change a checkpoint")
    assert sha256(target) == before
