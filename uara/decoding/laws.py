"""Where rows come from: logits that are warped, or a model that has few laws and remembers them.

Shape legend: V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from uara.decoding.kv import Feed, SequenceModel
from uara.decoding.row import Floats
from uara.decoding.rules import Sampling, warp

Laws = Callable[[Sequence[Feed], Sequence[Sampling]], list[list[Floats]]]


@runtime_checkable
class Tabulated(Protocol):
    """A model that meets the same contexts again and again."""

    def laws(self, feeds: Sequence[Feed], samplings: Sequence[Sampling]) -> list[list[Floats]]:
        """Do what `forward` does, and return its rows warped, one sampling per sequence."""


def laws_of(model: SequenceModel) -> Laws:
    """Return what extends caches and gives rows, each (V,), from `logits_from` on."""
    if isinstance(model, Tabulated):
        return model.laws

    def warped(feeds: Sequence[Feed], samplings: Sequence[Sampling]) -> list[list[Floats]]:
        outputs = zip(model.forward(feeds), samplings, strict=True)
        return [[warp(logits, sampling) for logits in rows] for rows, sampling in outputs]

    return warped
