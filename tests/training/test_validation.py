"""Validation during training: several sets, bicubic beside them, the row of step 0, and whole images by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from processes import finish, run, start

from sr_dist.core.resize import imresize
from sr_dist.data.images import open_images


@pytest.fixture
def sets(photos, tmp_path):
    """Two folders of images, of three and of two."""
    for name, files in {"boats": ("00.jpg", "03.png", "06.png"), "cats": ("01.jpg", "04.png")}.items():
        (tmp_path / name).mkdir()
        for file in files:
            shutil.copy(photos / name / file, tmp_path / name / file)
    return {name: str(tmp_path / name) for name in ("boats", "cats")}


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def bicubic_psnr(folder: str) -> float:
    """The mean PSNR of RGB of MATLAB's bicubic, by the definition: rounded to 8 bits, two pixels of border left out."""
    values = []
    images = open_images(folder)
    for i in range(len(images.names)):
        hr = images.load(i)[0].double() / 255
        hr = hr[:, : hr.shape[1] // 2 * 2, : hr.shape[2] // 2 * 2]
        lr = imresize(hr[None], 0.5, to_8_bit=True)
        sr = (imresize(lr, 2)[0] * 255).round().clamp(0, 255) / 255
        values.append(-10 * np.log10(((sr - hr)[:, 2:-2, 2:-2] ** 2).mean().item()))
    return float(np.mean(values))


def test_several_sets_are_validated_beside_bicubic_from_step_0(write_recipe, sets, tmp_path):
    recipe = write_recipe(
        data={"validation": sets}, validate_first=True, sample_images=2, keep={"last": 1, "best": "cats/psnr_rgb"}
    )
    out, _ = run(0, "sr_dist.train", recipe)
    folder = tmp_path / "runs" / "tiny"
    rows = [row for row in metrics(folder) if "validation/psnr_rgb" in row]
    assert [row["step"] for row in rows] == [0, 2, 4]
    for row in rows:
        for kind in ("validation", "bicubic"):
            each = [row[f"{kind}/{name}/psnr_rgb"] for name in sets]
            assert row[f"{kind}/psnr_rgb"] == pytest.approx(sum(each) / 2)
        for name, place in sets.items():
            assert row[f"bicubic/{name}/psnr_rgb"] == pytest.approx(bicubic_psnr(place), abs=1e-4)
    assert len({row["validation/boats/psnr_rgb"] for row in rows}) == 3
    assert f"validation of boats: 3 images, '{sets['boats']}'" in out
    assert f"step 4 validation of cats, 2 images: psnr_y {rows[-1]['validation/cats/psnr_y']:.4f} (bicubic " in out

    steps = {step: folder / "samples" / step for step in ("0000000", "0000002", "0000004")}
    images = {step: sorted(str(path.relative_to(inside)) for path in inside.rglob("*.png")) for step, inside in steps.items()}
    first_two = ["boats/00.png", "boats/03.png", "cats/01.png", "cats/04.png"]
    assert images == dict.fromkeys(images, first_two)
    with Image.open(folder / "samples" / "0000004" / "cats" / "04.png") as restored, Image.open(f"{sets['cats']}/04.png") as hr:
        assert restored.size == tuple(side // 2 * 2 for side in hr.size)
    assert (folder / "samples" / "0000000.png").is_file()

    state = json.loads(next((folder / "checkpoints").glob("*/state.json")).read_text())
    trained = max((row for row in rows if row["step"]), key=lambda row: row["validation/cats/psnr_rgb"])
    assert (state["best"]["metric"], state["best"]["step"]) == ("cats/psnr_rgb", trained["step"])


def test_rows_of_steps_do_not_depend_on_step_0(write_recipe, photos, tmp_path):
    """Nothing that training uses is touched: the same losses, and one row and one sheet more."""
    quiet = write_recipe("a.yaml", name="a", data={"validation": str(photos), "validation_limit": 3})
    run(0, "sr_dist.train", quiet)
    run(0, "sr_dist.train", quiet, "--name=b", "--validate_first=true")
    plain, first = (
        [
            {k: v for k, v in row.items() if k.startswith(("loss/", "validation/", "grad_norm/"))}
            for row in metrics(tmp_path / "runs" / name)
        ]
        for name in "ab"
    )
    assert first[1:] == plain
    assert len(first) == len(plain) + 1
    assert first[0].keys() == {"validation/psnr_y", "validation/psnr_rgb", "validation/ssim_y", "validation/ssim_rgb"}


FAILING = """
BETTER = {"odd": "higher"}

def per_image(sr, hr, protocol, grey):
    raise RuntimeError("this metric cannot work")
"""


def test_a_validation_that_cannot_work_fails_before_the_first_step(write_recipe, photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "odd.py").write_text(FAILING)
    recipe = write_recipe(data={"validation": str(photos)}, metrics="mine.odd", validate_first=True)
    code, out, err = finish(start(0, "sr_dist.train", recipe, cwd=tmp_path))
    assert code == 1 and "this metric cannot work" in err and "failed after step 0" in out
    assert not list((tmp_path / "runs" / "tiny" / "checkpoints").glob("*"))
    finish_code, _, err = finish(start(0, "sr_dist.train", recipe, "--metrics=psnr", cwd=tmp_path))
    assert finish_code == 0, err  # the records of the attempt do not remain
    rows = metrics(tmp_path / "runs" / "tiny")
    assert [row["step"] for row in rows if "validation/psnr_y" in row] == [0, 2, 4]


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (
            "[a, b]",
            "data.validation: ['a', 'b'] is a list; several sets need names, such as {set5: data/Set5, set14: data/Set14}",
        ),
        ("{set 5: a}", "data.validation: 'set 5' cannot be the name of a set: it has letters, digits, _ @ + -"),
        ("{a: none}", "data.validation: 'a' names no shards and no folder of images"),
        ("{a: {b: c}}", "data.validation: 'a' names no shards and no folder of images"),
        ("{}", "data.validation: names no set; none means no validation"),
        ("{a: nowhere}", "data.validation.a: no folder 'nowhere'"),
    ],
)
def test_wrong_sets_are_one_line(write_recipe, run_commands, validation, message):
    [answer] = run_commands([("sr_dist.train", [str(write_recipe()), f"--data.validation={validation}"])])
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith(f"error: {message}")


def test_the_best_of_one_set_must_be_a_column(write_recipe, sets, run_commands):
    path = write_recipe(data={"validation": sets})
    [answer] = run_commands([("sr_dist.train", [str(path), "--keep.best=dogs/psnr_y"])])
    assert answer.code == 2 and "keep.best: 'dogs/psnr_y' is not a column of the metrics psnr, ssim" in answer.err
