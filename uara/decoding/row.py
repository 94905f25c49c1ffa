"""Rows that are met again and again, and so remember what was worked out of them.

Shape legend: V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
P = ParamSpec("P")
T = TypeVar("T")

MAX_LISTED = 4096  # longer rows stay arrays: their bisection is cheaper than their conversion


class Pairs(msgspec.Struct, frozen=True, gc=False):
    """Token ids and probabilities side by side: tuples, or a range and an array for a whole row."""

    ids: Sequence[int]
    probabilities: Sequence[float] | Floats

    def __len__(self) -> int:
        return len(self.ids)

    def probability_of(self, token: int) -> float:
        """Return the probability of a token; 0 if it is not listed."""
        if isinstance(self.ids, range):
            return float(self.probabilities[token]) if token in self.ids else 0.0
        pairs = zip(self.ids, self.probabilities, strict=True)
        return float(sum(probability for own, probability in pairs if own == token))


EMPTY_PAIRS = Pairs((), ())


class Stairs(NamedTuple):
    """Cumulated weights, their total, and the last index of a positive weight."""

    cumulated: list[float] | Floats
    total: float
    last: int


class Row(np.ndarray[tuple[int], np.dtype[np.float64]]):
    """A law over the vocabulary, (V,), that cannot be written to and has a memory."""

    memory: dict[object, Any] | None = None  # of arrays made from a row: none
    steps: Stairs | None = None

    @classmethod
    def of(cls, law: Floats) -> Row:
        """Give a law a memory; the array is shared and locked."""
        row = law.view(cls)
        row.setflags(write=False)
        row.memory = {}
        return row


def remembered(
    function: Callable[Concatenate[Floats, P], T],
) -> Callable[Concatenate[Floats, P], T]:
    """Let a `Row` keep what a function of it gave; arguments behind it must be hashable."""

    @wraps(function)
    def call(law: Floats, /, *args: P.args, **options: P.kwargs) -> T:
        memory = law.memory if type(law) is Row else None
        if memory is None:
            return function(law, *args, **options)
        key = (function, args)
        if key not in memory:
            memory[key] = function(law, *args, **options)
        return memory[key]  # type: ignore[no-any-return]

    return call


def stairs(weights: Floats) -> Stairs:
    """Cumulate weights for draws by inversion; a `Row` is cumulated once."""
    if type(weights) is not Row:
        return _cumulate(weights)
    if weights.steps is None:
        weights.steps = _cumulate(weights)
    return weights.steps


def _cumulate(weights: Floats) -> Stairs:
    cumulated = np.cumsum(weights)
    total = float(cumulated[-1])
    assert total > 0, "a draw needs a positive weight"
    last = int(np.flatnonzero(weights)[-1])
    return Stairs(cumulated.tolist() if len(weights) <= MAX_LISTED else cumulated, total, last)


@remembered
def top_pairs(row: Floats, top_k: int) -> Pairs:
    """List the `top_k` most likely tokens of a row, most likely first."""
    ids = np.argsort(-row, kind="stable")[:top_k]
    return Pairs(tuple(ids.tolist()), tuple(row[ids].tolist()))


@remembered
def outside(row: Floats, top_k: int) -> Floats | None:
    """Take a row's `top_k` most likely tokens away; None if nothing is left."""
    rest = np.array(row)
    rest[list(top_pairs(row, top_k).ids)] = 0.0
    return Row.of(rest) if rest.any() else None
