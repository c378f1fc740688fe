"""Run by the tests of faults: a training that gets Ctrl-C before it has begun.

interrupted.py [words of sr_dist.train ...]
"""

from __future__ import annotations

import os
import signal
import sys

from sr_dist.data import data_checks
from sr_dist.train import main

if __name__ == "__main__":
    data_checks.load = lambda *_: os.kill(os.getpid(), signal.SIGINT)
    sys.exit(main(sys.argv[1:]))
