"""Scores trained networks beside nearest, bilinear and bicubic on the same images, and writes a report.

    python -m sr_dist.evaluate METHOD[,METHOD] --data=SHARDS_OR_FOLDER [--option=value ...]
    accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.evaluate ...

  METHOD             a run folder (its newest EMA), a weights file, or `bicubic`, `bilinear`, `nearest`
  --data=PLACE       a folder of shards, a brace pattern of some, or a folder of images; files that are called
                     *_HR.png and *_LR.png are pairs, otherwise LR is made from HR
  --scale=N          needed where no METHOD says it
  --protocol=NAME    matlab-y (default; the published tables), basicsr, rgb-float
  --degradation=NAME how LR is made for images without one; default bicubic (MATLAB's)
  --lr=FOLDER        the LR of a folder of HR images, under the same names (or 0801x4 for 0801); a folder that holds HR/
                     and LR/ (or LR_bicubic/X4/) says so itself
  --split=0.7,0.15,0.15 --part=test   of shards, the part (training, validation, test) that a recipe with this data.split
                     has kept for it; --select={NAME: N, rest: N} as in data.select
  --attributes=RUN,RUN   finished classifiers (runs or weights files), which say what they see in HR and in what every
                     method made of it: accuracy, agreement with HR, what was lost, McNemar's test
  --limit=N          only the first N images
  --metrics=A,B      psnr, ssim, lpips, fid, kid, patch_fid, class_fid; default: all. What cannot be computed, such as for
                     want of published weights, is null with its reason, and the others are computed
  --resize=clean     how clean-fid squeezes images to 299 pixels for FID and KID; or legacy_pytorch
  --extractor=FILE   a TorchScript file (pictures of 299 pixels in [0, 255] -> rows), or a finished classifier (a run or a
                     weights file; the features before its last layer), instead of the FID Inception: its distances are
                     called fd_FILE, kd_FILE, ..., and never fid
  --allow_download   fetch published weights that are not here
  --cache=FOLDER     where features of HR are kept for the next evaluation on the same images; default in the user's
                     cache folder; none keeps none
  --out=FOLDER       where the report goes; default RUN/eval/STEP of the first run, else eval/; with -2, -3, ... where that
                     holds a report on other images or by another protocol
  --batch=8 --workers=0   images of one size restored together; loading processes per rank

Writes report.json, report.md, report.html (one file, pictures inside) and images.jsonl. The numbers do not depend on
the number of ranks. The same command continues an evaluation that was killed, on another number of ranks too.
"""

from __future__ import annotations

import sys

from sr_dist.commands import Evaluation
from sr_dist.core import cli, config


def main(words: cli.Words, options: cli.Options) -> None:
    (methods,) = cli.only(words, "METHOD")
    chosen = config.typed(Evaluation, {**options, "methods": methods})
    chosen.check()

    from sr_dist.evaluation.run import evaluate  # torch from here on

    evaluate(chosen)


if __name__ == "__main__":
    sys.exit(cli.run(main))
