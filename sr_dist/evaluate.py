"""Scores trained networks beside nearest, bilinear and bicubic on the same images, and writes a report.

    python -m sr_dist.evaluate METHOD[,METHOD] --data=SHARDS_OR_FOLDER [--option=value ...]
    accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.evaluate ...

  METHOD             a run folder (its newest EMA), a weights file, or `bicubic`, `bilinear`, `nearest`
  --data=PLACE       a folder of shards, a brace pattern of some, or a folder of images; files that are called
                     *_HR.png and *_LR.png are pairs, otherwise LR is made from HR
  --scale=N          needed where no METHOD says it
  --protocol=NAME    matlab-y (default; the published tables), basicsr, rgb-float
  --degradation=NAME how LR is made for images without one; default bicubic (MATLAB's)
  --limit=N          only the first N images
  --out=FOLDER       where the report goes; default RUN/eval/STEP of the first run, else eval/
  --batch=8 --workers=0   images of one size restored together; loading processes per rank

Writes report.json, report.md, report.html (one file, pictures inside) and images.jsonl. The numbers do not depend on
the number of ranks.
"""

from __future__ import annotations

import sys

from sr_dist import config, door
from sr_dist.commands import Evaluation


def main(words: door.Words, options: door.Options) -> None:
    (methods,) = door.only(words, "METHOD")
    chosen = config.typed(Evaluation, {**options, "methods": methods})
    chosen.check()

    from sr_dist.engine.evaluate import evaluate  # torch from here on

    evaluate(chosen)


if __name__ == "__main__":
    sys.exit(door.run(main))
