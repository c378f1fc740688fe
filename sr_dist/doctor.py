"""Says what works on this machine, what is missing, and how to mend it.

  python -m sr_dist.doctor [--runs=runs]
  accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.doctor

--runs=runs        the folder of run folders whose disk is tried

One line per thing: `ok`, `missing` (something that only some recipes or machines need) or `BROKEN` (nothing trains without
it). Under a launcher all ranks also talk to each other, and their bandwidth is measured. Nothing is downloaded, and no
network is needed. Exit codes: 0 when nothing is broken, else 1.
"""

from __future__ import annotations

import sys

from sr_dist import commands
from sr_dist.core import cli


def main(words: cli.Words, options: cli.Options) -> None:
    cli.only(words)
    chosen = commands.asked(commands.Examination, options)
    chosen.check()

    from sr_dist.tools.doctor import examine  # loads torch piece by piece

    sys.exit(examine(chosen))


if __name__ == "__main__":
    sys.exit(cli.run(main))
