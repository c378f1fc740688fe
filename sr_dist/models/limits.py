"""Why networks cannot run under a launch, as they answer in `refuses(config, launch)`: the reason and what to do, or None."""

from __future__ import annotations

from sr_dist.core.launch_env import Launch


def batch_norm(launch: Launch) -> str | None:
    """Nothing any more: batch normalization runs under every launch. Plug-ins of users call this."""
    return None


def spectral_norm(launch: Launch) -> str | None:
    """The norm is computed from whole weights before every forward; under stage 3 a rank has a slice of each."""
    if launch.stage == 3:
        return "its spectral norm does not run under ZeRO-3; use stage 2 or lower for this network"
    return None
