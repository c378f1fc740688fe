"""TensorBoard, several trackers at once, one of the user's own, and W&B's offline parts that are sent while a run goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from processes import run, wait_for

from sr_dist.core import config
from sr_dist.core.lost_writes import LostWrites
from sr_dist.recipe.sections import Recipe
from sr_dist.training import background_sync
from sr_dist.training.background_sync import BackgroundSync
from sr_dist.training.log import Log

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the package tensorboard is not installed"
)


def events(folder: Path):
    whole = accumulator.EventAccumulator(str(folder), size_guidance=dict.fromkeys(("scalars", "images", "tensors"), 0))
    whole.Reload()
    return whole


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    whole = events(folder)
    return {tag: [(e.step, round(e.value, 4)) for e in whole.Scalars(tag)] for tag in whole.Tags()["scalars"]}


def recipe(folder: Path, **log: str) -> Recipe:
    tree = {
        "name": "a", "runs": str(folder), "scale": "2", "steps": "10", "data": {"train": "x", "crop": "32", "batch": "4"},
        "generator": {"name": "srugan"}, "objective": {"name": "pixel"}, "optimizer": {}, "log": log,
    }  # fmt: skip
    (folder / "a").mkdir(exist_ok=True)
    return config.typed(Recipe, tree)


def opened(settings: Recipe) -> Log:
    return Log(settings, True, LostWrites())


def test_a_run_that_continues_has_each_step_once(tmp_path):
    """The names are those of W&B. Steps 3 and 4 of the first process are not those of the surviving weights."""
    settings = recipe(tmp_path, trackers="tensorboard")
    log = opened(settings)
    for step in (1, 2, 3, 4):
        log.row({"step": step, "images": 4 * step, "loss/l1": 1.0 / step, "images_per_second": 9.0, "memory_gb": float("nan")})
    log.close()
    (tmp_path / "a" / "checkpoints" / "0000002").mkdir(parents=True)
    log = opened(settings)
    log.row({"step": 2, "images": 8, "validation/set5/psnr_y": 30.0, "bicubic/set5/psnr_y": 28.0})  # it was postponed
    for step in (3, 4):
        log.row({"step": step, "images": 4 * step, "loss/l1": 2.0})
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "sheet.png")
    tracker = log._trackers[0]
    tracker.image("samples/sheet", tmp_path / "sheet.png", {"step": 4, "images": 16})
    rows = [{"image": "a|b", "SR": Image.new("RGB", (2, 2)), "psnr_y": 30.12344}, {"image": "c", "SR": None, "psnr_y": None}]
    log.table("samples/table", rows, {"step": 4, "images": 16})
    log.close()
    values = scalars(tmp_path / "a" / "tensorboard")
    assert values["loss/l1"] == [(1, 1.0), (2, 0.5), (3, 2.0), (4, 2.0)]
    assert values["validation/set5/psnr_y"] == [(2, 30.0)] and values["bicubic/set5/psnr_y"] == [(2, 28.0)]
    assert values["speed/images_per_second"] == [(1, 9.0), (2, 9.0)]
    assert "memory/memory_gb" not in values
    whole = events(tmp_path / "a" / "tensorboard")
    (image,) = whole.Images("samples/sheet")
    assert (image.step, image.width, image.height) == (4, 6, 4)
    (table,) = whole.Tensors("samples/table/text_summary")
    assert table.tensor_proto.string_val[0].decode().splitlines() == [
        "| image | psnr_y |", "| --- | --- |", "| a\\|b | 30.1234 |", "| c |  |",
    ]  # fmt: skip
    assert "name: srugan" in whole.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()


OWN = """
from pathlib import Path

def open_tracker(recipe, info):
    return Own(recipe.folder / "own.txt")

class Own:
    def __init__(self, path):
        self.path = path
    def row(self, row):
        with self.path.open("a") as file:
            file.write(f"{row['step']} ")
    def table(self, name, rows, at): pass
    def image(self, name, path, at): pass
    def checkpoint(self, folder, step, best): pass
    def preempted(self, text): pass
    def close(self, code): self.path.open("a").write("closed")
