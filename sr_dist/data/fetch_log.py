"""What a run writes down of its data, in its folder: `fetched/node-*.jsonl`, what each node fetched, and
`substituted/rank-*.jsonl`, what each rank trained on in another's place.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sr_dist.core import ranks
from sr_dist.data.crops import Replaced
from sr_dist.data.format import Shards
from sr_dist.data.remote.sources import RemoteShards

logger = logging.getLogger("sr_dist")


class Ledger:
    """Without a folder it only counts."""

    def __init__(self, folder: Path | None, node: int) -> None:
        self.folder, self.node = folder, node
        self._replaced = 0  # by this rank, and by those of earlier processes for the first rank
        self._said = 0  # how many had been replaced in all when it was last said
        self._told: dict[str, int] = {}  # bytes that each node had fetched when they were last said,
        self._told_at = 0.0  # and the epoch then

    def begin(self, first: int, epoch: float) -> None:
        """Takes up what earlier processes of the run have written of the steps before the first."""
        self._replaced = sum(row["step"] < first for row in self._rows("substituted/rank-*.jsonl")) if ranks.is_first() else 0
        self._told, self._told_at = self.fetched(), epoch

    def noted(self, shards: Shards) -> Shards:
        """Shards that write down what this node fetches of them."""
        if not isinstance(shards, RemoteShards) or not self.folder:
            return shards
        return replace(shards, ledger=self.folder / "fetched" / f"node-{self.node:03d}.jsonl")

    def fetched(self) -> dict[str, int]:
        """Bytes by node, since the run began."""
        nodes = Counter[str]()
        for row in self._rows("fetched/node-*.jsonl"):
            nodes[row["file"]] += row["bytes"]
        return dict(nodes)

    def say_fetched(self, epoch: float) -> None:
        """What came since this was last said."""
        now = self.fetched()
        parts = ", ".join(f"{node} {(size - self._told.get(node, 0)) / 1e6:,.1f} MB" for node, size in now.items())
        logger.info(f"fetched from epoch {self._told_at:.2f} to {epoch:.2f}: {parts or 'nothing'}")
        self._told, self._told_at = now, epoch

    def replaced(self, step: int, swaps: Sequence[Replaced]) -> None:
        self._replaced += len(swaps)
        if swaps and self.folder:
            (self.folder / "substituted").mkdir(parents=True, exist_ok=True)
            with open(self.folder / "substituted" / f"rank-{ranks.rank():03d}.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": step, **swap._asdict()}) + "\n" for swap in swaps)

    def count_replaced(self, device: torch.device) -> int:
        """By all ranks, since the run began. The log says when there are more. All ranks must call."""
        total = int(ranks.total(torch.tensor(self._replaced, device=device)))
        if total > self._said:
            logger.info(f"warning: {total} samples could not be read so far, others came in their place: see substituted/")
        self._said = total
        return total

    def _rows(self, pattern: str) -> Iterator[dict[str, Any]]:
        """With the name of the file. A line that a crash has torn is none: the books do not stop a run."""
        for path in sorted(self.folder.glob(pattern)) if self.folder else ():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    yield {"file": path.stem, **json.loads(line)}
