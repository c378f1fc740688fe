"""Health in whole trainings: it changes nothing, and a discriminator that wins gives an alarm."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from processes import DEMO, metrics, run
from safetensors.torch import load_file
from test_equality import job, train

CASES = ("srugan", "esrgan", "penalized")
pytestmark = pytest.mark.slow


def cases(shards: Path, runs: Path, number: int = len(CASES)) -> list[dict]:
    """The same training with and without health, by names that end in True and False."""
    jobs = []
    for enabled in (True, False):
        for case in CASES[:number]:
            work = job(shards, runs, case, 1, "adam")
            work["options"] |= {"name": f"{case}-{enabled}", "health.enabled": str(enabled)}
            jobs.append(work)
    return jobs


def weights(run_folder: Path) -> dict:
    folder = max((run_folder / "checkpoints").iterdir())
    return {f"{path.stem}/{name}": value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def numbers(run_folder: Path) -> list[dict]:
    """Losses and gradients' norms of every row."""
    prefixes = ("loss/", "grad_norm/", "reading/")
    return [{key: value for key, value in row.items() if key.startswith(prefixes)} for row in metrics(run_folder)]


@pytest.fixture(scope="module")
def trained(photo_shards, tmp_path_factory):
    """The folder of the runs under a backend, made when a test first needs it."""

    @cache
    def under(backend: str) -> Path:
        folder = tmp_path_factory.mktemp(backend.replace(" ", "_"))
        train(backend, folder, cases(photo_shards, folder, 1 if backend == "zero2" else len(CASES)))
        return folder

    return under


@pytest.mark.parametrize("backend", ["one process", "ddp", "zero2"])
def test_weights_and_losses_are_those_of_a_run_without_health(backend, trained):
    """To the last bit."""
    for case in CASES[: 1 if backend == "zero2" else None]:
        watched, plain = trained(backend) / f"{case}-True", trained(backend) / f"{case}-False"
        assert numbers(watched) == numbers(plain)
        ours, theirs = weights(watched), weights(plain)
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours)
        names = {key for row in metrics(watched) for key in row if key.startswith("health/")}
        assert {"health/margin", "health/saturated_real", "health/adversarial_ratio", "health/ema_distance"} <= names
        assert not any(key.startswith("health/") for row in metrics(plain) for key in row)


@pytest.mark.parametrize("backend", ["ddp", "zero2"])
def test_two_ranks_have_the_columns_of_one_process(backend, trained):
    """In the first step, where their weights are equal."""
    for case in CASES[: 1 if backend == "zero2" else None]:
        one, other = (metrics(trained(each) / f"{case}-True")[0] for each in ("one process", backend))
        names = [name for name in one if name.startswith("health/")]
        assert len(names) >= 14
        for name in names:
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name


@pytest.fixture(scope="module")
def forty(tmp_path_factory) -> Path:
    """40 made photographs of 96 pixels."""
    from photographs import made_photo
    from PIL import Image

    from shards.build import build

    root = tmp_path_factory.mktemp("forty")
    for number in range(40):
        Image.fromarray(made_photo(number, 96, 96)).save(root / f"{number:02d}.png")
    build("folder", str(root), root / "shards", {"per_shard": "8"})
    return root / "shards"


def thin(shards: Path, runs: Path, **more: object) -> list[str]:
    """esrgan_x4 with few channels, without its VGG term."""
    options = {
        "runs": runs, "data.train": shards, "data.validation": "none", "data.crop": 64, "data.batch": 8, "data.workers": 0,
        "log.wandb": "off", "log_every": 10, "save_every": "none", "validate_every": "none", "steps": 60,
        "generator.num_blocks": 1, "generator.width": 16, "generator.growth": 8, "init.generator": "none",
        "discriminator.width": 16, "discriminator.features": 64, "discriminator.crop": 64,
        "objective.content": "{l1: 1e-2}", "objective.adversarial_weight": 5e-3,
        **{key.replace("__", "."): value for key, value in more.items()},
    }  # fmt: skip
    return ["esrgan_x4", *(f"--{key}={value}" for key, value in options.items())]


def test_a_discriminator_that_wins_gives_an_alarm_within_sixty_steps(forty, tmp_path):
    """Its rate is ten times the generator's. The alarm is one line, and says which key to try."""
    out, _ = run(0, "sr_dist.train", *thin(forty, tmp_path, name="planted", discriminator_optimizer="{learning_rate: 1e-3}"))
    (line,) = [line for line in out.splitlines() if "alarm: step 20: the discriminator has won" in line]
    assert "discriminator_optimizer.learning_rate" in line
    assert line.split(" ", 2)[2] in (tmp_path / "planted" / "log.txt").read_text()


def test_a_healthy_run_gives_none(forty, tmp_path):
    words = ["--name=healthy", f"--runs={tmp_path}", f"--data.train={forty}", "--data.validation=none", "--log.wandb=off"]
    small = ["--discriminator.classes=none", "--objective.class_weight=0", "--data.workers=0", "--data.batch=4", "--steps=60"]
    out, _ = run(0, "sr_dist.train", str(DEMO), *words, *small)
    assert "alarm" not in out
    assert metrics(tmp_path / "healthy")[-1]["health/margin"] > 0
