"""Speculative decoding over a radio network: radio, serving, control, world, real runs."""

from uara.shadowing import check_packages

__version__ = "0.1.0"

check_packages()
