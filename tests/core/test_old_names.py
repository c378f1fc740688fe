"""Plug-in files that were written for version 0.1.0: the error names the new form of every old import."""

from __future__ import annotations

import re
import sys

import pytest

from sr_dist.core import plugins, version_0_1
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES

GENERATOR = """\
from typing import Annotated

from pydantic import Field
from torch import nn

from sr_dist.config import Settings
from sr_dist.errors import UserError
from sr_dist.models import initial, limits


class Config(Settings):
    width: Annotated[int, Field(gt=0)] = 8


def build(config, scale):
    if scale != 2:
        raise UserError(f"scale: 2, not {scale}")
    network = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    initial.kaiming(network.modules(), 0.1)
    return network


def refuses(config, *, zero_stage, cuda, ranks):
    return limits.batch_norm(cuda, ranks)
"""

DISCRIMINATOR = """\
from torch import nn

from sr_dist.batch import Verdict
from sr_dist.config import Settings, Whole
from sr_dist.models.discriminators.patch import stages


class Config(Settings):
    channels: int = 3


def build(config, scale):
    return Critic(config)


class Critic(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.stages = stages(config.channels, (8,), False)

    def forward(self, images):
        return Verdict(realness=self.stages(images).mean((1, 2, 3)), classes=None)
"""

CLASSIFIER = """\
from torch import nn

from sr_dist import plugins
from sr_dist.config import Absent, Names, Settings
from sr_dist.models.published import as_imagenet, load_published
from sr_dist.sections import Fraction, Recipe


class Config(Settings):
    outputs: int = 10
    dropout: Fraction = 0.5


def check(config, recipe: Recipe):
    pass


def build(config):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, config.outputs))
"""

OBJECTIVE = """\
from torch import nn

from sr_dist import ranks
from sr_dist.batch import Batch, Reading, Terms
from sr_dist.config import Settings
from sr_dist.losses.adversarial import FORMS, r1_penalty, says_fake, says_real
from sr_dist.losses.terms import ContentTerms
from sr_dist.recipe import refuse_classes
from sr_dist.sections import Recipe


class Config(Settings):
    content: dict[str, float] = {"l1": 1.0}


def check(config, recipe):
    refuse_classes(recipe)


class Objective(nn.Module):
    phases = ("generator", "discriminator")
    validation = "restoration"

    def __init__(self, config):
        super().__init__()
        self.content = ContentTerms(config.content)

    def generator_loss(self, discriminator, batch, sr):
        ranks.total(sr.sum())
        return {**self.content(sr, batch), "adversarial": FORMS["hinge"].fool(discriminator(sr).realness)}
"""

CONTENT = """\
from torch import nn

from sr_dist import pretrained
from sr_dist.batch import Batch, Reading
from sr_dist.config import Settings
from sr_dist.labels import CLASS, check_fits
from sr_dist.losses.classes import accuracy, cross_entropy, targets
from sr_dist.models import weights
from sr_dist.models.frozen import FrozenClassifier
from sr_dist.pretrained import MissingWeights


class Config(Settings):
    run: str = ""


def build(config):
    return nn.Identity()


def check_runs(config, recipe):
    check_fits(weights.open_restorer(config.run), recipe.data.opened()[0], "objective")
"""

DEGRADATION = """\
from sr_dist.config import Settings
from sr_dist.data.draws import Draws
from sr_dist.data.jpeg import jpeg
from sr_dist.resize import imresize, rounded


class Config(Settings):
    quality: int = 60


def build(config, scale):
    return lambda hr, seeds: rounded(imresize(hr, 1 / scale))
"""

IMAGE_METRIC = """\
from sr_dist.eval.protocol import BEST_PSNR, Protocol, kept, luma, pictures

BETTER = {"mae": "lower"}


def per_image(sr, hr, protocol, grey):
    return {"mae": (pictures(sr, protocol) - pictures(hr, protocol)).abs().mean((1, 2, 3)).tolist()}
"""

