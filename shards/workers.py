"""Worker processes that write shards."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from shards.build_files import write_part_file
from shards.items import Item
from shards.plan import Plan
from shards.writer import WriteOptions, WrittenShard, write_shard
from sr_dist.core.child_processes import end_with_parent
from sr_dist.core.progress import with_progress
from sr_dist.data.order import split_range

Result = TypeVar("Result")


def write_shards(plan: Plan, numbers: list[int], options: WriteOptions, num_workers: int) -> dict[int, WrittenShard]:
    """Writes these shards of the plan."""
    jobs = ((number, plan.shard(number), plan.items(number), options) for number in numbers)
    num_inputs = sum(len(split_range(len(plan.order), plan.num_shards, number)) for number in numbers)
    return dict(with_progress(in_processes(finish_shard, jobs, num_workers), num_inputs))


def finish_shard(number: int, name: str, items: list[Item], options: WriteOptions) -> tuple[int, tuple[int, WrittenShard]]:
    """Writes a shard, its index, and last its part file, which marks it as finished: (inputs, (number, shard))."""
    shard = write_shard(name, items, options)
    write_part_file(options.folder / name, shard)
    return len(items), (number, shard)


def in_processes(function: Callable[..., Result], jobs: Iterable[tuple], num_workers: int) -> Iterator[Result]:
    """The results of `function(*job)`, in the order in which they finish. Jobs are made when a process is free for them."""
    if num_workers == 1:
        yield from (function(*job) for job in jobs)
        return
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        pending: set[Future[Result]] = set()
        try:
            for job in jobs:
                with _without_interrupts():  # so that Ctrl-C does not make a starting process print a traceback
                    pending.add(pool.submit(function, *job))
                if len(pending) >= 2 * num_workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            sys.exit("a worker process was killed, perhaps out of memory; the same command continues (--workers=1 needs least)")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C, in this process and in those that it starts meanwhile."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
