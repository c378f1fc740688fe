"""The records of a run about its data, in the run folder: `fetched/node-*.jsonl` lists the shards that each node fetched,
`substituted/rank-*.jsonl` the samples that each rank replaced.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sr_dist.core import ranks
from sr_dist.core.files import Lines
from sr_dist.core.json_text import parse_json
from sr_dist.core.lost_writes import LostWrites
from sr_dist.core.run_layout import FETCHED, SUBSTITUTED
from sr_dist.data.crops import Substitution
from sr_dist.data.format import Shards
from sr_dist.data.remote.sources import RemoteShards

logger = logging.getLogger("sr_dist")


class FetchLog:
    """The records of one rank. Without a folder it only counts."""

    def __init__(self, folder: Path | None, node: int, lost: LostWrites | None = None) -> None:
        self.folder, self.node, self._lost = folder, node, lost or LostWrites()
        self._substituted = 0  # by this rank; on the first rank also by earlier processes
        self._logged_total = 0  # the total number of substitutions in the last log message
        self._logged_bytes: dict[str, int] = {}  # the bytes that each node had fetched at the last log message
        self._logged_epoch = 0.0  # the epoch of that message

    def start(self, first: int, epoch: float) -> None:
        """Reads the records of earlier processes of the run about the steps before `first`."""
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)  # only here: one that is removed later does not come back
        rows = self._rows("substituted/rank-*.jsonl") if ranks.is_first() else iter(())
        self._substituted = sum(row["step"] < first for row in rows)
        self._logged_bytes, self._logged_epoch = self.fetched_bytes(), epoch

    def attach(self, shards: Shards) -> Shards:
        """The shards, which now record what this node fetches of them."""
        if not isinstance(shards, RemoteShards) or not self.folder:
            return shards
        return replace(shards, fetch_log=self.folder / FETCHED / f"node-{self.node:03d}.jsonl")

    def fetched_bytes(self) -> dict[str, int]:
        """The bytes that each node has fetched since the run began."""
        nodes = Counter[str]()
        for row in self._rows("fetched/node-*.jsonl"):
            nodes[row["file"]] += row["bytes"]
        return dict(nodes)

    def log_fetched(self, epoch: float) -> None:
        """Logs the bytes that were fetched since the last call."""
        now = self.fetched_bytes()
        nodes = ", ".join(f"{node} {(size - self._logged_bytes.get(node, 0)) / 1e6:,.1f} MB" for node, size in now.items())
        logger.info(f"fetched from epoch {self._logged_epoch:.2f} to {epoch:.2f}: {nodes or 'nothing'}")
        self._logged_bytes, self._logged_epoch = now, epoch

    def record_substitutions(self, step: int, substitutions: Sequence[Substitution]) -> None:
        self._substituted += len(substitutions)
        if substitutions and self.folder:
            with self._lost.around(SUBSTITUTED):
                (self.folder / SUBSTITUTED).mkdir(exist_ok=True)
                file = Lines(self.folder / SUBSTITUTED / f"rank-{ranks.rank():03d}.jsonl")
                with closing(file):
                    for row in substitutions:
                        file.write(json.dumps({"step": step, **row._asdict()}))

    def total_substituted(self, device: torch.device) -> int:
        """The number of samples that all ranks have replaced since the run began. Logs an increase. All ranks must call."""
        total = int(ranks.all_reduce_sum(torch.tensor(self._substituted, device=device)))
        if total > self._logged_total:
            logger.info(f"warning: {total} unreadable samples have been replaced so far; they are listed in substituted/")
        self._logged_total = total
        return total

    def _rows(self, pattern: str) -> Iterator[dict[str, Any]]:
        """The rows of all matching files, with the file's name. A line that a crash has cut short is skipped."""
        for path in sorted(self.folder.glob(pattern)) if self.folder else ():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    yield {"file": path.stem, **parse_json(line)}
