"""The metrics of an evaluation. A metric is one file of `metrics/`: an `ImageMetric` or a `SetMetric`.

A file may also state

    NEEDS         column -> published weights file, a literal
    DIGITS        column -> decimals in reports; 4 without it
    RANGE         column -> (lowest, highest value); None where there is no bound. For the report
    NO_REFERENCE  True where `per_image` does not look at HR: such metrics also score without HR, and get SR in its place
    PERCEPTUAL    whether reports plot its columns against PSNR; the default is True for a SetMetric, else False
    conditions(columns) -> dict    what its numbers depend on, for the report's "protocol"
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sr_dist.core import plugins, ranks
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.evaluation.classifiers.classifier_answers import NamedClassifier
from sr_dist.evaluation.distances.extractor import INCEPTION, Extractor, inception
from sr_dist.evaluation.distances.features import Estimate, Features
from sr_dist.evaluation.distances.frechet import Array
from sr_dist.evaluation.presets import PYIQA
from sr_dist.evaluation.protocol import Protocol
from sr_dist.models import pretrained
from sr_dist.models.verified import digest
from sr_dist.recipe.columns import foreign_column

DEFAULT_DIGITS = 4


@typing.runtime_checkable
class ImageMetric(typing.Protocol):
    """A value per image."""

    BETTER: dict[str, str]  # column -> "higher" or "lower"; a literal, because it is read without importing the file

    def per_image(self, sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
        """sr, hr: (B, 3, H, W) float in [0, 1], not clipped. Returns column -> B values; nan where there is none.

        `grey`: the images are stored as grey, so that they are their own Y. Each rank calls it for its own batches.
        """


@typing.runtime_checkable
class SetMetric(typing.Protocol):
    """A value per set of images: a distance between the features of SR and of HR. All ranks call both functions."""

    BETTER: dict[str, str]  # its one column -> "higher" or "lower"; a literal
    VIEW: str  # "whole": features of images resized to 299 x 299; "patches": features of patches of 299 x 299; a literal

    def of_sets(self, sr: Features, hr: Features, labels: Array) -> Estimate:
        """`sr` and `hr` have the same images in the same order. labels: (images,), the class of each image or -1.

        Raises `Unmeasurable` if the images have no such distance.
        """

    def floor(self, hr: Features, labels: Array) -> float:
        """The value of one half of HR against the other."""


Metric = ImageMetric | SetMetric

if typing.TYPE_CHECKING:  # mypy compares our own files with the protocols
    from sr_dist.evaluation.metrics import class_fid, fid, kid, lpips, patch_fid, precision, psnr, recall, ssim

    _IMAGE_METRICS: tuple[ImageMetric, ...] = (lpips, psnr, ssim)
    _SET_METRICS: tuple[SetMetric, ...] = (class_fid, fid, kid, patch_fid, precision, recall)


@dataclass(frozen=True)
class Metrics:
    modules: tuple[Metric, ...]
    extractor: Extractor | None = None
    foreign: bool = False  # the extractor is not the FID Inception
    missing: dict[str, str] = field(default_factory=dict)  # column that cannot be computed -> why
    classifiers: tuple[NamedClassifier, ...] = ()

    @property
    def better(self) -> dict[str, str]:
        """Every column -> "higher" or "lower"."""
        columns = {self.column(name, metric): better for metric in self.modules for name, better in metric.BETTER.items()}
        return columns | dict.fromkeys((column for one in self.classifiers for column in one.columns), "higher")

    @property
    def digits(self) -> dict[str, int]:
        """Column -> decimals in reports, where a metric states them."""
        return {self.column(name, metric): n for metric in self.modules for name, n in getattr(metric, "DIGITS", {}).items()}

    @property
    def perceptual(self) -> list[str]:
        """The columns that reports plot against PSNR."""
        metrics = [one for one in self.modules if getattr(one, "PERCEPTUAL", isinstance(one, SetMetric))]
        return [self.column(name, metric) for metric in metrics for name in metric.BETTER]

    @property
    def per_image(self) -> list[ImageMetric]:
        return [metric for metric in self.modules if isinstance(metric, ImageMetric)]

    @property
    def views(self) -> list[str]:
        """The kinds of features that are needed."""
        return sorted({metric.VIEW for metric in self.modules if isinstance(metric, SetMetric)}) if self.extractor else []

    @property
    def extractor_key(self) -> str:
        """The name of the extractor's conditions in reports."""
        return f"fd_{self.extractor.name}" if self.foreign and self.extractor else "fid"

    def of_sets(self, view: str) -> dict[str, SetMetric]:
        """Column -> metric, of those that compare features of this kind."""
        metrics = [metric for metric in self.modules if isinstance(metric, SetMetric) and view == metric.VIEW]
        return {self.column(name, metric): metric for metric in metrics for name in metric.BETTER}

    def conditions(self, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Metric -> what its numbers depend on, of the metrics that have one of these columns."""
        result: dict[str, dict[str, Any]] = {}
        for metric in self.modules:
            own = [column for column in metric.BETTER if column in columns]
            if own and hasattr(metric, "conditions"):
                result[file_name(metric)] = metric.conditions(own)
        return result

    def facts(self) -> dict[str, dict[str, Any]]:
        """Column -> better, range, weights_sha256, for reports."""
        rows = {
            self.column(name, metric): {
                "better": better,
                "range": list(getattr(metric, "RANGE", {}).get(name, (None, None))),
                "weights_sha256": self._weights(name, metric),
            }
            for metric in self.modules for name, better in metric.BETTER.items()
        }  # fmt: skip
        for one in self.classifiers:
            rows |= {
                column: {"better": "higher", "range": [0, 1], "weights_sha256": one.about["sha256"]} for column in one.columns
            }
        return rows

    def _weights(self, name: str, metric: Metric) -> str | None:
        """The sha256 of the weights behind a column, where it has any and they are not missing."""
        if self.column(name, metric) in self.missing:
            return None
        if isinstance(metric, SetMetric):
            return self.extractor.weights_sha256 if self.extractor else None
        file = getattr(metric, "NEEDS", {}).get(name)
        return digest(pretrained.find(file, name)) if file else getattr(metric, "weights_sha256", None)

    def measured_by(self, column: str) -> str | None:
        """The sha256 of the weights whose features a column compares. Values of other weights are not comparable."""
        of_sets = any(column in self.of_sets(view) for view in self.views)
        return self.extractor.weights_sha256 if self.extractor and of_sets else None

    def column(self, name: str, metric: Metric) -> str:
        """A distance between features of another network than the FID Inception has another name."""
        if not (self.foreign and self.extractor and isinstance(metric, SetMetric)):
            return name
        return foreign_column(name, self.extractor.name)


def needs_reference(metric: Metric) -> bool:
    return isinstance(metric, SetMetric) or not getattr(metric, "NO_REFERENCE", False)


def file_name(metric: Metric) -> str:
    name = str(getattr(metric, "__name__", ""))
    return name if name.startswith(PYIQA) else name.rpartition(".")[2]


def import_metrics(names: Sequence[str], download: bool = False) -> tuple[Metric, ...]:
    """All ranks must call."""
    metrics = tuple(_imported(name, download) for name in dict.fromkeys(names))
    owners: dict[str, str] = {}
    for column, name in ((column, file_name(metric)) for metric in metrics for column in metric.BETTER):
        if column in owners or column in ("image", "method"):  # of the rows
            taken = f"that of '{owners[column]}', too" if column in owners else "taken"
            raise UserError(f"metrics: the column '{column}' of '{name}' is {taken}; rename it in its BETTER")
        owners[column] = name
    return metrics


def _imported(name: str, download: bool) -> Metric:
    if name.startswith(PYIQA):
        from sr_dist.evaluation.pyiqa_metrics import PyIQAMetric  # its package takes seconds

        return PyIQAMetric(name, download)
    module, path = plugins.locate(PACKAGES["metric"], name, "metrics")
    metric: object = plugins.import_part(module, path, "metrics")
    if isinstance(metric, ImageMetric | SetMetric):
        return metric
    raise UserError(
        f"metrics: '{path}' has neither BETTER and per_image, as a metric of images, nor BETTER, VIEW, of_sets and floor, as a "
        f"metric of sets"
    )


def needed_files(metrics: Sequence[Metric], resize: str, own_extractor: bool) -> dict[str, str]:
    """Column -> published weights file. The user's own extractor needs none."""
    files: dict[str, str] = {}
    for metric in metrics:
        if not isinstance(metric, SetMetric):
            files |= getattr(metric, "NEEDS", {})
        elif not own_extractor:
            files |= dict.fromkeys(metric.BETTER, INCEPTION[resize])
    return files


def open_metrics(
    names: Sequence[str], device: torch.device, resize: str = "clean", extractor: Extractor | None = None,
    download: bool = False, classifiers: Sequence[NamedClassifier] = (),
) -> Metrics:  # fmt: skip
    """`extractor` is the user's own, in place of the FID Inception.

    All ranks must call. A column whose weights file one rank lacks is missing on all.
    """
    metrics = import_metrics(names, download)
    missing = {column: reason for metric in metrics for column, reason in getattr(metric, "missing", {}).items()}
    for column, file in needed_files(metrics, resize, extractor is not None).items():
        try:
            pretrained.find(file, column, download)
        except pretrained.MissingWeights as problem:
            missing[column] = str(problem).removeprefix(f"{column}: ")
    missing = {column: reason for part in reversed(ranks.all_gather(missing)) for column, reason in part.items()}
    of_sets = {column for metric in metrics if isinstance(metric, SetMetric) for column in metric.BETTER}
    if not of_sets or missing.keys() & of_sets:
        return Metrics(metrics, missing=missing, classifiers=tuple(classifiers))
    return Metrics(metrics, extractor or inception(resize, device), extractor is not None, missing, tuple(classifiers))
