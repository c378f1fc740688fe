"""What parts of networks cannot run under: the reasons that a network's `refuses` gives before anything starts.

    refuses(config, *, zero_stage, cuda, ranks) -> a line that says why not and what to do, or None

`zero_stage` is 0 without DeepSpeed; `ranks` is the number of processes.
"""

from __future__ import annotations


def batch_norm(cuda: bool, ranks: int) -> str | None:
    """Statistics must span the ranks, and torch's SyncBatchNorm refuses CPU tensors."""
    if ranks > 1 and not cuda:
        return f"its batch normalisation does not run on {ranks} CPU ranks; use GPUs, one process, or a network without it"
    return None


def spectral_norm(zero_stage: int) -> str | None:
    """The norm is taken of whole weights before every forward; stage 3 keeps a slice of each on a rank."""
    if zero_stage == 3:
        return "its spectral norm does not run under ZeRO-3; use stage 2 or lower for this network"
    return None
