"""A W&B workspace for all runs of a project: the columns that `WandbTracker` sends, in four sections."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from sr_dist.core.errors import UserError, first_line
from sr_dist.recipe.columns import all_columns
from sr_dist.training.trackers.wandb import AXIS

RUNNING = "Relative Time (Process)"  # W&B also measures the hardware between steps, so images seen cannot be its axis
Panels = list[Any]  # of any of W&B's panel classes


def workspace(entity: str, project: str, name: str) -> workspaces.Workspace:
    """The whole workspace, made without a network."""
    sections = {"training": training(), "quality": quality(), "speed": speed(), "hardware": hardware()}
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[workspaces.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()],
        settings=workspaces.WorkspaceSettings(x_axis=AXIS),
    )


def training() -> Panels:
    return [
        curves("losses", "loss/.*"),
        curves("gradient norms", "grad_norm/.*", log=True),
        curves("skipped updates (gradients not finite)", "skipped/.*"),
        curve("learning rate", "learning_rate"),
    ]


def quality() -> Panels:
    return [
        *(curve(f"{metric}, {better} is better", f"validation/{metric}") for metric, better in all_columns().items()),
        curves("distances by features other than the FID Inception's", r"validation/(\w+_)?(fd|kd)_.*"),
        *(reports.ScalarChart(title=f"best {metric}", metric=f"best/{metric}") for metric in all_columns()),
        reports.MediaBrowser(title="LR, bicubic, SR, HR", media_keys=["samples/sheet"]),
        reports.WeavePanelSummaryTable(table_name="samples/table"),
    ]


def speed() -> Panels:
    return [
        curve("images per second", "speed/images_per_second"),
        curve("share of time spent waiting for data", "speed/data_wait"),
        curve("time of the slowest rank / mean", "speed/step_time_spread"),
        curve("TFLOP/s per rank", "speed/tflops"),
        curve("share of the GPU's peak", "speed/mfu"),
    ]


def hardware() -> Panels:
    return [
        curve("memory, GB", "memory/memory_gb"),
        curves("GPU utilization, %", r"system[./]gpu\.\d+\.gpu", x=RUNNING),
        curves("GPU memory in use, %", r"system[./]gpu\.\d+\.memoryAllocated", x=RUNNING),
        curves("GPU power, W", r"system[./]gpu\.\d+\.powerWatts", x=RUNNING),
        curves("CPU and host memory, %", r"system[./](cpu|memory_percent|proc\.memory\.percent)", x=RUNNING),
    ]


def curve(title: str, metric: str) -> reports.LinePlot:
    return reports.LinePlot(title=title, x=AXIS, y=[metric], title_x="images seen")


def curves(title: str, pattern: str, x: str = AXIS, log: bool = False) -> reports.LinePlot:
    """One panel with a curve for every metric whose name matches the pattern."""
    return reports.LinePlot(title=title, x=x, metric_regex=pattern, log_y=log)


def publish(entity: str, project: str, name: str) -> str:
    """Saves the workspace on W&B's server and returns its address."""
    board = workspace(entity, project, name)
    try:
        board.save()
    except Exception as problem:
        raise UserError(
            f"ENTITY/PROJECT: W&B did not accept the workspace for '{entity}/{project}' ({first_line(problem)}); "
            f"run `wandb login` once, and check both names"
        ) from None
    return board.url
