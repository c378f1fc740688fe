"""Run by the tests of faults: a training without root's right to ignore permissions.

without_override.py [words of sr_dist.train ...]
"""

from __future__ import annotations

import ctypes
import sys

from sr_dist.train import main

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
VERSION_3 = 0x20080522


def drop_override() -> None:
    """By the system call: Python has none, and `setpriv` would start another process."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the low words first
    libc.capget(header, sets)
    for number in range(3):
        sets[number] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    if libc.capset(header, sets):
        sys.exit("capabilities cannot be dropped")


if __name__ == "__main__":
    drop_override()
    sys.exit(main(sys.argv[1:]))
