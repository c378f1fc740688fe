"""Reasons that a network gives in `refuses(config, launch)` before anything starts: why it cannot run, and what to do."""

from __future__ import annotations

from sr_dist.core.launch_env import Launch


def batch_norm(launch: Launch) -> str | None:
    """Statistics must span the ranks, and torch's SyncBatchNorm refuses CPU tensors."""
    if launch.ranks > 1 and not launch.cuda:
        return f"its batch normalisation does not run on {launch.ranks} CPU ranks; use GPUs, one process, or a network without it"
    return None


def spectral_norm(launch: Launch) -> str | None:
    """The norm is taken of whole weights before every forward; stage 3 keeps a slice of each on a rank."""
    if launch.stage == 3:
        return "its spectral norm does not run under ZeRO-3; use stage 2 or lower for this network"
    return None
