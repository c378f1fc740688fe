"""Makes a W&B workspace with the curves of training, quality, speed and hardware of all runs of a project.

  python -m sr_dist.dashboard ENTITY/PROJECT [--name=sr_dist]

ENTITY/PROJECT     your W&B user or team, and `log.project` of the recipes
--name=sr_dist     the workspace's name

Needs `pip install 'sr_dist[dashboard]'` and `wandb login`. Prints the address of the workspace.
"""

from __future__ import annotations

import sys

from sr_dist import commands
from sr_dist.core import cli


def main(words: cli.Words, options: cli.Options) -> None:
    (project,) = cli.only(words, "ENTITY/PROJECT")
    chosen = commands.asked(commands.Boarding, options, project=project)
    chosen.check()

    from sr_dist.tools.dashboard import publish  # wandb from here on

    print(publish(chosen))


if __name__ == "__main__":
    sys.exit(cli.run(main))
