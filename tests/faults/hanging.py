"""Run by the tests of faults: a rank that hangs, and whose watchdog meets one more fault.

hanging.py FOLDER FAULT
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from sr_dist.training import watchdog

if __name__ == "__main__":
    folder, fault = Path(sys.argv[1]), sys.argv[2]
    watchdog.LAST_WORDS = 1.0
    watching = watchdog.Watchdog(folder, 0, 0.4)
    if fault == "folder removed":
        shutil.rmtree(folder)
    elif fault == "file for a folder":
        shutil.rmtree(folder)
        folder.write_text("")
    elif fault == "stderr closed":
        os.close(2)
    elif fault == "nobody reads stderr":
        os.set_blocking(2, False)
        while True:
            try:
                os.write(2, b"." * 1000)
            except BlockingIOError:
                break
        os.set_blocking(2, True)
    watching.beat("the last step")
    time.sleep(900)
