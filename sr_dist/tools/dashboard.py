"""A ready workspace for W&B: the names under which `mirror.py` sends things, in four sections."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from sr_dist.core.errors import UserError, first_line
from sr_dist.recipe.columns import all_columns
from sr_dist.training.trackers.wandb import AXIS

RUNNING = "Relative Time (Process)"  # machines are measured between steps too


def workspace(entity: str, project: str, name: str) -> workspaces.Workspace:
    """All of it, without a network."""
    training: list[Any] = [
        every("losses", "loss/.*"),
        every("gradient norms", "grad_norm/.*", log=True),
        every("updates left out, not finite", "skipped/.*"),
        curve("learning rate", "learning_rate"),
    ]
    quality: list[Any] = [
        *(curve(f"{metric}, {sense} is better", f"validation/{metric}") for metric, sense in all_columns().items()),
        every("distances by other features than the FID Inception's", r"validation/(\w+_)?(fd|kd)_.*"),
        *(reports.ScalarChart(title=f"best {metric}", metric=f"best/{metric}") for metric in all_columns()),
        reports.MediaBrowser(title="LR, bicubic, SR, HR", media_keys=["samples/sheet"]),
        reports.WeavePanelSummaryTable(table_name="samples/table"),
    ]
    speed: list[Any] = [
        curve("images per second", "speed/images_per_second"),
        curve("share of time waiting for data", "speed/data_wait"),
        curve("slowest rank over the mean", "speed/step_time_spread"),
        curve("TFLOP/s per rank", "speed/tflops"),
        curve("share of the device's peak", "speed/mfu"),
    ]
    hardware: list[Any] = [
        curve("memory, GB", "memory/memory_gb"),
        every("GPUs at work, %", r"system[./]gpu\.\d+\.gpu", x=RUNNING),
        every("GPU memory in use, %", r"system[./]gpu\.\d+\.memoryAllocated", x=RUNNING),
        every("GPU power, W", r"system[./]gpu\.\d+\.powerWatts", x=RUNNING),
        every("CPU and host memory, %", r"system[./](cpu|memory_percent|proc\.memory\.percent)", x=RUNNING),
    ]
    sections = {"training": training, "quality": quality, "speed": speed, "hardware": hardware}
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[workspaces.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()],
        settings=workspaces.WorkspaceSettings(x_axis=AXIS),
    )


def curve(title: str, metric: str) -> reports.LinePlot:
    return reports.LinePlot(title=title, x=AXIS, y=[metric], title_x="images seen")


def every(title: str, names: str, x: str = AXIS, log: bool = False) -> reports.LinePlot:
    """A curve for every metric whose name fits."""
    return reports.LinePlot(title=title, x=x, metric_regex=names, log_y=log)


def publish(entity: str, project: str, name: str) -> str:
    """Saves the workspace: -> its address."""
    board = workspace(entity, project, name)
    try:
        board.save()
    except Exception as problem:
        raise UserError(
            f"ENTITY/PROJECT: W&B did not take the workspace for '{entity}/{project}' ({first_line(problem)}); "
            f"`wandb login` once, and check both names"
        ) from None
    return board.url
