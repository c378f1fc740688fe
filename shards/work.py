"""The unfinished shards of a plan, written by several processes, with a bar that says how long it will take."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from shards.items import Item
from shards.plan import Plan, part_file
from shards.writer import Making, WrittenShard, write_shard
from sr_dist.core.child_processes import end_with_parent
from sr_dist.core.errors import UserError
from sr_dist.data.order import share

Result = TypeVar("Result")
EVERY = 30  # seconds between lines where nobody looks at a bar


def finished_shards(plan: Plan, making: Making, numbers: range, chosen: Any) -> list[WrittenShard]:
    """Those shards of the plan; what an earlier run has finished is not done again."""
    found = {number: plan.finished(number, chosen.dedupe) for number in numbers}
    missing = [number for number, shard in found.items() if shard is None]
    if missing and chosen.merge:
        raise UserError(
            f"merge: {len(missing)} of {plan.num_shards} shards are not built, '{plan.shard(missing[0])}' among them; "
            "without --merge this command builds them"
        )
    if 0 < len(missing) < len(numbers):
        print(f"{len(numbers) - len(missing)} of {len(numbers)} shards were built before")
    jobs = ((number, plan.shard(number), plan.items(number), making) for number in missing)
    inputs = sum(len(share(len(plan.order), plan.num_shards, number)) for number in missing)
    for number, shard in with_progress(in_processes(finish_shard, jobs, chosen.workers), inputs):
        found[number] = shard
    return [shard for shard in found.values() if shard]


def finish_shard(number: int, name: str, items: list[Item], making: Making) -> tuple[int, tuple[int, WrittenShard]]:
    """Writes a shard, its index, and last its part file, which says that it is finished: (inputs, (number, shard))."""
    shard = write_shard(name, items, making)
    shard.write(part_file(making.folder / name))
    return len(items), (number, shard)


def in_processes(function: Callable[..., Result], jobs: Iterable[tuple], workers: int) -> Iterator[Result]:
    """The results of `function(*job)`, as they come; jobs are made when there is a process for them."""
    if workers == 1:
        yield from (function(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        under_way: set[Future[Result]] = set()
        try:
            for job in jobs:
                with _no_interrupt():  # a process that starts now must not die of Ctrl-C with a page of traceback
                    under_way.add(pool.submit(function, *job))
                if len(under_way) >= 2 * workers:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            sys.exit(
                "a worker process was killed, perhaps for want of memory; the same command continues, --workers=1 needs least"
            )
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C is ignored, also by what is started meanwhile."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def with_progress(steps: Iterable[tuple[int, Result]], total: int, unit: str = "image") -> Iterator[Result]:
    """Passes on the results of (amount, result), with a bar and the time to go; off a terminal, a line now and then."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, unit=unit, unit_scale=total > 10_000, smoothing=0.1) as bar:
            for amount, result in steps:
                bar.update(amount)
                yield result
        return
    done, start = 0, time.monotonic()
    said = start
    for amount, result in steps:
        done, now = done + amount, time.monotonic()
        if now - said >= EVERY:
            rate = done / (now - start)
            left = (total - done) / rate / 60
            print(f"{done} of {total} {unit}s, {rate:.0f}/s, {left:.0f} minutes to go", file=sys.stderr, flush=True)
            said = now
        yield result
