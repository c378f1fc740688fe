"""The identity of an evaluation, the names of its methods, and its folder."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest
import torch
from finished import finished
from safetensors.torch import save_file

from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.evaluation.classifiers.classifier_answers import NamedClassifier
from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.evaluation.partial_results import identity
from sr_dist.evaluation.protocol import protocol
from sr_dist.evaluation.report.folders import free_folder
from sr_dist.evaluation.run import (
    LOCK,
    ImageOptions,
    MetricOptions,
    ResultOptions,
    evaluate,
    exclusive,
    identity_facts,
    named_methods,
)
from sr_dist.models import trained
from sr_dist.models.generators.srcnn import SRCNN
from sr_dist.models.metadata import generator_metadata
from sr_dist.recipe.labels import Labels

CPU = torch.device("cpu")


def known_by(methods="ab", classifiers="kl"):
    """The identity of an evaluation of methods and classifiers of these names, each with a file of its own."""
    named = [NamedClassifier(name, Labels("class", ("x", "y")), None, {"sha256": f"of {name}"}) for name in classifiers]
    metrics = open_metrics(["psnr"], CPU, classifiers=named)
    sources = {name: {"sha256": name} for name in methods}
    return identity(identity_facts(ImageOptions("images"), protocol("matlab-y", 2), "content", metrics, sources))


@pytest.mark.parametrize("other", [{"methods": "ba"}, {"classifiers": "lk"}])
def test_another_order_is_another_evaluation(other):
    """The arrays of a killed evaluation are numbered, so another order would mix them up."""
    assert known_by() == known_by() != known_by(**other)


def test_a_file_called_hr_is_not_taken_for_the_ceiling(tmp_path):
    section = {"name": "srugan", "widths": [8, 8], "num_blocks": 1, "num_dense_blocks": 1, "reduction": 2}
    network = trained.build(PACKAGES["generator"], section, 2, "generator")
    save_file(network.state_dict(), tmp_path / "HR.safetensors", generator_metadata(section, 2))
    generator = trained.open_generator(str(tmp_path / "HR.safetensors"), "METHOD", None)
    methods, sources = named_methods([generator, generator], 2, CPU)
    assert list(methods)[-2:] == list(sources) == ["HR (2)", "HR (3)"]


def test_a_report_of_an_unknown_format_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"format": 2, "sr_dist": "9.0.0"}))
    with pytest.raises(
        UserError, match=r"^out: '.*report\.json' has format 2, written by sr_dist 9\.0\.0; this is sr_dist .* 1;"
    ):
        free_folder(tmp_path, {}, "1234")


HOLDER = """
import sys
from pathlib import Path
from sr_dist.core.files import lock_file
lock = lock_file(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_evaluations_do_not_write_into_one_folder(tmp_path):
    out = tmp_path / "out"
    with exclusive(out):
        (out / "report.json").write_text("{}")
    assert [path.name for path in out.iterdir()] == ["report.json"]
    words = [sys.executable, "-c", HOLDER, str(out / LOCK)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"^out: '.*out' is in use by process {holder.pid} on .*give another"),
            exclusive(out),
        ):
            pytest.fail("another evaluation writes there")
        assert (out / LOCK).is_file()
        holder.communicate("")
    with exclusive(out):
        assert (out / LOCK).read_text().startswith("process ")


def test_an_evaluation_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "out"):
        1 / 0  # noqa: B018 - whatever goes wrong
    assert not (tmp_path / "out").exists()


def test_sets_share_one_network_and_one_opening_of_the_classifiers(tmp_path, photographs, monkeypatch):
    """Two sets had two copies of each network on the device, beside those on the CPU, and opened every classifier twice."""
    section = {"name": "srcnn", "widths": [4, 2], "kernels": [3, 1, 3]}
    network = trained.build(PACKAGES["generator"], section, 2, "generator")
    save_file(network.state_dict(), tmp_path / "own.safetensors", generator_metadata(section, 2))
    del network
    animals = finished(tmp_path / "animals.safetensors", Labels("class", ("boats", "cats")), size=8)
    live, opened, forward, open_classifier = set[int](), [], SRCNN.forward, trained.open_classifier

    def watched(self, lr):
        live.add(sum(isinstance(one, SRCNN) for one in gc.get_objects()))
        return forward(self, lr)

    def counted(*words):
        opened.append(str(words[0].file))
        return open_classifier(*words)

    monkeypatch.setattr(SRCNN, "forward", watched)
    monkeypatch.setattr(trained, "open_classifier", counted)
    data = {name: ImageOptions(str(photographs(number))) for name, number in (("a", 1), ("b", 2))}
    metrics = MetricOptions("matlab-y", ("psnr",), classifiers=(animals,))
    evaluate([str(tmp_path / "own.safetensors")], data, metrics, None, ResultOptions(str(tmp_path / "out")))
    assert live == {1} and opened == [animals]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert all(list(part["attributes"]) == ["animals"] for part in report["sets"].values())
