"""The name under which degradations outside this package import `Draws`."""

from sr_dist.core.keyed_random import Draws

__all__ = ["Draws"]
