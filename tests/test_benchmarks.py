"""The script that runs all CPU figures."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def all_cpu(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "benchmarks/all_cpu.py", *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("all_cpu", ROOT / "benchmarks" / "all_cpu.py")
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["all_cpu"] = loaded  # its dataclasses look for it
    spec.loader.exec_module(loaded)
    yield loaded
    del sys.modules["all_cpu"]


def test_a_dry_run_has_every_benchmark_and_writes_nothing(tmp_path):
    done = all_cpu("--dry_run", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"all_cpu.py"}
    for words in (*(f"python benchmarks/{name}" for name in scripts), "bench data", "bench step", "bench eval"):
        assert words in done.stdout, words
    assert not list(tmp_path.iterdir())


def test_mistakes_and_earlier_results_are_refused(tmp_path):
    (tmp_path / "results.md").write_text("the first one's")
    for words, problem in {
        ("--parts=data,speed",): "unknown part 'speed'; choose from data, peers",
        ("--minutes=0",): "0.0 is not more than 0",
        (f"--out={tmp_path}",): "has the results of an earlier run; name another folder",
    }.items():
        done = all_cpu(*words)
        assert done.returncode == 2 and problem in done.stderr
    assert (tmp_path / "results.md").read_text() == "the first one's"


@pytest.mark.parametrize("name", ["evaluation", "fid_stages"])
def test_a_benchmark_of_photographs_says_what_it_does_and_refuses_folders_without_any(name, tmp_path):
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, f"benchmarks/{name}.py", *map(str, words)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100)

    described = run("--help")
    assert described.returncode == 0 and f"python benchmarks/{name}.py" in described.stdout.partition("\n\n")[2]
    for folder, problem in ((tmp_path / "none", f"no folder '{tmp_path}/none'"), (tmp_path, str(tmp_path))):
        done = run(folder)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and ": error: argument " in last and problem in last and not done.stdout


def test_a_command_that_fails_or_hangs_is_recorded_and_the_next_part_runs(module, tmp_path):
    (tmp_path / "logs").mkdir()
    hang = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    fails, late = [["-c", "print('before'); raise SystemExit(7)"]], [["-c", hang], ["-c", "print('never')"]]
    good = [["-c", r"print('2026-11-29 00:00:00 a line of a log\n| a |\n|---|\n| 1 |')"]]
    results = tmp_path / "results.md"
    for title, lines, seconds, failures in (("Fails", fails, 60.0, 1), ("Hangs", late, 1.0, 2), ("A table", good, 60.0, 0)):
        part = module.Part(title, 1, lambda *_: [])
        assert module.measure(part, lines, seconds, tmp_path, results) == failures
    text = results.read_text()
    assert "**FAILED with exit code 7**\n\n```\nbefore\n```" in text
    assert "**STOPPED after " in text
    assert "**not run: the time of this part is over**" in text
    assert text.endswith(" s\n\n| a |\n|---|\n| 1 |\n\n")  # without the line of a log


@pytest.mark.slow
def test_all_parts_run_in_small(tmp_path):
    """Those that take less than 15 s each on a free machine."""
    parts = ("data", "opening", "streaming", "distance")
    done = all_cpu("--small", f"--out={tmp_path / 'out'}", "--minutes=9", f"--parts={','.join(parts)}")
    text = (tmp_path / "out" / "results.md").read_text()
    assert done.returncode == 0 and "(0 failed)" in done.stdout, done.stdout + done.stderr + text
    assert text.startswith("# CPU figures of 2") and "Machine: " in text and "; commit " in text
    assert text.count("\n## ") == len(parts) and str(tmp_path) not in text
    for words in ("times data.reader=webdataset", "| ours | first rank, one worker |", "| 1.28 M | 4096 |", "times as fast"):
        assert words in text, words
