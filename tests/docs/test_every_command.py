"""Every Python command of the manual is run, page by page, with the page's own words, on small data and tiny networks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import processes
import pytest
import thin_recipes
import world
from test_docs import ALL, ROOT, blocks, commands

from sr_dist.core.cli import split

SHORT = {"steps": "4", "data.batch": "4", "data.workers": "0", "save_every": "2", "validate_every": "4", "log_every": "1",
         "log.wandb": "off", "precision": "no"}  # fmt: skip
PHOTOS = "--data.train=data/sample_photos/train --data.validation=none"
PSNR, GAN = f"sr_dist.train rrdb_psnr_x4 {PHOTOS}", f"sr_dist.train esrgan_x4 {PHOTOS}"
FACES = "shards.build celeba /data/celeba data/celeba --centre_crop=144 --resize=64 --format=png"

# What stands before the page's first command: the runs that it takes for granted.
BEFORE = {
    "basicsr": [],
    "data": [],
    "evaluate": [f"{PSNR} --name=psnr", f"{GAN} --name=gan", f"{GAN} --name=esrgan", f"{GAN} --name=esrgan_glasses", FACES,
                 *(f"sr_dist.train classifier_{name} --data.train=data/celeba" for name in ("eyeglasses", "hat"))],
    "health": [],
    "large_batches": [],
    "losses": [],
    "memory": [],
    "protocols": [],
    "report": [f"sr_dist.train demo_pixel {PHOTOS}"],
    "studies_digits": [],
    "studies_faces": [],
    "train": [f"sr_dist.train demo {PHOTOS} --name=a"],
    "watch": [f"sr_dist.train demo {PHOTOS} --name=a --steps=5"],
    "weights": [f"{PSNR} --name=psnr", f"{GAN} --name=gan", f"{PSNR} --name=mine"],
}  # fmt: skip

# Patterns of what small data changes: numbers of steps, of tars and of a loop.
SMALL = {
    "data": {"1023": "0001", "--workers=16": "--workers=1", "SOURCE INPUT": "folder /data/DIV2K"},
    "report": {"configs/demo.yaml": "configs/demo.yaml --save_every=1"},
    "studies_digits": {r"runs/x\b": "runs/srgan_mse_mnist_x2"},
    "studies_faces": {",runs/faces_w0.1": ""},
    "train": {"--at=20000": "--at=2", "configs/esrgan_x4.yaml": f"configs/esrgan_x4.yaml {PHOTOS}"},
    "watch": {"--profile=20:24": "--profile=2:3", "--from=1201 --to=1210": "--from=3 --to=4"},
    "weights": {"--init.generator=RealESRGAN_x4plus_anime_6B": f"--init.generator={world.PUBLISHED}",
                "--data.train=data/mine/train": PHOTOS, "--name=mine": "--name=tuned"},
}  # fmt: skip


def in_world(text: str) -> str:
    return re.sub(r"(?<![\w.])/data(?=/|$)", "published", text)


def thin(words: list[str]) -> list[str]:
    """The same training with tiny networks and four steps; of the page's words only the counts of SHORT are changed."""
    (recipe, *_), own = split(words)
    path = ROOT / "configs" / f"{Path(recipe).stem}.yaml"
    options = {**thin_recipes.for_few_images(path), "data.crop": "28" if "data/mnist" in own.values() else "32"}
    read = thin_recipes.read(path)
    for section in ("generator", "discriminator", "classifier"):
        part = getattr(read, section)
        if part and section not in own:
            options |= {f"{section}.{key}": value for key, value in thin_recipes.THIN.get(part.name, {}).items()}
    if "vgg" in read.objective.options.get("content", {}) and "objective.content" not in own:
        options["objective.content.vgg.weights"] = "random"
    if read.init.generator:
        options["init.generator"] = "none"
    few = {key: own[key] for key in ("steps", "save_every") if len(own.get(key, "")) == 1}
    return [recipe, *(f"--{key}={value}" for key, value in {**options, **own, **SHORT, **few}.items())]


def calls(page: str) -> list[tuple[str, list[str]]]:
    """The page's commands after those that it takes for granted. A second build into one folder goes beside the first."""
    on_page = [words[words.index("-m") + 1 :] for words in commands("\n".join(blocks(path_of(page)))) if "-m" in words]
    on_page = [replaced(words, SMALL.get(page, {})) for words in on_page]
    result, built = [], set()
    for module, *words in [*(line.split(" ") for line in BEFORE[page]), *on_page]:
        words = [in_world(word) for word in words]
        if module == "sr_dist.train":
            words = thin(words)
        module = {"sr_dist": "sr_dist.__main__"}.get(module, module)
        if module == "shards.build" and "--merge" not in words and words[2] in built:
            words[2] += "_again"
        if module == "shards.build":
            built.add(words[2])
        shares = [f"--task={task}/8" for task in range(8)] if words[-1] == "--task=3/8" else words[-1:]
        result += [(module, [*words[:-1], last]) for last in shares]
    return result


def replaced(words: list[str], changes: dict[str, str]) -> list[str]:
    text = "\0".join(words)
    for pattern, new in changes.items():
        text = re.sub(pattern.replace(" ", "\0"), new.replace(" ", "\0"), text)
    return text.split("\0")


def path_of(page: str) -> Path:
    return ROOT / "docs" / f"{page}.md"


RUN_BY = {
    "README": "test_manual.py", "start": "test_manual.py", "finetune": "test_manual.py", "plan": "test_plan_page.py",
    "fetch": "tools/test_fetch.py, from a server of its own", "prove": "runs/test_prove.py", "page": "tools/test_local_page.py",
    "catalogue": "files that the index names and no test machine has", "cluster": "slurm/test_slurm.py, slurm/test_pipeline.py",
    "mission": "slurm/test_mission.py", "speedrun": "runs/test_speedrun.py",
    "CONTRIBUTING": "the installation", "benchmarks/README": "whoever measures",
}  # fmt: skip


def test_every_command_is_run_by_a_test():
    """A new page with commands needs a line in BEFORE, or the name of its test in RUN_BY."""
    names = {"benchmarks/README" if path.parent.name == "benchmarks" else path.stem for path, _ in ALL}
    assert names == {*BEFORE, *RUN_BY}


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("manual") / "world"
    folder.mkdir()
    world.write(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", BEFORE)
def test_the_commands_of_a_page_run(page, everything, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(everything, folder)
    (folder / "configs").symlink_to(ROOT / "configs")
    path = f"{ROOT}:{ROOT / 'tests'}"
    out, _ = processes.run(0, "run_commands", json.dumps(calls(page)), cwd=folder, PYTHONPATH=path)
    answers = json.loads(out.splitlines()[-1])
    failed = [f"{call}: {err[-1500:]}" for call, (code, _, err, _) in zip(calls(page), answers, strict=True) if code]
    assert not failed, "\n".join(failed)