SET_METRIC = """\
import sr_dist.eval.intervals as intervals
from sr_dist.eval.features import Estimate, Features, dealt, distances, halves, spread
from sr_dist.eval.frechet import Array
from sr_dist.eval.metrics import fid

BETTER = {"half_fid": "lower"}
NEEDS = fid.NEEDS
VIEW = "whole"


def of_sets(sr, hr, labels):
    return Estimate(distances([(sr, hr)])[0], 1)


def floor(hr, labels):
    return distances([halves(hr)])[0]
"""

SOURCE = """\
from shards.items import Item, Listing, fit, image_names
from shards.pixels import Rejected
from shards.writer import read_file
from sr_dist.config import Absent, Settings
from sr_dist.errors import UserError


class Config(Settings):
    part: str = "train"


def listing(root, config):
    return Listing([Item(fit(name), name) for name in image_names(root)])
"""

OPTIMIZER = """\
import torch

from sr_dist.engine.optimizers import build_optimizer, slots
from sr_dist.sections import Optimizer


def build(parameters, settings, fused):
    return torch.optim.RMSprop(parameters, settings.learning_rate)


def states_per_weight(settings):
    return 1
"""

REFUSES = "'refuses(config, *, zero_stage, cuda, ranks)' is now 'refuses(config, launch)'"
CHECK_RUNS = "'check_runs(config, recipe)' is now 'check_labels(config, available)'"
SETTINGS = "from sr_dist.core.config import Settings"

FILES = {  # kind -> file of 0.1, line -> the new import, further changes
    "generator": (
        GENERATOR,
        {6: SETTINGS, 7: "from sr_dist.core.errors import UserError", 8: "from sr_dist.models import initialization, limits"},
        [f"line 23: {REFUSES}"],
    ),
    "discriminator": (
        DISCRIMINATOR,
        {3: "from sr_dist.core.batch import DiscriminatorOutput", 4: "from sr_dist.core.config import Settings, Whole"},
        ["'.realness' is now '.logits'"],
    ),
    "classifier": (
        CLASSIFIER,
        {
            3: "from sr_dist.core import plugins",
            4: "from sr_dist.core.config import Absent, Names, Settings",
            5: "from sr_dist.models.imagenet import as_imagenet, load_published",
            6: "from sr_dist.core.config import Fraction' and 'from sr_dist.recipe.sections import Recipe",
        },
        [],
    ),
    "objective": (
        OBJECTIVE,
        {
            3: "from sr_dist.core import ranks",
            4: "from sr_dist.core.batch import Batch, Reading, Terms",
            5: SETTINGS,
            6: "from sr_dist.losses.adversarial import FORMS, bce_fake, bce_real, r1_penalty",
            7: "from sr_dist.losses.content_terms import ContentTerms",
            8: "from sr_dist.recipe.checks import refuse_classes",
            9: "from sr_dist.recipe.sections import Recipe",
        },
        ["line 29: 'ranks.total' is now 'sr_dist.core.ranks.all_reduce_sum'", "'.realness' is now '.logits'", "'.fool' is now"],
    ),
    "content": (
        CONTENT,
        {
            3: "from sr_dist.models import pretrained",
            4: "from sr_dist.core.batch import Batch, Reading",
            5: SETTINGS,
            6: "from sr_dist.recipe.labels import CLASS, check_fits",
            7: "from sr_dist.losses.classification import accuracy, cross_entropy, targets",
            8: "from sr_dist.models import trained",
            9: "from sr_dist.models.frozen_classifier import FrozenClassifier",
            10: "from sr_dist.models.pretrained import MissingWeights",
        },
        [f"line 21: {CHECK_RUNS}", "line 22: 'weights.open_restorer' is now 'sr_dist.models.trained.open_generator'"],
    ),
    "degradation": (
        DEGRADATION,
        {
            1: SETTINGS,
            2: "from sr_dist.data.keyed_random import Draws",
            3: "from sr_dist.data.jpeg_compression import jpeg",
            4: "from sr_dist.core.resize import imresize, rounded",
        },
        [],
    ),
    "metric": (
        IMAGE_METRIC,
        {1: "from sr_dist.evaluation.protocol import BEST_PSNR, Protocol, as_stored, inside_border, luma"},
        [],
    ),
    "metric of sets": (
        SET_METRIC,
        {
            1: "import sr_dist.evaluation.intervals as intervals",
            2: "from sr_dist.evaluation.distances.features import "
            "Estimate, Features, frechet_distances, halves, random_groups, run_on_ranks",
            3: "from sr_dist.evaluation.distances.frechet import Array",
            4: "from sr_dist.evaluation.metrics import fid",
        },
        [],
    ),
    "source": (
        SOURCE,
        {
            1: "from shards.items import Item, Listing, clean_key, image_names",
            3: "from shards.source import read_file",
            4: "from sr_dist.core.config import Absent, Settings",
            5: "from sr_dist.core.errors import UserError",
        },
        [],
    ),
    "optimizer": (
        OPTIMIZER,
        {
            3: "from sr_dist.training.optimizer_state import build_optimizer, optimizer_state",
            4: "from sr_dist.recipe.sections import Optimizer",
        },
        [],
    ),
}

