"""The command `python -m sr_dist.evaluate`."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from sr_dist.core import cli, config, plugins
from sr_dist.core.cli import Word
from sr_dist.core.config import Names, NonNegative, OptionalPositive, OptionalText, Positive, Settings, parse_list, parse_section
from sr_dist.core.errors import UserError, in_python, nearest
from sr_dist.core.files import check_exists, same_place_twice
from sr_dist.core.json_text import read_json
from sr_dist.core.plugins import PACKAGES
from sr_dist.data.remote.sources import is_remote, open_shards
from sr_dist.data.select import PARTS, Portion
from sr_dist.evaluation.presets import BASELINES, PROTOCOLS, PYIQA
from sr_dist.evaluation.words import method_word, named_sets
from sr_dist.models import published
from sr_dist.recipe.sections import Count, Split

FIRST_METRICS = ("psnr", "ssim", "lpips", "fid", "kid")  # the order of columns; the others follow
NOT_OF_SEARCHES = ("protocol", "border", "against", "degradation", "attributes", "resize", "extractor", "save_images")
NOT_WITHOUT_HR = ("border", "degradation", "select", "split", "part")


class Evaluate(Settings):
    """Scores trained networks and folders of pictures beside interpolation on the same images, and writes a report.

    Under a launcher: accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.evaluate METHOD ...

    Writes report.json, report.md, report.html (images inside) and images.jsonl. The numbers do not depend on the number of
    ranks. The same command continues an evaluation that was killed, also on another number of ranks.
    """

    methods: Annotated[Names, Word("METHOD[,METHOD]")]
    """Run folders (their newest EMA), weights files or their names in the weights folders, bicubic, bilinear, nearest, and
    folders of pictures that were made elsewhere, named as HR with any ending (_x4, _SR, -out). NAME=PATH gives a folder or a run
    another name in the report."""
    data: str = ""
    """A folder of shards, a brace pattern, a URL, or a folder of images. Files named *_HR.png and *_LR.png are pairs;
    otherwise LR is made from HR. Several sets: --data=set5=A,set14=B. Without --data, --lr is scored by metrics that need
    no HR."""
    scale: OptionalPositive = None
    """Needed where no METHOD has a scale of its own."""
    protocol: str = "matlab-y"
    """matlab-y (that of the published tables), basicsr, or rgb-float."""
    border: Literal["refuse", "crop"] = "refuse"
    """Pictures of another size than HR are refused, or everything is cropped to the part that all methods have. Such pictures
    lack as many pixels on every side of HR."""
    against: OptionalText = None
    """The method with which the others are compared: their differences from it stand first in the report."""
    find: Annotated[tuple[str, ...], BeforeValidator(parse_list)] = ()
    """Published numbers, with all their digits, such as 28.42 or 28.42,0.8104. Looks for the protocols that reproduce them and
    writes the answer, report.md and report.json, in place of the scores."""
    metric: Names = ("psnr",)
    """The metrics of these numbers, psnr or ssim: --find=28.42,0.8104 --metric=psnr,ssim."""
    degradation: str = "bicubic"
    """How LR is made for images without one; bicubic is MATLAB's."""
    lr: OptionalText = None
    """The folder of LR images for a folder of HR images, under the same names (or 0801x4 for 0801). A folder that holds HR/ and
    LR/ (or LR_bicubic/X4/) needs no --lr."""
    split: Annotated[Split, BeforeValidator(parse_list)] = ()
    """The data.split of a recipe, for --part."""
    part: Literal["training", "validation", "test"] | None = None
    """The part of the split to score."""
    select: Annotated[dict[str, Count], BeforeValidator(parse_section)] = {}
    """A selection of samples, as data.select of a recipe."""
    limit: OptionalPositive = None
    """Score only the first N images."""
    attributes: Names = ()
    """Trained classifiers (runs or weights files). They classify HR and every method's output: accuracy, agreement with HR, lost
    accuracy, McNemar's test."""
    metrics: Names = ()
    """psnr, ssim, lpips, fid, kid, patch_fid, class_fid, precision, recall; the default is all. With the package pyiqa installed,
    also pyiqa:NAME (pyiqa:musiq). A metric that cannot be computed, for example without its published weights, is null with its
    reason."""
    resize: Literal["clean", "legacy_pytorch"] = "clean"
    """How clean-fid resizes images to 299 pixels for FID and KID."""
    extractor: OptionalText = None
    """A TorchScript file (images of 299 pixels in [0, 255] -> rows), or a trained classifier (the features before its last
    layer), in place of the FID Inception. Its distances are called fd_NAME and kd_NAME, never fid. A TorchScript file runs code,
    also code that writes files: use only those of people you trust."""
    cache: str = ""
    """The folder for features of HR, which the next evaluation of the same images reuses. The default is in the user's cache
    folder; `none` stores nothing."""
    allow_download: bool = False
    """Download published weights that are missing."""
    out: str | None = None
    """The report's folder. The default is RUN/eval/STEP of the first run, else eval/, with -2, -3, ... if that has a report with
    other or more images, methods, metrics or weights. Such a report in the folder that you name is moved to -2, -3, ..."""
    save_images: OptionalText = None
    """The folder for what the methods make: METHOD/IMAGE.png, with several sets METHOD/SET/IMAGE.png."""
    batch: Positive = 8
    """Images of one size in a batch; fewer where they have more than 4 megapixels together."""
    workers: NonNegative = 0
    """Loader worker processes per rank."""

    @property
    def portion(self) -> Portion | None:
        if not self.split and not self.select:
            return None
        return Portion(self.select, self.split, PARTS.index(self.part) if self.part else 0, "select")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Evaluate, evaluate, argv)


