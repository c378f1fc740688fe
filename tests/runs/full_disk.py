"""Run by the kill tests: a training that can write no file larger than so many bytes, as on a disk that is full.

full_disk.py LARGEST [arguments of sr_dist.train ...]
"""

from __future__ import annotations

import resource
import sys

from sr_dist.train import main

if __name__ == "__main__":
    largest = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.exit(main(sys.argv[2:]))