MODULES = re.findall(r"\S+", """
shards.build shards.index shards.items shards.merge shards.pixels shards.plan shards.show shards.verify shards.work
shards.writer sr_dist.batch sr_dist.bench sr_dist.children sr_dist.commands sr_dist.config sr_dist.dashboard sr_dist.data
sr_dist.data.ahead sr_dist.data.augment sr_dist.data.bands sr_dist.data.cache sr_dist.data.crops sr_dist.data.degradations
sr_dist.data.degradations.bicubic sr_dist.data.degradations.gaussian sr_dist.data.degradations.identity
sr_dist.data.degradations.real sr_dist.data.draws sr_dist.data.folder_images sr_dist.data.format sr_dist.data.jpeg
sr_dist.data.ledger sr_dist.data.order sr_dist.data.outlook sr_dist.data.pace sr_dist.data.reader sr_dist.data.remote
sr_dist.data.ring sr_dist.data.select sr_dist.data.stream sr_dist.data.validation sr_dist.doctor sr_dist.door sr_dist.engine
sr_dist.engine.backends sr_dist.engine.backends.ddp sr_dist.engine.backends.deepspeed sr_dist.engine.bench
sr_dist.engine.checkpoint sr_dist.engine.classification sr_dist.engine.dashboard sr_dist.engine.doctor sr_dist.engine.ema
sr_dist.engine.evaluate sr_dist.engine.extractor sr_dist.engine.flops sr_dist.engine.log sr_dist.engine.loop
sr_dist.engine.memory sr_dist.engine.mirror sr_dist.engine.optimizers sr_dist.engine.picture_files sr_dist.engine.plot
sr_dist.engine.restore sr_dist.engine.run sr_dist.engine.run_folder sr_dist.engine.samples sr_dist.engine.schedule
sr_dist.engine.setup sr_dist.engine.signals sr_dist.engine.terminal sr_dist.engine.train sr_dist.engine.upscale
sr_dist.engine.watchdog sr_dist.errors sr_dist.eval sr_dist.eval.attribute_tables sr_dist.eval.attributes
sr_dist.eval.baselines sr_dist.eval.bench sr_dist.eval.chosen sr_dist.eval.classification sr_dist.eval.classification_report
sr_dist.eval.drawings sr_dist.eval.extractor sr_dist.eval.features sr_dist.eval.frechet sr_dist.eval.intervals
sr_dist.eval.metrics sr_dist.eval.metrics.class_fid sr_dist.eval.metrics.fid sr_dist.eval.metrics.kid
sr_dist.eval.metrics.lpips sr_dist.eval.metrics.patch_fid sr_dist.eval.metrics.psnr sr_dist.eval.metrics.ssim
sr_dist.eval.opinions sr_dist.eval.page sr_dist.eval.parts sr_dist.eval.pictures sr_dist.eval.protocol sr_dist.eval.references
sr_dist.eval.report sr_dist.eval.run sr_dist.eval.sets sr_dist.evaluate sr_dist.export sr_dist.files sr_dist.interpolate
sr_dist.labels sr_dist.losses sr_dist.losses.adversarial sr_dist.losses.classes sr_dist.losses.content
sr_dist.losses.content.charbonnier sr_dist.losses.content.classifier sr_dist.losses.content.l1 sr_dist.losses.content.lpips
sr_dist.losses.content.mse sr_dist.losses.content.tv sr_dist.losses.content.vgg sr_dist.losses.terms sr_dist.models
sr_dist.models.classifiers sr_dist.models.classifiers.digit_cnn sr_dist.models.classifiers.resnet18
sr_dist.models.classifiers.torchvision sr_dist.models.containers sr_dist.models.discriminators
sr_dist.models.discriminators.acgan sr_dist.models.discriminators.patch sr_dist.models.discriminators.srgan_vgg
sr_dist.models.discriminators.unet_sn sr_dist.models.export sr_dist.models.frozen sr_dist.models.generators
sr_dist.models.generators.msrresnet sr_dist.models.generators.rrdb sr_dist.models.generators.srcnn
sr_dist.models.generators.srresnet sr_dist.models.generators.srugan sr_dist.models.initial sr_dist.models.interpolate
sr_dist.models.layouts sr_dist.models.limits sr_dist.models.published sr_dist.models.weights sr_dist.objectives
sr_dist.objectives.classify sr_dist.objectives.esrgan sr_dist.objectives.pixel sr_dist.objectives.srgan
sr_dist.objectives.srugan sr_dist.plot sr_dist.plugins sr_dist.pretrained sr_dist.ranks sr_dist.recipe sr_dist.resize
sr_dist.resumption sr_dist.sections sr_dist.train sr_dist.upscale
""")  # fmt: skip


