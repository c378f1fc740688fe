"""Training on a device that refuses what a GPU refuses and counts what a GPU's host waits for: `second.py`, without a GPU.

In a step the host must not wait, and may send at most six copies per micro-batch, all asynchronous: images, labels and numbers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import data_kinds
import pytest
import second
from processes import ROOT, finish_with, popen
from thin_recipes import read, small_classifiers, twin

pytestmark = pytest.mark.skipif(bool(second.missing()), reason=str(second.missing()))
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
MOST_COPIES = 6  # per micro-batch
IN_A_PROCESS = 7  # trainings: a busy machine must finish them in time
VARIANTS: dict[str, dict[str, str]] = {
    "channels_last": {"channels_last": "true"},
    "bf16": {"precision": "bf16"},
    "fp16 and clip": {"precision": "fp16", "optimizer.clip": "1.0"},
    "sgd": {"optimizer": "{name: sgd, learning_rate: 0.01, momentum: 0.9}"},
    "accumulate": {"accumulate": "2"},
    "post-hoc EMA": {"ema.post_hoc": "true"},
    "checkpointing": {"checkpointing": "encoder.*"},
}  # of the demo
PLANTS = {  # what is planted into the generator's output -> what must be seen
    "item": ("wait", "aten::item"),
    "truth": ("wait", "aten::item"),
    "mask": ("wait", "aten::nonzero"),
    "constant": ("to device, waiting", "aten::copy_"),
    "pageable": ("to device, waiting", "aten::copy_"),
    "index": ("to device, waiting", "aten::copy_"),
    "other device": ("error", "Expected all tensors to be on the same device"),
}


def kind(path: Path) -> tuple[Any, ...]:
    """The parts that a step runs."""
    recipe = read(path)
    parts = (recipe.generator, recipe.discriminator, recipe.classifier, recipe.objective, recipe.data.degradation)
    return (*(part and part.name for part in parts), tuple(sorted(recipe.objective.options.get("content", {}))))


FIRST = {kind(path): path.stem for path in reversed(RECIPES)}.values()


def requests(folder: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    classifiers = small_classifiers(folder / "classifiers")
    for name in names:
        path = ROOT / "configs" / f"{name}.yaml"
        shards = data_kinds.build(path, folder / "kinds")
        yield request(path, shards, folder / "runs", classifiers)


def request(path: Path, shards: Path, runs: Path, classifiers: dict[str, str], **own: str) -> dict[str, Any]:
    options = twin(path, shards, runs, classifiers) | {
        "name": own.pop("name", path.stem), "steps": "4", "log_every": "4", "save_every": "2", "validate_every": "2", "keep": "3",
        "data.validation_limit": "2", "hang_timeout": "none", "metrics": "psnr",
    }  # fmt: skip
    if not read(path).data.split:
        options["data.validation"] = str(shards)
    plant, seconds = own.pop("plant", None), float(own.pop("seconds_per_copy", 0.0))
    return {"recipe": str(path), "options": options | own, "plant": plant, "seconds_per_copy": seconds}


def train(work: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trains one recipe after the other, a few in a process."""
    folder, results = Path(__file__).parent, []
    path = f"{folder}:{folder.parent}:{ROOT}"
    for first in range(0, len(work), IN_A_PROCESS):
        line = [sys.executable, "-W", "ignore", str(folder / "trainings.py"), json.dumps(work[first : first + IN_A_PROCESS])]
        out, _ = finish_with(0, popen(line, PYTHONPATH=path))
        results += [json.loads(line) for line in out.splitlines() if line.startswith('{"request"')]
    return results


def check(result: dict[str, Any]) -> None:
    assert "error" not in result, result["traceback"]
    assert result["validations"]
    uninterrupted, resumed = result["losses"]
    assert {name: value for name, value in uninterrupted.items() if name != "data_wait"} == {
        name: value for name, value in resumed.items() if name != "data_wait"
    }
    steps = {f"{run} {step}": waits for run, part in result["steps"].items() for step, waits in part.items()}
    counted = [
        waits for step, waits in steps.items() if step in ("uninterrupted step 2", "uninterrupted step 3", "resumed step 4")
    ]
    assert len(counted) == 3
    for waits in counted:
        assert [wait for wait in waits if wait["kind"] != "to device"] == []
        assert 0 < sum(wait["count"] for wait in waits) <= MOST_COPIES * result["micro_batches"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("second")


@pytest.fixture(scope="module")
def by_recipe(folder) -> dict[str, dict[str, Any]]:
    results = train(list(requests(folder, list(FIRST))))
    return {Path(result["request"]["recipe"]).stem: result for result in results}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
def test_every_kind_of_recipe_trains_without_waiting(name, by_recipe):
    """Set-up, steps, validation, saving and resuming, which gives the same numbers."""
    check(by_recipe[name])


@pytest.fixture(scope="module")
def others(folder) -> dict[str, dict[str, Any]]:
    results = train(list(requests(folder / "others", [path.stem for path in RECIPES if path.stem not in FIRST])))
    return {Path(result["request"]["recipe"]).stem: result for result in results}


@pytest.mark.long
@pytest.mark.parametrize("name", [path.stem for path in RECIPES if path.stem not in FIRST])
def test_every_other_recipe_trains_without_waiting(name, others):
    check(others[name])


@pytest.fixture(scope="module")
def of_demo(folder) -> dict[str, dict[str, Any]]:
    """The demo with other options, with planted faults, and on a device that is slow."""
    path = ROOT / "configs" / "demo.yaml"
    shards = data_kinds.build(path, folder / "kinds")

    def one(name: str, **own: str) -> dict[str, Any]:
        return request(path, shards, folder / "demo", {}, name=name, **own)

    work = [one(name, **options) for name, options in VARIANTS.items()]
    work += [one(name, plant=name) for name in PLANTS]
    work.append(one("slow device", seconds_per_copy="0.2"))
    work.append({**one("cpu"), "device": "cpu"})
    return {result["request"]["options"]["name"]: result for result in train(work)}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_of_training_does_not_wait(variant, of_demo):
    check(of_demo[variant])


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS)
def test_planted_waits_are_seen(plant, of_demo):
    """An operation that waits, constants in every step, and tensors of the host."""
    expected_kind, text = PLANTS[plant]
    result = of_demo[plant]
    if expected_kind == "error":
        assert text in result["error"]
        return
    for step in ("step 2", "step 3"):
        seen = [wait for wait in result["steps"]["uninterrupted"][step] if wait["kind"] != "to device"]
        assert {wait["kind"] for wait in seen} == {expected_kind}
        assert any("trainings.py" in wait["place"] for wait in seen if wait["operation"] == text)
        assert all("trainings.py" in wait["place"] or wait["place"] == "backward" for wait in seen)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_cpu(of_demo):
    plain, on_cpu = of_demo["slow device"]["losses"][0], of_demo["cpu"]["losses"][0]
    for name in plain.keys() - {"data_wait"}:
        assert plain[name] == pytest.approx(on_cpu[name], rel=1e-6)


@pytest.mark.slow
def test_a_slow_device_is_no_slow_disk(of_demo):
    """Copies take 0.2 s of the device's time, for which the host stands still: it is not waiting for data. They are nearly all of
    the time, and the first images come late on a busy machine."""
    uninterrupted, resumed = of_demo["slow device"]["losses"]
    assert uninterrupted["data_wait"] < 0.5 and resumed["data_wait"] < 0.5
