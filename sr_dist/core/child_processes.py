"""Processes end when the process that started them ends, even if it is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from sr_dist.core import launch_env

POLL, GRACE = 1.0, 8.0  # seconds between two looks at the launcher, and seconds in which a rank may save after its end


@contextmanager
def without_count_of_cores() -> Iterator[None]:
    """Around making a DataLoader and its iterator, both of which warn of more workers than cores. The log says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def end_with_parent() -> None:
    """Called in a child process. Without it, a child whose parent was killed can wait for ever on a queue."""
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_launcher() -> None:
    """Called in a rank. If its launcher is killed, the rank gets SIGTERM, which lets it save: nobody else would end it, and it
    would hold the run folder. One of several ranks ends after GRACE seconds at the latest, because it may wait for ranks that
    are gone; a single one has its time to save, also where accelerate's launcher ends before it on Ctrl-C.

    A command without a launcher goes on when the shell that started it ends, as under nohup.
    """
    if not launch_env.under_launcher():
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGTERM)
        if launch_env.num_ranks() > 1:
            time.sleep(GRACE)
            os._exit(1)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
