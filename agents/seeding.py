"""Generators of one seed that never share a stream."""

from __future__ import annotations

import torch


def seeded_generator(device: torch.device, seed: int, stream: int) -> torch.Generator:
    """Make a generator on a device.

    Args:
        device: of the tensors that it fills.
        seed: of the training.
        stream: purpose within the seed, from 1 to 1008.
    """
    return torch.Generator(device).manual_seed(seed * 1009 + stream)
