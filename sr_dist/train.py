"""Trains the networks of a recipe; continues by itself when the run folder holds a checkpoint.

    python -m sr_dist.train RECIPE [--key.sub=value ...]
    accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.train RECIPE [--key.sub=value ...]

  RECIPE             a YAML file such as configs/demo.yaml; every key of it can be overridden
  --data.batch=8     one such override; --name=x --runs=folder choose the run folder
  --dry_run          print the resolved recipe and stop
  --resume.allow=a,b continue a run although these keys differ from those it began with

Stops and saves on SIGTERM, SIGINT, SIGUSR1 or a file STOP in the run folder; the same command continues.
Exit codes: 0 done or saved, 2 a mistake in the command or recipe, 1 anything else.
"""

from __future__ import annotations

import sys

from sr_dist.core import cli
from sr_dist.data import data_checks


def main(words: cli.Words, options: cli.Options) -> None:
    (path,) = cli.only(words, "RECIPE")
    dry_run = cli.flag(options, "dry_run")
    chosen = data_checks.load(path, options)

    from sr_dist.training.train import train  # torch from here on

    train(chosen, dry_run)


if __name__ == "__main__":
    sys.exit(cli.run(main))
