"""Run by the tests of faults: a training that gets a signal while it starts up.

ended_early.py SIGNAL FUNCTION [words of sr_dist.train ...]      FUNCTION is one of training/build.py, and is called afterwards
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from sr_dist.train import main
from sr_dist.training import build

if __name__ == "__main__":
    number, name = signal.Signals[sys.argv[1]], sys.argv[2]
    function = getattr(build, name)

    def ended(*words: Any) -> Any:
        os.kill(os.getpid(), number)
        return function(*words)

    setattr(build, name, ended)
    sys.exit(main(sys.argv[3:]))