def evaluate(options: Evaluate) -> None:
    report_folder(options)

    from sr_dist.core import ranks  # loads torch, which a refused command does without

    ranks.destroy_group()


def report_folder(options: Evaluate) -> Path:
    """Evaluates, and returns the folder of the report."""
    check(options)

    from sr_dist.evaluation import run  # loads torch, which the checks above do without

    lr = named_sets(options.lr, "lr") if options.lr else {}
    sources = named_sets(options.data) if options.data else dict.fromkeys(lr, "")
    sets = {
        name: run.ImageOptions(
            source, lr.get(name), options.limit, options.portion, options.degradation, options.batch, options.workers
        )
        for name, source in sources.items()
    }
    if options.find:
        from sr_dist.evaluation import protocol_search  # loads torch

        request = protocol_search.Request(tuple(zip(options.metric, options.find, strict=True)), options.out)
        return protocol_search.search(options.methods, sets, options.scale, request)
    metrics = run.MetricOptions(
        options.protocol, all_metrics(options.metrics), options.attributes, options.resize, options.extractor, options.cache,
        options.allow_download, not options.metrics, options.border == "crop",
    )  # fmt: skip
    results = run.ResultOptions(options.out, options.save_images, options.against)
    return run.evaluate(options.methods, sets, metrics, options.scale, results)


def check(options: Evaluate) -> None:
    """Refuses mistakes that show before torch is loaded."""
    if not options.methods:
        raise UserError("METHOD: name a run folder, a weights file, a folder of pictures, or bicubic")
    check_protocol(options.protocol)
    for key, folder in (("out", options.out), ("save_images", options.save_images)):
        if folder and Path(folder).exists() and not Path(folder).is_dir():
            raise UserError(f"{key}: '{folder}' is a file; {'a report' if key == 'out' else 'images'} needs a folder")
    check_methods(options)
    check_data(options)
    check_find(options)
    check_unused(options)
    for key, path in (("extractor", options.extractor), *(("attributes", run) for run in options.attributes)):
        if path:
            check_exists(path, key)
    if same_place_twice(options.attributes):
        raise UserError(f"attributes: '{','.join(options.attributes)}' names a classifier twice")
    check_part(options)
    plugins.check(PACKAGES["degradation"], options.degradation, {}, "degradation")
    check_metrics(options.metrics)
    words = [method_word(text) for text in options.methods]
    if options.scale is None and all(word.is_baseline or word.is_pictures for word in words):
        folders = [word.path for word in words if word.is_pictures and not word.name]
        about = f" ('{folders[0]}' is no run: it has no recipe.yaml)" if folders else ""
        raise UserError(f"scale: no METHOD has a scale of its own{about}; give --scale=N")


def check_protocol(name: str) -> None:
    if name not in PROTOCOLS:
        raise UserError(f"protocol: no '{name}'{nearest(name, PROTOCOLS)}")


def check_metrics(names: Sequence[str]) -> None:
    known = plugins.names(PACKAGES["metric"])
    foreign = [name for name in names if re.fullmatch(r"[\w+-]+", name) and nearest(name, known).startswith("; choose")]
    for name in names:
        try:
            check_metric(name)
        except UserError as mistake:
            theirs = f"; a metric of the package pyiqa is named {', '.join(PYIQA + one for one in foreign)}"
            raise UserError(f"{mistake}{theirs if name in foreign else ''}") from None


def check_metric(name: str) -> None:
    if not name.startswith(PYIQA):
        plugins.locate(PACKAGES["metric"], name, "metrics")
    elif find_spec("pyiqa") is None:
        raise UserError(f"metrics: '{name}' needs the package pyiqa; read its licence, then pip install pyiqa")


def check_methods(options: Evaluate) -> None:
    words = [method_word(text) for text in options.methods]
    if same_place_twice([word.path for word in words], BASELINES):
        raise UserError(f"METHOD: '{','.join(options.methods)}' names a method twice")
    names = [word.name for word in words if word.name]
    if len(set(names)) < len(names):
        raise UserError(f"METHOD: '{','.join(options.methods)}' gives a name twice")
    for word in words:
        if word.name and Path(word.path).name != word.path:  # else it may be a name of published weights
            check_exists(word.path, f"METHOD: {word.name}")
        if not word.is_baseline:
            published.place(word.path, f"METHOD: {word.name}" if word.name else "METHOD", BASELINES)