RENAMES = {
    "Verdict(realness=": "DiscriminatorOutput(logits=",
    "classes=None)": "class_logits=None)",
    "initial.kaiming": "initialization.kaiming",
    "refuses(config, *, zero_stage, cuda, ranks)": "refuses(config, launch)",
    "batch_norm(cuda, ranks)": "batch_norm(launch)",
    "check_runs(config, recipe)": "check_labels(config, available)",
    "weights.open_restorer": "trained.open_generator",
    "recipe.data.opened()[0]": "available",
    "ranks.total": "ranks.all_reduce_sum",
    ".realness": ".logits",
    ".fool": ".generator",
}


def refusal(kind: str, name: str) -> str:
    with pytest.raises(UserError) as caught:
        plugins.locate(PACKAGES[kind.split()[0]], name, f"{kind}.name")
    return str(caught.value)


@pytest.mark.parametrize("kind", FILES)
def test_every_old_import_is_answered_with_the_new_one(own_part, kind):
    text, imports, more = FILES[kind]
    name = own_part("mine_old.part", text)
    message = refusal(kind, name)
    assert re.match(rf"{kind}\.name: '.*mine_old/part\.py' was written for sr_dist 0\.1; line \d+ becomes '", message)
    assert "\n" not in message
    entries = message.split("; ")
    for line, new in imports.items():
        assert f"line {line} becomes '{new}'" in entries[1:]
    for change in more:
        assert any(entry.startswith(change) for entry in entries)
    assert len([entry for entry in entries if re.match(r"line \d+ becomes ", entry)]) == len(imports)
    assert name not in sys.modules  # the file was read, not imported


@pytest.mark.parametrize("kind", FILES)
def test_a_file_with_the_new_imports_loads(own_part, kind):
    """The imports of the message stand for the old lines; renamed functions are renamed where they are used."""
    text, imports, _ = FILES[kind]
    lines = text.splitlines()
    for line, new in imports.items():
        lines[line - 1] = new.replace("' and '", "; ")
    new_text = "\n".join(lines)
    for old, new in RENAMES.items():
        new_text = new_text.replace(old, new)
    name = own_part("mine_new.part", new_text)
    module_name, path = plugins.locate(PACKAGES[kind.split()[0]], name, f"{kind}.name")
    module = plugins.import_part(module_name, path, f"{kind}.name")
    if kind in ("classifier", "content"):
        module.build(module.Config())
    if kind in ("generator", "discriminator", "degradation"):
        module.build(module.Config(), 2)
    if kind == "objective":
        module.Objective(module.Config())