"""


@pytest.mark.slow
def test_three_trackers_get_the_same_rows(write_recipe, photo_shards, tmp_path):
    """W&B (which `log.wandb` leaves out: offline), TensorBoard, and a file of the user's own."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "own.py").write_text(OWN)
    path = write_recipe(
        data={"validation": str(photo_shards), "validation_limit": 2}, log={"trackers": "wandb, tensorboard, mine.own"}
    )
    out, _ = run(0, "sr_dist.train", path, cwd=tmp_path)
    folder = tmp_path / "runs" / "tiny"
    assert f"'{tmp_path}/mine/own.py' (log.trackers) is not part of sr_dist" in out
    assert f"TensorBoard: tensorboard --logdir '{tmp_path}/runs'" in out
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (folder / "own.txt").read_text() == " ".join(str(row["step"]) for row in rows) + " closed"
    values = scalars(folder / "tensorboard")
    for column in ("loss/l1", "validation/psnr_y", "bicubic/ssim_y"):
        assert values[column] == [(row["step"], pytest.approx(row[column], abs=1e-4)) for row in rows if column in row]
    assert list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(events(folder / "tensorboard").Images("samples/sheet")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--log.trackers=tensorbord"],
            "log.trackers: no 'tensorbord' in sr_dist/training/trackers; did you mean 'tens",
        ),
        (["--log.trackers=wandb,wandb"], "log.trackers: wandb, wandb: a tracker is named twice"),
        (["--log.trackers=wandb", "--log.wandb=off"], "log.wandb: off, but log.trackers names wandb; leave one of them out"),
        (["--log.sync_every=5"], "log.sync_every: 5, but with log.wandb: off no row goes to W&B; it is for offline"),
        (["--log.sync_every=5", "--log.wandb=online"], "log.sync_every: 5, but with log.wandb: online rows are sent at once;"),
        (["--log.trackers=os.path"], "log.trackers: "),
    ],
)
def test_wrong_trackers_are_one_line(write_recipe, run_commands, options, message, tmp_path):
    [answer] = run_commands([("sr_dist.train", [str(write_recipe()), *options])])
    assert (answer.code, answer.err.count("error:")) == (2, 1), answer.err
    assert answer.err.startswith(f"error: {message}")
    assert not (tmp_path / "runs").exists()


def test_tensorboard_without_its_package_is_refused_before_training(write_recipe, monkeypatch):
    from sr_dist.core.errors import UserError
    from sr_dist.training.trackers import tensorboard

    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    settings = recipe(write_recipe().parent, trackers="tensorboard")
    with pytest.raises(UserError, match=r"^log\.trackers: tensorboard needs a package .*pip install 'sr_dist\[tensorboard\]'$"):
        tensorboard.check(settings)


# ---- log.sync_every, with a stand-in for `wandb sync`


@pytest.fixture
def sync(tmp_path, monkeypatch):
    """`sync(code)`: a BackgroundSync of every 10 steps. Its command writes its words to a file, waits for another and exits."""
    parts = tmp_path / "wandb"
    for name in ("offline-run-1-x", "offline-run-2-x"):
        (parts / name).mkdir(parents=True)
    lines: list[str] = []

    def make(code: int = 0) -> BackgroundSync:
        script = tmp_path / "wandb_sync.py"
        script.write_text(
            "import sys, time, pathlib\n"
            f"root = pathlib.Path({str(tmp_path)!r})\n"
            "with open(root / 'calls', 'a') as file: file.write(' '.join(sys.argv[1:]) + '\\n')\n"
            "while not (root / 'go').exists(): time.sleep(0.02)\n"
            f"print('Uploading'); print('no internet {code}'); sys.exit({code})\n"
        )
        monkeypatch.setattr(background_sync, "COMMAND", (sys.executable, str(script)))
        return BackgroundSync(10, parts, parts / "offline-run-2-x", lines.append)

    make.calls = lambda: (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    make.go, make.lines = tmp_path / "go", lines
    return make


def test_offline_parts_are_sent_while_the_run_goes_on(sync, tmp_path):
    """The part of an earlier process once, the growing one each time; never two at a time."""
    background, parts = sync(), tmp_path / "wandb"
    for step in (5, 9):
        background.row(step)
    assert sync.calls() == []
    background.row(10)
    wait_for(lambda: len(sync.calls()) == 1)
    background.row(20)  # the first is still at work
    background.row(30)
    assert sync.calls() == [str(parts / "offline-run-1-x")]
    sync.go.touch()
    background._process.wait(60)
    background.row(40)
    background._process.wait(60)
    background.row(44)
    background.close()
    again = f"--include-synced {parts / 'offline-run-2-x'}"
    assert sync.calls() == [str(parts / "offline-run-1-x"), again, again]
    assert sync.lines == []


def test_a_sync_that_fails_is_one_line_and_one_that_hangs_is_ended(sync, monkeypatch):
    background = sync(code=1)
    sync.go.touch()
    for step in (1, 10, 20, 30):
        background.row(step)
        if background._process:
            background._process.wait(60)
    assert sync.lines == ["wandb sync failed (no internet 1); it is tried again every 10 steps, training goes on"]
    sync.go.unlink()
    monkeypatch.setattr(background_sync, "LAST", 0.3)
    background.row(40)
    hanging = background._process
    background.close()
    assert hanging.poll() is not None and background._process is None


def test_a_sync_that_takes_too_long_makes_room_for_the_next(sync, monkeypatch):
    background = sync()
    background.row(1)
    background.row(10)
    hanging = background._process
    monkeypatch.setattr(background_sync, "LIMIT", 0.0)
    background.row(20)
    assert hanging.poll() is not None and background._process is not hanging
    assert sync.lines == ["wandb sync failed (no end after 0 s); it is tried again every 10 steps, training goes on"]
    sync.go.touch()
    background.close()
