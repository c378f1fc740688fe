"""Files that a recipe needs before it starts: published weights, trained classifiers, an extractor."""

from __future__ import annotations

from pathlib import Path

from sr_dist.core.errors import UserError
from sr_dist.core.run_layout import is_run
from sr_dist.data.open_data import open_training_sets
from sr_dist.models import pretrained
from sr_dist.recipe import checks
from sr_dist.recipe.columns import compares_sets, metric_facts
from sr_dist.recipe.sections import Recipe


def find_weights(recipe: Recipe) -> None:
    """Published files exist here, or are fetched where that is allowed; trained classifiers fit the shards."""
    for module, options, key in (*checks.part_modules(recipe), *checks.content_terms(recipe)):
        for file in module.files(options) if hasattr(module, "files") else ():
            pretrained.find(file, key, download=recipe.allow_download)
        if hasattr(module, "check_labels"):
            module.check_labels(options, open_training_sets(recipe.data)[0].label_names)
    metrics = recipe.metrics if recipe.data.validation or recipe.data.split else ()
    if recipe.extractor and metrics:
        _check_extractor(Path(recipe.extractor))
    needing = [name for name in metrics if not (recipe.extractor and compares_sets(name))]
    for column, file in metric_facts(needing, "NEEDS").items():
        pretrained.find(file, f"metrics: {column}", download=recipe.allow_download)


def _check_extractor(path: Path) -> None:
    if not path.exists():
        raise UserError(f"extractor: nothing is at '{path}'")
    if path.is_dir() and not is_run(path):
        raise UserError(f"extractor: '{path}' is a folder, but no run of a classifier")