def test_a_file_that_a_plug_in_imports_is_examined_too(own_part):
    own_part("mine_old.shared", DEGRADATION)
    name = own_part("mine_old.part", "from mine_old.shared import build\n")
    module, path = plugins.locate(PACKAGES["degradation"], name, "data.degradation.name")
    with pytest.raises(
        UserError, match=r"^data\.degradation\.name: '.*mine_old/shared\.py' was written for sr_dist 0\.1; line 1 becomes "
    ):
        plugins.import_part(module, path, "data.degradation.name")


def test_a_missing_library_keeps_its_traceback(own_part):
    name = own_part("mine_new.part", "import no_such_library\n")
    module, path = plugins.locate(PACKAGES["metric"], name, "metrics")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        plugins.import_part(module, path, "metrics")


def test_a_name_that_is_gone_is_named(own_part):
    name = own_part("mine_old.part", "from sr_dist.commands import Absent, BASELINES, asked\nimport sr_dist.data.bands\n")
    assert refusal("metric", name).split("; ")[1:] == [
        "line 1 becomes 'from sr_dist.evaluation.presets import BASELINES'",
        "line 1: 'sr_dist.commands.Absent' does not exist any more",
        "line 1: 'sr_dist.commands.asked' does not exist any more",
        "line 2 becomes 'import sr_dist.data.jpeg_rows'",
    ]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("import sr_dist.config as c\n", "line 1 becomes 'import sr_dist.core.config as c'"),
        ("from sr_dist.config import *\n", "line 1 becomes 'from sr_dist.core.config import *'"),
        ("import sr_dist.batch\nout = sr_dist.batch.Verdict\n", version_0_1.VERDICT),
    ],
)
def test_other_forms_of_imports_are_answered_too(own_part, text, change):
    assert change in refusal("metric", own_part("mine_old.part", text)).split("; ")


def test_a_verdict_of_the_users_own_is_no_sign_of_0_1(own_part):
    """The name alone is anybody's."""
    text = "from sr_dist.core.config import Settings\n\n\nclass Verdict:\n    pass\n\n\nout = [Verdict]\n"
    assert plugins.locate(PACKAGES["metric"], own_part("mine_own.part", text), "metrics")[0] == "mine_own.part"


def test_a_file_of_0_1_in_the_package_is_answered_too(monkeypatch, tmp_path):
    package = tmp_path / "old_metrics"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "old.py").write_text("from sr_dist.config import Settings\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"^metrics: '.*old\.py' was written for sr_dist 0\.1; line 1 becomes 'from sr_dist\.core"
    ):
        plugins.locate("old_metrics", "old", "metrics")


def test_a_mistyped_name_of_ours_is_one_line(own_part):
    name = own_part("mine_new.part", "from sr_dist.core.config import Setings\n")
    module, path = plugins.locate(PACKAGES["metric"], name, "metrics")
    with pytest.raises(UserError, match=r"^metrics: '.*part\.py' cannot be imported: cannot import name 'Setings'"):
        plugins.import_part(module, path, "metrics")


@pytest.mark.parametrize("text", ["from sr_dist.core.confg import Settings\n", "import sr_dist.core.confg\n"])
def test_a_mistyped_module_is_not_taken_for_one_of_0_1(own_part, text):
    message = refusal("metric", own_part("mine_new.part", text))
    assert message.endswith(", line 1: no module 'sr_dist.core.confg'; did you mean 'sr_dist.core.config'?")


@pytest.mark.parametrize("kind", [kind for kind in PACKAGES if kind != "source"])
def test_no_file_of_the_package_looks_like_one_of_0_1(kind):
    for name in plugins.names(PACKAGES[kind]):
        plugins.locate(PACKAGES[kind], f"{PACKAGES[kind]}.{name}", kind)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_of_0_1_has_a_present_one(module):
    assert version_0_1.exists(version_0_1.MOVED.get(module, module))


@pytest.mark.parametrize("old", version_0_1.MOVED)
def test_every_new_place_exists(old):
    new = version_0_1.MOVED[old]
    assert version_0_1.exists(new), new
    assert new != old
