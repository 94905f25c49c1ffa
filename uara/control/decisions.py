"""Decisions as rows: picked by network and put together.

Shape legend: B networks, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from uara.network import Decision


def tensors_of(decision: Decision) -> dict[str, Tensor]:
    """Collect what is decided, by name."""
    found = {field.name: getattr(decision, field.name) for field in fields(decision)}
    return {name: values for name, values in found.items() if values is not None}


def select_rows(decision: Decision, rows: Tensor) -> Decision:
    """Take networks by index, with repetition allowed; `rows` is (K,) long."""
    return replace(decision, **{name: v[rows] for name, v in tensors_of(decision).items()})


def join_rows(decisions: Sequence[Decision]) -> Decision:
    """Put decisions that fill the same fields one below the other."""
    parts = [tensors_of(decision) for decision in decisions]
    return Decision(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def take_where(mask: Tensor, first: Decision, second: Decision) -> Decision:
    """Take rows of one decision where the mask (B,) is set, of the other elsewhere."""
    other = tensors_of(second)
    chosen = {
        name: torch.where(mask[:, None], values, other[name])
        for name, values in tensors_of(first).items()
    }
    return replace(second, **chosen)


def least_of_each(network: Tensor, cost: Tensor, num_networks: int) -> tuple[Tensor, Tensor]:
    """Find each network's candidate of least cost, the first of equals.

    Args:
        network: (K,) long, of the candidates.
        cost: (K,).
        num_networks: B.

    Returns:
        least costs (B,), infinity where there is no candidate, and their rows (B,) long, 0 there.
    """
    nothing = torch.full((num_networks,), torch.inf, dtype=cost.dtype)
    least = nothing.scatter_reduce(0, network, cost, "amin")
    is_least = cost <= least[network]
    rows = torch.full((num_networks,), len(cost)).scatter_reduce(
        0, network[is_least], is_least.nonzero().squeeze(1), "amin"
    )
    return least, torch.where(rows < len(cost), rows, 0)


def keep_best(
    best: Decision | None, least: Tensor, network: Tensor, decision: Decision, cost: Tensor
) -> tuple[Decision, Tensor]:
    """Replace each network's best decision where a candidate is better.

    Args:
        best: of B networks; None: there is none yet.
        least: (B,) its objective.
        network: (K,) long, of the candidates.
        decision: K candidates.
        cost: (K,) their objectives.
    """
    lowest, row = least_of_each(network, cost, len(least))
    winner = select_rows(decision, row)
    if best is not None:
        winner = take_where(lowest < least, winner, best)
    return winner, torch.minimum(lowest, least)
