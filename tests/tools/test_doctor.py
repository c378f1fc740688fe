import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment, run

from sr_dist.tools import doctor

LINE = re.compile(r"(ok|missing|BROKEN) +(\S.*?)  +(.+)")


def parse(output):
    """(status, name, text) of every line but the last, which sums up."""
    lines = [line for line in output.splitlines() if line]
    assert all(LINE.fullmatch(line) for line in lines[:-1]), output
    return [LINE.fullmatch(line).groups() for line in lines[:-1]]


def test_one_process_reports_everything(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sr_dist.doctor", f"--runs={tmp_path / 'not' / 'yet'}"], capture_output=True, text=True,
        env=environment(SR_DIST_WEIGHTS=str(tmp_path)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {name: (status, text) for status, name, text in parse(done.stdout)}
    for name in ("python", "torch", "torchvision", "accelerate", "wandb", "disk"):
        assert findings[name][0] == "ok", name
    assert findings["GPUs"][0] == "missing"  # hidden by the environment
    assert "accelerate launch" in findings["ranks"][1]
    assert re.search(r"\d MiB/s written", findings["disk"][1])
    assert {"deepspeed", "weights", "W&B login", "SLURM"} <= findings.keys()
    assert done.stdout.splitlines()[-1] == "nothing is broken"
    assert list(tmp_path.iterdir()) == []


def test_torchvision_of_another_build_is_one_line_and_not_a_traceback(tmp_path):
    """As on a machine where torch is a CPU build and torchvision is the index's default."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    variables = environment()
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), variables["PYTHONPATH"]])
    line = [sys.executable, "-m", "sr_dist.doctor", f"--runs={tmp_path}"]
    done = subprocess.run(line, capture_output=True, text=True, env=variables, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [(name, text) for status, name, text in parse(done.stdout) if status == "BROKEN"]
    assert [name for name, _ in broken] == ["torchvision"]
    assert "does not fit torch" in broken[0][1]
    assert "operator torchvision::nms does not exist" in broken[0][1]
    assert "from one index" in broken[0][1]
    assert done.stdout.splitlines()[-1].startswith("something is BROKEN")
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("nccl", "gloo", "status", "text"),
    [
        (None, None, "ok", "interfaces lo, eth0, ib0; NCCL_SOCKET_IFNAME not set, GLOO_SOCKET_IFNAME not set"),
        ("ib", "eth0,ib0", "ok", "NCCL_SOCKET_IFNAME ib, GLOO_SOCKET_IFNAME eth0,ib0"),
        ("^lo,eth", None, "ok", "NCCL_SOCKET_IFNAME ^lo,eth"),
        ("=ib", None, "BROKEN", "NCCL_SOCKET_IFNAME==ib: no interface fits; there are lo, eth0, ib0"),
        (None, "ib", "BROKEN", "GLOO_SOCKET_IFNAME=ib: no interface fits"),
        ("^lo,eth,ib", None, "BROKEN", "no interface fits"),
    ],
)
def test_network_interfaces_that_do_not_exist_are_named(monkeypatch, nccl, gloo, status, text):
    """NCCL takes prefixes, gloo whole names."""
    monkeypatch.setattr(doctor.socket, "if_nameindex", lambda: list(enumerate(["lo", "eth0", "ib0"])))
    for name, value in (("NCCL_SOCKET_IFNAME", nccl), ("GLOO_SOCKET_IFNAME", gloo)):
        monkeypatch.setenv(name, value or "")
    finding = doctor.check_interfaces()
    assert finding.status == status and text in finding.text


@pytest.mark.slow
def test_two_ranks_measure_their_bandwidth_and_one_prints(tmp_path):
    out, _ = run(2, "sr_dist.doctor", f"--runs={tmp_path}")
    lines = [line for line in out.splitlines() if LINE.fullmatch(line)]
    (gloo,) = [LINE.fullmatch(line).groups() for line in lines if " gloo " in line]
    assert gloo[0] == "ok"
    bandwidth = re.fullmatch(r"2 ranks, (\d+\.\d+) GiB/s per rank when 64 MiB are summed", gloo[2])
    assert float(bandwidth.group(1)) > 0


def test_a_missing_package_is_broken_or_named_with_its_use(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.check_package("accelerate").status == "BROKEN"
    optional = doctor.check_package("onnxruntime", doctor.OPTIONAL["onnxruntime"])
    assert (optional.status, "sr_dist[export]" in optional.text) == ("missing", True)
    assert doctor.check_deepspeed().status == "missing"


def test_a_disk_that_cannot_be_written_is_broken():
    assert doctor.check_disk(Path("/proc/runs")).status == "BROKEN"


def test_weights_are_missing_or_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    (tmp_path / "vgg19-dcbb9e9d.pth").write_bytes(b"half a file")
    findings = {finding.text.split(";")[0]: finding for finding in doctor.check_weights()}
    missing = findings["vgg16-397923af.pth"]
    assert missing.status == "missing"
    assert missing.text.endswith(f"; python -m sr_dist.fetch vgg16 fetches it, or put it at {tmp_path / 'vgg16-397923af.pth'}")
    assert len(findings) == 6  # the networks behind losses and metrics, and no weights of generators
    (damaged,) = [finding for finding in findings.values() if "damaged" in finding.text]
    assert "vgg19" in damaged.text
    assert damaged.status == "missing"


def test_the_login_is_searched_where_wandb_searches(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert doctor.check_login().status == "missing"
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert doctor.check_login().status == "ok"
    assert "secret" not in doctor.check_login().text
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.lab.example:8080")
    assert doctor.check_login().status == "missing"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert doctor.check_login().status == "ok"
    assert "secret" not in doctor.check_login().text


@pytest.mark.parametrize(
    ("script", "status", "text"),
    [
        ("echo slurm 22.05.8", "ok", "slurm 22.05.8"),
        ("echo fatal: no configuration >&2; exit 1", "missing", "no configuration"),
        (None, "missing", "no sbatch"),
    ],
)
def test_slurm_reports_its_version_or_its_complaint(monkeypatch, tmp_path, script, status, text):
    if script:
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if script else str(tmp_path))
    finding = doctor.check_slurm()
    assert finding.status == status
    assert text in finding.text
