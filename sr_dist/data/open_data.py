"""Opens what the `data` section of a recipe names. The section itself opens nothing."""

from __future__ import annotations

from sr_dist.data.format import Shards
from sr_dist.data.remote.cache import Cache, cache_of
from sr_dist.data.remote.sources import open_shards
from sr_dist.data.unindexed import open_unindexed
from sr_dist.recipe.sections import Data


def cache_for(data: Data) -> Cache:
    """The cache for what may be fetched."""
    return cache_of(data.cache, data.cache_gb)


def open_training_sets(data: Data) -> list[Shards]:
    """The data sets of data.train, in order."""
    if data.reader == "webdataset":
        return [open_unindexed(data)]
    return [open_shards(source, "data.train", cache_for(data)) for source in data.sources]
