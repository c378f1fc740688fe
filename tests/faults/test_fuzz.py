"""Random changes to files from elsewhere: a reader succeeds or raises UserError, and nothing else.

$SR_DIST_FUZZ sets the number of examples of each test; 5000 take a quarter of an hour.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import pytest
import yaml
from changed_trees import ODD_TEXT, changed, spliced
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.data.crops import DataSet, Sample
from sr_dist.data.format import HEADER, open_shards
from sr_dist.data.reader import ShardReader
from sr_dist.data.select import Portion, portion_rows
from sr_dist.models import trained
from sr_dist.models.generators import srcnn
from sr_dist.models.metadata import classifier_metadata, generator_metadata
from sr_dist.recipe import checks
from sr_dist.recipe.labels import Labels

EXAMPLES = settings(max_examples=int(os.environ.get("SR_DIST_FUZZ", "500")))


def use(folder: Path) -> None:
    """What a training does with a folder of shards."""
    shards = open_shards(str(folder))
    shards.check_sizes()
    shards.check_indexes()
    names = [*shards.manifest.classes[:1], *shards.manifest.attributes[:1]]
    for select in ({}, {"each_class": 1}, *({name: 1} for name in names)):
        portion_rows(shards, Portion(select, (0.5, 0.5)))
    reader = ShardReader(shards)
    data_set = DataSet(reader, 0, 10, Portion())
    for shard, entry in enumerate(shards.manifest.shards):
        for row in range(entry.samples):
            assert isinstance(reader.key(shard, row), str)
            assert -1 <= reader.label(shard, row) < len(shards.manifest.classes)
            assert len(reader.attributes(shard, row)) == len(shards.manifest.attributes)
            data_set.crops(Sample(0, row, shard, row), 3, 16, 2, 2**63 + 12345)


def short(problem: UserError) -> None:
    """A command prints it as one line, with spaces for line breaks."""
    assert 0 < len(str(problem)) < 2500, str(problem)


@pytest.fixture(scope="module")
def folder(photo_shards, tmp_path_factory) -> Path:
    return Path(shutil.copytree(photo_shards, tmp_path_factory.mktemp("fuzz") / "copy"))


@EXAMPLES
@given(st.data())
def test_any_manifest(photo_shards, folder, data):
    text = (photo_shards / "manifest.json").read_text()
    text = data.draw(st.one_of(changed(json.loads(text)).map(json.dumps), spliced(text)))
    (folder / "manifest.json").write_text(text, errors="surrogatepass")
    try:
        use(folder)
    except UserError as problem:
        short(problem)


NUMBERS = [0, 1, 2**8 - 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
CHANGES = st.tuples(st.integers(0, 2000), st.sampled_from([1, 4, 8]), st.sampled_from(NUMBERS))  # place, width, number


@EXAMPLES
@given(st.lists(CHANGES, min_size=1, max_size=3), st.booleans())
def test_any_index(photo_shards, folder, changes, cut):
    """The checksum is right, as an attacker would have it."""
    name = "photos-000001.idx"
    shutil.copy(photo_shards / "manifest.json", folder / "manifest.json")
    content = bytearray((photo_shards / name).read_bytes())
    for place, width, number in changes:
        place %= len(content) - width
        content[place : place + width] = (number % 256**width).to_bytes(width, "little")
    content = content[: -changes[0][0] % len(content)] if cut else content
    if len(content) > HEADER.size:
        struct.pack_into("<I", content, 20, zlib.crc32(content[HEADER.size :]))
    (folder / name).write_bytes(content)
    try:
        use(folder)
    except UserError as problem:
        short(problem)
    finally:
        shutil.copy(photo_shards / name, folder / name)


TENSORS = srcnn.build(srcnn.Config(widths=(4, 4)), 2).state_dict()
GENERATOR = generator_metadata({"name": "srcnn", "widths": [4, 4], "kernels": [9, 5, 5]}, 2)["sr_dist"]
RRDB = generator_metadata({"name": "rrdb", "width": 8, "num_blocks": 1, "growth": 4}, 4)["sr_dist"]
SRUGAN = generator_metadata({"name": "srugan", "widths": [4, 8], "num_blocks": 1, "num_dense_blocks": 1}, 2)["sr_dist"]
DIGITS = classifier_metadata({"name": "digit_cnn", "outputs": 2, "size": 28}, Labels("class", ("a", "b")), 28)["sr_dist"]


@EXAMPLES
@given(st.data())
def test_any_metadata_of_weights(folder, data):
    text = data.draw(st.sampled_from([GENERATOR, RRDB, SRUGAN, DIGITS]))
    text = data.draw(st.one_of(changed(json.loads(text)).map(json.dumps), spliced(text)))
    path = folder / "m.safetensors"
    save_file(TENSORS, path, {"sr_dist": text.encode(errors="replace").decode()})
    for open_network in (trained.open_generator, trained.open_classifier):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of layers without values
                open_network(str(path), "METHOD")
        except UserError as problem:
            short(problem)


@EXAMPLES
@given(st.data())
def test_any_recipe(folder, data):
    text = (Path(__file__).parents[1] / "version_0_1" / "runs" / "gan" / "recipe.yaml").read_text()
    whole = yaml.load(text, yaml.BaseLoader)
    text = data.draw(st.one_of(changed(whole).map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)), spliced(text)))
    path = folder / "recipe.yaml"
    path.write_text(text, errors="surrogatepass")
    try:
        recipe = checks.complete(checks.read_recipe(path, {}))
        path.write_text(config.text(recipe))
        assert config.text(checks.complete(checks.read_recipe(path, {}))) == config.text(recipe)
    except UserError as problem:
        short(problem)


KEYS = ["data.train", "generator", "name", "data.select", "a.b", "metrics", "objective.content"]


@EXAMPLES
@given(st.dictionaries(st.sampled_from(KEYS), st.text(max_size=40) | ODD_TEXT, max_size=2))
def test_any_option(write_recipe, options):
    try:
        checks.read_recipe(write_recipe(), options)
    except UserError as problem:
        short(problem)


def test_the_readers_take_what_was_not_changed(photo_shards, tmp_path):
    """Otherwise the tests above would show nothing."""
    use(photo_shards)
    save_file(TENSORS, tmp_path / "m.safetensors", {"sr_dist": GENERATOR})
    assert trained.open_generator(str(tmp_path / "m.safetensors")).scale == 2
