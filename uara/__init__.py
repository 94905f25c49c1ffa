"""Speculative decoding over a radio network: radio, serving, control, world, real runs."""

__version__ = "0.1.0"
