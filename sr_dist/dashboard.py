"""Makes a W&B workspace with the curves of training, quality, speed and hardware of all runs of a project.

  python -m sr_dist.dashboard ENTITY/PROJECT [--name=sr_dist]

ENTITY/PROJECT     your W&B user or team, and `log.project` of the recipes
--name=sr_dist     the workspace's name

Needs `pip install 'sr_dist[dashboard]'` and `wandb login`. Prints the address of the workspace.
"""

from __future__ import annotations

import sys

from sr_dist import commands, door


def main(words: door.Words, options: door.Options) -> None:
    (project,) = door.only(words, "ENTITY/PROJECT")
    chosen = commands.asked(commands.Boarding, options, project=project)
    chosen.check()

    from sr_dist.engine.dashboard import publish  # wandb from here on

    print(publish(chosen))


if __name__ == "__main__":
    sys.exit(door.run(main))
