"""Distributed training of super-resolution GANs."""

from sr_dist.core.version import __version__ as __version__
