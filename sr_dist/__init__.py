"""Distributed training of super-resolution GANs."""

__version__ = "0.1.0"
