"""A report is never overwritten by less or by something else, and says which weights it is about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sr_dist.core.files import sha256
from sr_dist.core.run_layout import run_id
from sr_dist.evaluation.report.folders import covers, free_folder, move_away

FILES = Path(__file__).resolve().parents[1] / "version_0_1"
CHECKPOINT = "checkpoints/0000003"
REPORT = {"images.jsonl", "report.html", "report.json", "report.md"}


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copytree(FILES, tmp_path / "old"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tree(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_a_quick_check_does_not_replace_the_report_of_a_paper(old, photos, run_commands):
    """Fewer images and metrics go to another folder, which is printed. More of both replace fewer."""
    gan, data = old / "runs/gan", f"--data={photos}"
    paper, quick = ["--limit=6", "--metrics=psnr,ssim"], ["--limit=2", "--metrics=psnr"]
    place = gan / "eval/0000003"
    (first,) = run_commands([("sr_dist.evaluate", [str(gan), data, *paper])])
    assert f"report: {place}/report.html" in first.out and "note:" not in first.out
    before = content(place)
    others = [quick, ["--limit=6", "--metrics=psnr"], ["--limit=2", "--metrics=psnr,ssim"], paper]
    answers = run_commands([("sr_dist.evaluate", [str(gan), data, *words]) for words in others])
    assert [answer.code for answer in answers] == [0] * 4
    assert [tree(folder)["n"] for folder in sorted(place.parent.iterdir())] == [6, 6, 2]
    assert set(tree(place)["methods"]["gan"]) == {"psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb"}
    assert content(place) == before  # of the same command, which gave the same numbers
    note = f"note: '{place}' has a report of 6 images"
    assert note in answers[0].out and f"report: {place}-2/report.html" in answers[0].out
    assert set(content(place)) == REPORT
    run_commands([("sr_dist.evaluate", [str(gan), data, "--limit=7", "--metrics=psnr,ssim"])])
    assert tree(place)["n"] == 7


def test_reports_of_other_weights_and_own_files_stay(old, photos, run_commands):
    """The run was trained again to the same step; someone keeps notes where a report would go."""
    gan = old / "runs/gan"
    words = [str(gan), f"--data={photos}", "--limit=2", "--metrics=psnr"]
    run_commands([("sr_dist.evaluate", words)])
    place = gan / "eval/0000003"
    before = content(place)
    change_weights(gan)
    notes = Path(f"{place}-2") / "report.md"
    notes.parent.mkdir()
    notes.write_text("what I think of it")
    run_commands([("sr_dist.evaluate", words)])
    assert content(place) == before and content(notes.parent) == {"report.md": b"what I think of it"}
    assert tree(Path(f"{place}-3"))["sources"]["gan"]["sha256"] == sha256(gan / CHECKPOINT / "generator.ema.safetensors")


def change_weights(run: Path) -> None:
    """Other weights in the same checkpoint, with a manifest that agrees."""
    file, path = run / CHECKPOINT / "generator.ema.safetensors", run / CHECKPOINT / "manifest.json"
    from safetensors import safe_open  # its metadata is lost by load_file

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({name: value * 1.01 for name, value in load_file(file).items()}, file, metadata)
    manifest = json.loads(path.read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    path.write_text(json.dumps(manifest))


def test_out_has_the_newest_report_and_an_other_one_is_moved(old, photos, tmp_path, run_commands):
    """Scripts read the folder that they name, so there the older report goes to -2."""
    out = tmp_path / "tables"
    words = [str(old / "runs/gan"), f"--data={photos}", f"--out={out}"]
    run_commands([("sr_dist.evaluate", [*words, "--limit=6", "--metrics=psnr,ssim"])])
    before = content(out)
    answers = run_commands([("sr_dist.evaluate", [*words, "--limit=2", "--metrics=psnr"])] * 2)
    assert tree(out)["n"] == 2 and content(tmp_path / "tables-2") == before
    assert f"note: the report of 6 images in '{out}' is now in '{out}-2'" in answers[0].out
    assert "note:" not in answers[1].out and not (tmp_path / "tables-3").exists()
    (out / "report.json").unlink()
    (out / "report.md").write_text("what I think of it")
    run_commands([("sr_dist.evaluate", [*words, "--limit=2", "--metrics=psnr"])])
    assert (tmp_path / "tables-3" / "report.md").read_text() == "what I think of it" and tree(out)["n"] == 2


def test_a_report_of_images_that_were_exchanged_stays(old, photos, tmp_path, run_commands):
    """The folder of images has the name of before, other content, and one image more."""
    images, words = tmp_path / "images", [str(old / "runs/gan"), f"--data={tmp_path / 'images'}", "--metrics=psnr"]
    source = sorted(photos.rglob("*.png"))
    images.mkdir()
    for number in range(2):
        shutil.copy(source[number], images / f"{number}.png")
    run_commands([("sr_dist.evaluate", words)])
    place = old / "runs/gan/eval/0000003"
    before = content(place)
    for number in range(3):
        shutil.copy(source[number + 2], images / f"{number}.png")
    (answer,) = run_commands([("sr_dist.evaluate", words)])
    assert content(place) == before and tree(place.with_name(f"{place.name}-2"))["n"] == 3
    assert f"note: '{place}' has a report of 2 images that this one does not cover" in answer.out


def test_out_may_be_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "tables").mkdir()
    monkeypatch.chdir(tmp_path / "tables")
    Path("report.json").write_text('{"n": 3}')
    assert move_away(Path(".")).startswith(f"note: the report of 3 images in '.' is now in '{tmp_path}/tables-2'")
    assert (tmp_path / "tables-2" / "report.json").read_text() == '{"n": 3}'
    Path("report.json").write_text("mine")
    assert free_folder(Path("."), {}, "x") == tmp_path / "tables-3"


NEW = {
    "data": "set5", "portion": None, "n": 5, "inputs": {"images": "abc", "degradation": "bicubic"},
    "protocol": {"name": "matlab-y", "border": 2, "fid": {"weights_sha256": "1", "resize": "clean"}},
    "methods": {"bicubic": {"psnr_y": 1.0, "fid": 2.0}, "gan": {"psnr_y": 1.0, "fid": None}},
    "sources": {"gan": {"sha256": "aa"}}, "attributes": {"k": {"sha256": "bb"}},
}  # fmt: skip


def changed(**changes) -> dict:
    return json.loads(json.dumps({**NEW, **changes}))


@pytest.mark.parametrize(
    ("old", "is_covered"),
    [
        (changed(), True),
        (changed(n=4, inputs={"images": "fewer", "degradation": "bicubic"}), True),
        (changed(methods={"bicubic": {"psnr_y": 9.9}}, attributes={}), True),
        ({"data": "set5", "portion": None, "protocol": {"name": "matlab-y"}}, True),  # of 0.1.0
        (changed(n=4, inputs={"images": "exchanged", "degradation": "bicubic"}), False),
        (changed(n=6), False),
        (changed(inputs={"images": "others", "degradation": "bicubic"}), False),
        (changed(inputs={"images": "abc", "degradation": "real"}), False),
        (changed(data="div2k"), False),
        (changed(portion={"part": "test"}), False),
        (changed(protocol={"name": "matlab-y", "border": 4}), False),
        (changed(protocol={**NEW["protocol"], "fid": {"weights_sha256": "2", "resize": "clean"}}), False),
        (changed(protocol={**NEW["protocol"], "fid": {"weights_sha256": "1", "resize": "clean", "n": 5}}), True),
        (changed(protocol={**NEW["protocol"], "lpips": {"version": "0.1"}}), False),
        (changed(sources={"gan": {"sha256": "other"}}), False),
        (changed(attributes={"k": {"sha256": "other"}}), False),
        (changed(attributes={"l": {"sha256": "bb"}}), False),
        (changed(methods={"bicubic": {"lpips_alex": 0.1}}), False),
        (changed(methods={"bicubic": {"lpips_alex": None}}), True),  # it could not be computed
        (changed(methods={"esrgan": {"psnr_y": 1.0}}), False),
        ({"made": "by another program"}, False),
        ([], False),
    ],
)
def test_a_report_replaces_one_that_it_covers(old, is_covered):
    first = {4: "fewer"}.get  # the digest of the first images
    planned = {**NEW, "digest_of_first": first, "columns": ["psnr_y", "fid"], "methods": ["bicubic", "gan"]}
    assert covers(planned, old) == is_covered


def test_the_name_of_a_folder_may_have_dashes(tmp_path):
    (tmp_path / "my-tables").mkdir()
    (tmp_path / "my-tables" / "report.json").write_text("not one of ours")
    assert free_folder(tmp_path / "my-tables", {}, "1234") == tmp_path / "my-tables-2"


def test_what_a_killed_evaluation_left_is_continued_in_its_folder(tmp_path):
    (tmp_path / ".partial" / "1234").mkdir(parents=True)
    (tmp_path / "images.jsonl").touch()  # it was killed while it wrote the report
    assert free_folder(tmp_path, {}, "1234") == tmp_path
    assert free_folder(tmp_path, {}, "5678") == tmp_path.with_name(f"{tmp_path.name}-2")


def test_reports_name_the_run_that_trained_the_weights(old, photos, tmp_path, run_commands):
    gan = old / "runs/gan"
    assert run_id(gan) is None  # begun by an earlier version
    (gan / "run.json").write_text(json.dumps({"format": 1, "id": "0123abcd" * 4, "unnamed_until": 3}))
    assert run_id(gan) == "0123abcd" * 4
    shutil.copy(gan / CHECKPOINT / "generator.ema.safetensors", tmp_path / "copy.safetensors")
    names = f"{gan},{gan / CHECKPOINT / 'generator.ema.safetensors'},{tmp_path / 'copy.safetensors'}"
    words = [names, f"--data={photos}", "--limit=1", "--metrics=psnr", f"--out={tmp_path / 'out'}"]
    run_commands([("sr_dist.evaluate", words)])
    sources = tree(tmp_path / "out")["sources"]
    assert [about.get("run_id") for about in sources.values()] == ["0123abcd" * 4, "0123abcd" * 4, None]


def test_the_report_of_a_classifier_is_about_its_weights(old, tmp_path, run_commands):
    """Trained again in the same folder after its checkpoints were removed: the same step, other weights."""
    words = [f"{old}/runs/classifier/recipe.yaml", "--name=k", f"--runs={tmp_path}", f"--data.train={old / 'shards'}",
             f"--data.validation={old / 'shards'}", "--log.wandb=off", "--steps=2", "--save_every=2"]  # fmt: skip
    path, run = tmp_path / "k/eval/0000002/classification.json", tmp_path / "k"

    def weights() -> tuple[str, str]:
        """As the report says, and as they are."""
        return json.loads(path.read_text())["weights"]["sha256"], sha256(run / "checkpoints/0000002/classifier.ema.safetensors")

    run_commands([("sr_dist.train", words)])
    stated, actual = weights()
    assert stated == actual
    shutil.rmtree(run / "checkpoints")
    (answer,) = run_commands([("sr_dist.train", [*words, "--optimizer.learning_rate=0.01"])])
    assert answer.code == 0, answer
    assert weights()[0] == weights()[1] != actual
    before = path.stat().st_mtime_ns
    (answer,) = run_commands([("sr_dist.train", [*words, "--optimizer.learning_rate=0.01"])])  # it is done already
    assert answer.code == 0 and path.stat().st_mtime_ns == before
