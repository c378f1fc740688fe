"""Opens what the `data` section of a recipe names. The section itself opens nothing."""

from __future__ import annotations

from sr_dist.data.format import Shards
from sr_dist.data.remote.cache import Cache, cache_of
from sr_dist.data.remote.sources import DEFAULT_GB, is_remote, open_shards
from sr_dist.recipe.sections import Data


def cache_for(data: Data) -> Cache | None:
    """The cache for fetched shards, or None where nothing is fetched."""
    remote = [source for source in (*data.sources, data.validation or "") if is_remote(source)]
    stated = data.cache or data.cache_gb != DEFAULT_GB  # a local folder, too, may say that its tars are elsewhere
    return cache_of(data.cache, data.cache_gb) if remote or stated else None


def open_training_sets(data: Data) -> list[Shards]:
    """The data sets of data.train, in order."""
    return [open_shards(source, "data.train", cache_for(data)) for source in data.sources]
