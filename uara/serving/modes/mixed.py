"""Quantities of devices each of which is served by a mode of its own.

Shape legend: B networks, M devices. `chosen` tells by name who is served by a mode, (B, M) bool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from uara.serving.batching import Comeback
from uara.serving.modes import MODES, RoundParts, ServingMode


def per_mode(chosen: dict[str, Tensor], value: Callable[[ServingMode], Tensor]) -> Tensor:
    """Compute a quantity with each device's own mode, (B, M)."""
    first, *others = chosen
    result = value(MODES[first])
    for name in others:
        result = torch.where(chosen[name], value(MODES[name]), result)
    return result


def unless_local(chosen: dict[str, Tensor], value: Tensor) -> Tensor:
    """Set to zero what a device that decodes alone does not need, (B, M)."""
    if "device_only" not in chosen:
        return value
    return value.masked_fill(chosen["device_only"], 0.0)


def overlaps(chosen: dict[str, Tensor]) -> bool:
    """Tell whether some device works while its server does."""
    return any(MODES[name].overlaps for name in chosen)


def comeback(chosen: dict[str, Tensor], parts: RoundParts) -> Comeback:
    """Let each request come back to its server as its own mode does."""
    backs = {name: MODES[name].comeback(parts) for name in chosen}

    def of_own_mode(part: str) -> Tensor:
        return per_mode(chosen, lambda mode: getattr(backs[mode.name], part))

    return Comeback(*(of_own_mode(field.name) for field in fields(Comeback)))


def effort(
    chosen: dict[str, Tensor], parts: RoundParts, round_s: Tensor, new_tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute drafting time, drafts sent and tokens given to passes in a round, (B, M) each.

    What a rejection voids is counted as well.

    Args:
        chosen: who is served by which mode.
        parts: of a round.
        round_s: (B, M).
        new_tokens: (B, M) that a mean pass is given without void drafts.
    """
    if not overlaps(chosen):
        return parts.draft_s, torch.ones(()), unless_local(chosen, new_tokens)
    efforts = {name: MODES[name].effort(parts) for name in chosen}
    draft_s = per_mode(chosen, lambda mode: efforts[mode.name].draft_s)
    drafts = per_mode(chosen, lambda mode: efforts[mode.name].drafts)
    back = comeback(chosen, parts)
    passes = round_s / (back.think_s + parts.wait_s + parts.verify_s)
    return draft_s, drafts, back.new_tokens * passes
