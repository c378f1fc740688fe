"""Run by test_curve on two ranks: `sr_dist.curve`, then how often this rank wrote the file and how large the group still is."""

from __future__ import annotations

import os
import sys
from typing import Any

from sr_dist import curve
from sr_dist.core import ranks

if __name__ == "__main__":
    written: list[str] = []

    def note(event: str, facts: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(facts[1]).endswith("point.safetensors"):
            written.append(str(facts[1]))

    sys.addaudithook(note)
    code = curve.main(sys.argv[1:])
    os.write(1, f"code {code}, written {len(written)}, ranks {ranks.size()}\n".encode())  # at once: both ranks write to one pipe
