"""The command `python -m sr_dist.curve`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import (
    Absent,
    Fraction,
    Names,
    NonNegative,
    OptionalPositive,
    OptionalText,
    Positive,
    Settings,
    parse_list,
)
from sr_dist.core.errors import UserError, renamed_key
from sr_dist.core.files import check_exists
from sr_dist.evaluate import check_metrics, check_protocol, check_source
from sr_dist.models import published
from sr_dist.models.weights_formats import check_out_file

Numbers = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(parse_list)]
LENGTH = 0.1  # of the EMA of an exported point, if none is named


class Curve(Settings):
    """Draws the perception-distortion curve of a GAN run: EMAs of several lengths, mixed with the pixel stage.

    Under a launcher: accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.curve RUN --data=IMAGES ...

    The run was trained with ema.post_hoc=true. Writes curve.html, curve.md and curve.json beside the report of the grid.
    With --export it writes the network of one point instead.
    """

    run: Annotated[str, Word("RUN")]
    """A run folder."""
    data: str = ""
    """The images, as for sr_dist.evaluate. With --export none are needed."""
    lengths: Numbers = (0.03, 0.05, 0.1, 0.15, 0.2)
    """The lengths of the EMA: the width of its profile as a share of the training (sigma_rel)."""
    alphas: Numbers = (0.0, 0.25, 0.5, 0.75, 1.0)
    """The shares of the GAN: (1 - alpha) pixel stage + alpha GAN."""
    pixel: OptionalText = None
    """The pixel stage: a run, a weights file, or the name of one of the weights folders. The default is init.generator of the
    run."""
    metrics: Names = ("psnr", "lpips", "fid", "ssim")
    """The metrics of the grid, as for sr_dist.evaluate."""
    perception: OptionalText = None
    """The column of the perceptual axis. The default is the first that can be computed of lpips_alex, lpips_vgg, fid, another
    distance, another perceptual metric and ssim_y."""
    protocol: str = "matlab-y"
    """As for sr_dist.evaluate."""
    extractor: OptionalText = None
    """As for sr_dist.evaluate: a TorchScript file or a trained classifier in place of the FID Inception."""
    limit: OptionalPositive = None
    """Use only the first N images."""
    out: str = "curve"
    """The folder for the curve and the report of the grid."""
    allow_download: bool = False
    """Download published weights that are missing."""
    batch: Positive = 8
    """Images of one size in a batch."""
    workers: NonNegative = 0
    """Loader worker processes per rank."""
    export: OptionalText = None
    """Write the network of one point, --ema and --alpha, into this file: .safetensors, .pth or .onnx."""
    ema: Annotated[float | None, Absent] = None
    """The length of the EMA of the point that --export writes. The default is 0.1."""
    alpha: Annotated[Fraction | None, Absent] = None
    """Its share of the GAN. The default is 1."""
    overwrite: bool = False
    """Let --export replace an existing file. Without it one with other content is an error."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Curve, curve, argv)


def curve(options: Curve) -> None:
    check(options)

    from sr_dist.core import ranks  # loads torch, which the checks above do without
    from sr_dist.evaluation import curve as curves
    from sr_dist.evaluation.run import ImageOptions, MetricOptions

    ranks.open_group()
    stages = curves.open_stages(options.run, options.pixel)
    if options.export:
        length, alpha = LENGTH if options.ema is None else options.ema, 1.0 if options.alpha is None else options.alpha
        out = Path(options.export)
        ranks.on_first(lambda: print(curves.export_point(stages, length, alpha, out, options.overwrite)))
    else:
        images = ImageOptions(options.data, limit=options.limit, batch=options.batch, workers=options.workers)
        metrics = MetricOptions(
            options.protocol, options.metrics, extractor=options.extractor, allow_download=options.allow_download
        )
        grid = curves.Grid(options.lengths, options.alphas)
        curves.draw(stages, grid, images, metrics, Path(options.out), options.perception)
    ranks.destroy_group()


def check(options: Curve) -> None:
    """Refuses mistakes that show before torch is loaded."""
    check_exists(options.run, "RUN")
    if options.pixel:
        published.place(options.pixel, "pixel")
    if options.export:
        refuse_options_of_the_grid(options)
        with renamed_key("OUT", "export"):
            return check_out_file(options.export)
    refuse_options_of_export(options)
    if not options.data:
        raise UserError("data: this key is missing; name the images to score")
    check_source(options.data, "data")
    check_protocol(options.protocol)
    for key, values in (("lengths", options.lengths), ("alphas", options.alphas)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{key}: {', '.join(map(str, values)) or 'none'}; give different numbers, such as 0.05,0.1")
    if "psnr" not in options.metrics:
        raise UserError("metrics: psnr is missing, which is the axis of distortion")
    if set(options.metrics) == {"psnr"} and options.perception is None:
        raise UserError("metrics: psnr alone has no column for the perceptual axis; add lpips, fid, ssim or a metric of your own")
    if options.extractor:
        check_exists(options.extractor, "extractor")
    check_metrics(options.metrics)


def refuse_options_of_the_grid(options: Curve) -> None:
    """With --export nothing is scored."""
    for key in sorted(options.model_fields_set - {"run", "pixel", "export", "ema", "alpha", "overwrite"}):
        raise UserError(f"{key}: --export writes the network of one point and scores nothing; leave it out")


def refuse_options_of_export(options: Curve) -> None:
    """Without --export they would say nothing."""
    stated = {"ema": options.ema is not None, "alpha": options.alpha is not None, "overwrite": options.overwrite}
    for key, is_stated in stated.items():
        if is_stated:
            raise UserError(f"{key}: only --export uses it; add --export=FILE or leave it out")


if __name__ == "__main__":
    sys.exit(main())
