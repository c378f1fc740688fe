"""A profile of some training steps of the first rank: where the host and the device spend their time, as a trace that a browser
shows (https://ui.perfetto.dev)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import monotonic
from typing import TypeVar

import torch
from torch.profiler import profile, record_function, supported_activities

from sr_dist.core import ranks
from sr_dist.core.run_layout import PROFILE
from sr_dist.training.run import Run

Item = TypeVar("Item")
Span = tuple[int, int]  # the first and the last step

_recording = False  # whether a trace is being recorded in this process


def left_of(span: Span, run: Run) -> Span | None:
    """The steps of a span that the run has before it: the same command continues a run."""
    if span[0] > run.step:
        return span
    left = (run.step + 1, span[1]) if span[1] > run.step else None
    rest = f"steps {left[0]} to {left[1]} are recorded" if left else "nothing is recorded"
    run.log.info(f"profile: {span[0]}:{span[1]}, but the run continues after step {run.step}: {rest}")
    return left


def bar(step: int) -> AbstractContextManager[object]:
    """Names the work of a step in a trace, if one is being recorded."""
    return record_function(f"step {step}") if _recording else nullcontext()


def profiled(span: Span | None, run: Run, steps: Iterator[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
    """The same steps. From the request of the first one's images to the end of the last one all work is recorded, also of a run
    that ends before."""
    span = left_of(span, run) if span and ranks.is_first() else None
    if span is None:
        yield from steps
        return
    global _recording
    first, last = span
    for step, item in steps_before(first, run, steps):
        yield step, item
    recorder = profile(activities=supported_activities(), acc_events=True)
    recorder.start()
    _recording, step = True, first
    try:
        for step, item in steps:
            yield step, item
            if step == last:
                break
    finally:
        _recording = False
        with run.clock.paused():
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
            recorder.stop()
            write(recorder, run, (first, step))
    yield from steps


def steps_before(first: int, run: Run, steps: Iterator[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
    """The steps before the first one that is recorded, without requesting that one."""
    for _ in range(first - 1 - run.step):
        step = next(steps, None)
        if step is None:
            return
        yield step


def write(recorder: profile, run: Run, span: Span) -> None:
    """Writes the trace. Training does not depend on it."""
    start = monotonic()
    path = run.recipe.folder / PROFILE / f"{span[0]:07d}-{span[1]:07d}.json.gz"
    with run.lost.around(PROFILE, tolerate=True):
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            recorder.export_chrome_trace(str(Path(folder, path.name)))
            Path(folder, path.name).replace(path)
        took = monotonic() - start
        run.log.info(f"profile of steps {span[0]} to {span[1]}, {took:.0f} s: {path}; open it in https://ui.perfetto.dev")