def check_data(options: Evaluate) -> None:
    if not options.data and not options.lr:
        raise UserError("data: this key is missing; name the images to score (or --lr=FOLDER alone, without HR)")
    sets = named_sets(options.data) if options.data else {}
    lr = named_sets(options.lr, "lr") if options.lr else {}
    if options.data and lr.keys() - sets.keys():
        named, named_lr = (", ".join(filter(None, names)) for names in (sets, lr))
        form = f"{next(iter(sets))}=FOLDER" if named else "FOLDER"
        raise UserError(f"lr: --data names {named or 'one set'}; --lr names {named_lr or 'one folder'}; write --lr={form}")
    for name, source in sets.items():
        check_source(source, f"data: {name}" if name else "data")
    for path in lr.values():
        check_exists(path, "lr")


def check_source(source: str, key: str) -> None:
    if is_remote(source) or (not Path(source).exists() and "{" not in source):
        open_shards(source, key)  # its error names the missing file and the nearest name


def check_find(options: Evaluate) -> None:
    """A published number has its last digit: 28.420 is another number than 28.42."""
    if not options.find:
        return
    for number in options.find:
        if not re.fullmatch(r"\d+\.\d+", number):
            raise UserError(f"find: '{number}' is no number with decimals, such as 28.42")
    likely = ",".join("ssim" if float(number) <= 1 else "psnr" for number in options.find)
    if len(options.find) != len(options.metric):
        numbers = f"{len(options.find)} numbers in --find, {len(options.metric)} in --metric"
        raise UserError(f"metric: {numbers}; give as many, such as --metric={likely}")
    for number, metric in zip(options.find, options.metric, strict=True):
        if metric not in ("psnr", "ssim"):
            raise UserError(f"metric: no '{metric}' in a search{nearest(metric, ('psnr', 'ssim'))}")
        if (metric == "ssim") != (float(number) <= 1):
            raise UserError(f"find: {number} is no {metric.upper()}; values up to 1 are SSIM's, others PSNR's: --metric={likely}")
    if len(set(options.metric)) < len(options.metric):
        raise UserError(f"metric: '{','.join(options.metric)}' names a metric twice")
    if not options.data:
        raise UserError("find: PSNR and SSIM need HR; give --data")


def check_unused(options: Evaluate) -> None:
    """Refuses options that would change nothing."""
    stated = {key for key in options.model_fields_set if getattr(options, key) not in (None, "", (), {})}
    unused = dict.fromkeys(NOT_OF_SEARCHES, "--find, which tries all protocols and scores nothing") if options.find else {}
    unused |= {} if options.data else dict.fromkeys(NOT_WITHOUT_HR, "--lr alone, which is all images of a folder, without HR")
    for key, without in unused.items():
        if key in stated:
            raise UserError(f"{key}: not used by {without}; leave out --{key}")
    if "metric" in stated and not options.find:
        raise UserError(f"metric: {','.join(options.metric)} is for the numbers of --find; --metrics names what is measured")
    if options.find and (others := [name for name in options.metrics if name not in options.metric]):
        raise UserError(f"metrics: {','.join(others)} with --find; --metric names the metrics of its numbers, psnr or ssim")


def check_part(options: Evaluate) -> None:
    parts = PARTS[: len(options.split)]
    if options.part and not parts:
        raise UserError(f"part: {options.part} needs --split, as data.split in the recipe that was trained")
    if parts and options.part not in parts:
        raise UserError(f"part: {options.part or 'missing'}; the split {list(options.split)} has {', '.join(parts)}")


def all_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The requested metrics, or all."""
    order = {name: number for number, name in enumerate(FIRST_METRICS)}
    return tuple(metrics) or tuple(sorted(plugins.names(PACKAGES["metric"]), key=lambda name: order.get(name, len(order))))


class CallableModule(ModuleType):
    """This module as a function: `import sr_dist; sr_dist.evaluate(...)`. It has the name of the command, and Python knows it as
    an attribute of the package as soon as anything has imported it."""

    def __call__(self, methods: str | Path | Sequence[str | Path], /, **options: Any) -> dict[str, Any]:
        """Scores methods like `python -m sr_dist.evaluate` and returns the report's dictionary, as report.json has it.

        `options` are those of the command: data, scale, protocol, metrics, limit, out, ... All ranks must call. Under a launcher
        the process group stays open, the caller's or a new one: what comes after may need it.
        """
        names = [str(methods)] if isinstance(methods, str | Path) else [str(name) for name in methods]
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        with in_python(renamed=("METHOD", "methods")), contextlib.redirect_stdout(io.StringIO()):  # the tables of the command
            folder = report_folder(config.typed(Evaluate, {"methods": ",".join(names), **plain}))
        return read_json(folder / "report.json")


if __name__ == "__main__":
    sys.exit(main())
else:
    sys.modules[__name__].__class__ = CallableModule
