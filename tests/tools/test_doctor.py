import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment, run

from sr_dist.tools import doctor

LINE = re.compile(r"(ok|missing|BROKEN) +(\S.*?)  +(.+)")


def found(text):
    """(status, what, said) of every line but the verdict."""
    lines = [line for line in text.splitlines() if line]
    assert all(LINE.fullmatch(line) for line in lines[:-1]), text
    return [LINE.fullmatch(line).groups() for line in lines[:-1]]


def test_one_process_hears_about_everything(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sr_dist.doctor", f"--runs={tmp_path / 'not' / 'yet'}"], capture_output=True, text=True,
        env=environment(SR_DIST_WEIGHTS=str(tmp_path)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = {what: (status, text) for status, what, text in found(done.stdout)}
    for what in ("python", "torch", "torchvision", "accelerate", "wandb", "disk"):
        assert said[what][0] == "ok", what
    assert said["GPUs"][0] == "missing"  # hidden by the environment
    assert "accelerate launch" in said["ranks"][1]
    assert re.search(r"\d MiB/s written", said["disk"][1])
    assert {"deepspeed", "weights", "W&B login", "SLURM"} <= said.keys()
    assert done.stdout.splitlines()[-1] == "nothing is broken"
    assert list(tmp_path.iterdir()) == []


def test_torchvision_of_another_build_is_one_line_and_not_a_traceback(tmp_path):
    """As it is when torch is a CPU build and torchvision is the index's default."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    variables = environment()
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), variables["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "sr_dist.doctor", f"--runs={tmp_path}"],
        capture_output=True,
        text=True,
        env=variables,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [(what, said) for status, what, said in found(done.stdout) if status == "BROKEN"]
    assert [what for what, _ in broken] == ["torchvision"]
    assert "does not fit torch" in broken[0][1]
    assert "operator torchvision::nms does not exist" in broken[0][1]
    assert "from one index" in broken[0][1]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_two_ranks_measure_what_they_send_and_one_speaks(tmp_path):
    out, _ = run(2, "sr_dist.doctor", f"--runs={tmp_path}")
    lines = [line for line in out.splitlines() if LINE.fullmatch(line)]
    (gloo,) = [LINE.fullmatch(line).groups() for line in lines if " gloo " in line]
    assert gloo[0] == "ok"
    bandwidth = re.fullmatch(r"2 ranks, (\d+\.\d+) GiB/s per rank when 64 MiB are summed", gloo[2])
    assert float(bandwidth.group(1)) > 0
    assert sum(" torch " in line for line in lines) == 1


# ---- one thing at a time


def test_a_missing_package_is_broken_or_named_with_its_use(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.package("accelerate").status == "BROKEN"
    optional = doctor.package("onnxruntime", doctor.OPTIONAL["onnxruntime"])
    assert (optional.status, "sr_dist[export]" in optional.said) == ("missing", True)
    assert doctor.deepspeed().status == "missing"


def test_a_disk_that_cannot_be_written_is_broken():
    assert doctor.disk(Path("/proc/runs")).status == "BROKEN"


def test_weights_are_found_missing_or_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    (tmp_path / "vgg19-dcbb9e9d.pth").write_bytes(b"half a file")
    lines = {line.said.split(";")[0]: line for line in doctor.weights()}
    missing = lines["vgg16-397923af.pth"]
    assert (missing.status, str(tmp_path / "vgg16-397923af.pth") in missing.said) == ("missing", True)
    (damaged,) = [line for line in lines.values() if "damaged" in line.said]
    assert "vgg19" in damaged.said
    assert damaged.status == "missing"


def test_the_login_is_looked_for_where_wandb_looks(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert doctor.login().status == "missing"
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert doctor.login().status == "ok"
    assert "secret" not in doctor.login().said
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.example:8080")
    assert doctor.login().status == "missing"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert doctor.login().status == "ok"
    assert "secret" not in doctor.login().said


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("echo slurm 22.05.8", "ok", "slurm 22.05.8"),
        ("echo fatal: no configuration >&2; exit 1", "missing", "no configuration"),
        (None, "missing", "no sbatch"),
    ],
)
def test_slurm_is_asked_for_its_version(monkeypatch, tmp_path, script, status, said):
    if script:
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    finding = doctor.slurm()
    assert finding.status == status
    assert said in finding.said
