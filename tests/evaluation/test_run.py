"""What an evaluation is known by, and how its methods are called."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from sr_dist.commands import Evaluation

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.evaluation.classifiers.classifier_answers import Judge
from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.evaluation.partial_results import identity
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.run import LOCK, alone, everyone, everything, vacant
from sr_dist.models import trained
from sr_dist.recipe.labels import Labels

CPU = torch.device("cpu")


def known_by(methods="ab", classifiers="kl"):
    """The identity of an evaluation of methods and classifiers of these names; their files are alike in nothing."""
    judges = [Judge(name, Labels("class", ("x", "y")), None, {"sha256": f"of {name}"}) for name in classifiers]
    asked = Evaluation(methods=tuple(methods), data="images")
    metrics = open_metrics(["psnr"], CPU, judges=judges)
    return identity(everything(asked, protocol("matlab-y", 2), "content", metrics, {name: {"sha256": name} for name in methods}))


@pytest.mark.parametrize("other", [{"methods": "ba"}, {"classifiers": "lk"}])
def test_another_order_is_another_evaluation(other):
    """Arrays of a killed evaluation lie under numbers: continued in another order, they would be taken for each other's."""
    assert known_by() == known_by() != known_by(**other)


def test_a_file_called_hr_is_not_taken_for_the_ceiling(tmp_path):
    section = {"name": "srugan", "widths": [8, 8], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2}
    network = trained.build(PACKAGES["generator"], section, 2, "generator")
    save_file(network.state_dict(), tmp_path / "HR.safetensors", trained.metadata(section, 2))
    restorer = trained.open_generator(str(tmp_path / "HR.safetensors"), "METHOD", None)
    methods, sources = everyone([restorer, restorer], 2, CPU)
    assert list(methods)[-2:] == list(sources) == ["HR (2)", "HR (3)"]


def test_a_report_on_other_images_is_not_written_over(tmp_path):
    def report(place, **asked):
        """Writes what there is to see of a report where this evaluation would."""
        found = vacant(place, Evaluation(methods=("bicubic",), **asked))
        found.mkdir(exist_ok=True)
        portion = {"select": {}, "split": [0.5, 0.5], "part": "validation"} if "split" in asked else None
        about = {"data": asked["data"], "protocol": {"name": asked.get("protocol", "matlab-y")}, "portion": portion}
        (found / "report.json").write_text(json.dumps(about))
        return found.name

    place = tmp_path / "0000100"
    assert [report(place, data="set5"), report(place, data="set5")] == ["0000100", "0000100"]
    assert [report(place, data="div2k"), report(place, data="set5", protocol="basicsr")] == ["0000100-2", "0000100-3"]
    assert report(place, data="set5", split="0.5,0.5", part="validation") == "0000100-4"
    assert [report(place, data="div2k"), report(place, data="set5")] == ["0000100-2", "0000100"]
    (place / "report.json").write_text("{")  # nobody's report
    assert vacant(place, Evaluation(methods=("bicubic",), data="x")) == place


HOLDER = """
import sys
from pathlib import Path
from sr_dist.core.files import claimed
lock = claimed(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_evaluations_do_not_write_into_one_folder(tmp_path):
    out = tmp_path / "out"
    with alone(out):
        (out / "report.json").write_text("{}")
    assert [path.name for path in out.iterdir()] == ["report.json"]
    words = [sys.executable, "-c", HOLDER, str(out / LOCK)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"^out: '.*out' is in use by process {holder.pid} on .*give another"), alone(out):
            pytest.fail("another evaluation writes there")
        assert (out / LOCK).is_file()
        holder.communicate("")
    with alone(out):
        assert (out / LOCK).read_text().startswith("process ")


def test_an_evaluation_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "out"):
        1 / 0  # noqa: B018 - whatever goes wrong
    assert not (tmp_path / "out").exists()
