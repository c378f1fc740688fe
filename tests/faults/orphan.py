"""Run by the tests of faults: ends like a launcher that was killed, and leaves a rank behind, whose pid it prints.

orphan.py
"""

from __future__ import annotations

import os
import subprocess
import sys

RANK = """
import os, signal, time
from sr_dist.core import child_processes
if "STUBBORN" in os.environ:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child_processes.GRACE = 1.0
child_processes.end_with_launcher()
print("ready", flush=True)
time.sleep(900)
"""

if __name__ == "__main__":
    rank = subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert rank.stdout and rank.stdout.readline() == "ready\n"
    print(rank.pid, flush=True)
    os._exit(0)
