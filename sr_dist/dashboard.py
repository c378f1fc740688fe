"""The command `python -m sr_dist.dashboard`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Annotated

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import Settings
from sr_dist.core.errors import UserError


class Dashboard(Settings):
    """Creates a W&B workspace with the curves of training, quality, speed and hardware of all runs of a project.

    Needs `pip install 'sr_dist[dashboard]'` and `wandb login`. Prints the address of the workspace.
    """

    project: Annotated[str, Word("ENTITY/PROJECT")]
    """Your W&B user or team, and `log.project` of the recipes."""
    name: str = "sr_dist"
    """The name of the workspace."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Dashboard, dashboard, argv)


def dashboard(options: Dashboard) -> None:
    names = [name for name in options.project.split("/") if name]
    if len(names) != 2:
        raise UserError(f"ENTITY/PROJECT: '{options.project}' must be a W&B user or team and a project, such as lab/faces")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("ENTITY/PROJECT: wandb-workspaces is not installed; pip install 'sr_dist[dashboard]'")

    from sr_dist.tools.dashboard import publish  # loads wandb, which the checks above do without

    entity, project = names
    print(publish(entity, project, options.name))


if __name__ == "__main__":
    sys.exit(main())
