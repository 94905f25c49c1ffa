"""Counter-based random choices: a draw is a function of what it decides, never of when it is made.

The uniform for (seed, purpose, position, epoch, index) is a keyed hash of these numbers, so results
do not depend on batching, timing or the order of sessions, and no generator has a state to rewind.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uara.decoding.row import stairs

_pack_key = struct.Struct("<BIII").pack
_unpack_digest = struct.Struct("<Q").unpack
_UNIT = 2.0**-53


@lru_cache(maxsize=4096)
def _keyed_hash(seed: int) -> hashlib.blake2b:
    """Make the hash with its key taken in, to be copied per draw."""
    return hashlib.blake2b(key=struct.pack("<Q", seed), digest_size=8)


class Purpose(IntEnum):
    """What a draw decides."""

    DRAFT = 1  # a drafted token, from the draft's law
    ACCEPT = 2  # whether a drafted token passes
    RESIDUAL = 3  # the token after a rejection, drawn by the server
    TARGET = 4  # a token from the target's law: bonus, first token, server decoding
    TAIL = 5  # a token of the target outside its Top-K, sent with a rejection
    ATOM = 6  # the device's choice between a Top-K token and the tail
    THIN = 7  # whether the device keeps a tail draw
    NOISE = 8  # noise of a position that both ends share, whatever the epoch


class Choice(Protocol):
    """A source of random choices; tests replace it to enumerate every possibility."""

    def flip(self, purpose: Purpose, position: int, probability: float, index: int = 0) -> bool:
        """Decide yes with that probability."""

    def pick(
        self, purpose: Purpose, position: int, weights: NDArray[np.float64], index: int = 0
    ) -> int:
        """Pick an index with probability proportional to its weight."""

    def race(self, purpose: Purpose, position: int, weights: NDArray[np.float64]) -> int:
        """Pick likewise, by noise that every race at this position shares."""


@dataclass
class Ledger:
    """Counts draws and keeps every key that has decided something; its second use is a defect.

    Attributes:
        is_checked: False to count only, which takes no memory.
        used: keys (purpose, position, epoch, index) so far.
        count: draws so far.
    """

    is_checked: bool = True
    used: set[tuple[int, int, int, int]] = field(default_factory=set)
    count: int = 0

    def enter(self, key: tuple[int, int, int, int]) -> None:
        """Enter a key that decides now."""
        self.count += 1
        if self.is_checked:
            assert key not in self.used, f"the draw {key} has already decided a token"
            self.used.add(key)


@dataclass(frozen=True)
class Draws:
    """The random choices of one session in one epoch.

    Attributes:
        seed: of the session, u64; both ends have the same and use different purposes.
        epoch: number of rejections so far, so that a position drafted again gets new numbers.
        ledger: shared by all epochs of one end.
    """

    seed: int
    epoch: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    def in_epoch(self, epoch: int) -> Draws:
        """Return the choices of an epoch, with the same ledger."""
        return self if epoch == self.epoch else type(self)(self.seed, epoch, self.ledger)

    def ahead(self) -> Draws:
        """Return the choices of the next epoch, made before it is known whether it will come.

        They decide nothing until they are entered.
        """
        return Draws(self.seed, self.epoch + 1, Ledger(is_checked=False))

    def enter(self, purpose: Purpose, position: int) -> None:
        """Enter a draw that was made ahead and decides from now on."""
        self.ledger.enter((purpose, position, self.epoch, 0))

    def uniform(self, purpose: Purpose, position: int, index: int = 0) -> float:
        """Compute the number in [0, 1) of this key, a multiple of 2^-53."""
        keyed = _keyed_hash(self.seed).copy()
        keyed.update(_pack_key(purpose, position, self.epoch, index))
        number: int = _unpack_digest(keyed.digest())[0]
        return (number >> 11) * _UNIT

    def _decide(self, purpose: Purpose, position: int, index: int) -> float:
        ledger = self.ledger
        if ledger.is_checked:
            ledger.enter((purpose, position, self.epoch, index))
        else:
            ledger.count += 1
        return self.uniform(purpose, position, index)

    def flip(self, purpose: Purpose, position: int, probability: float, index: int = 0) -> bool:
        """Decide yes with that probability; see `Choice`."""
        return self._decide(purpose, position, index) < probability

    def pick(
        self, purpose: Purpose, position: int, weights: NDArray[np.float64], index: int = 0
    ) -> int:
        """Pick an index by inversion of the cumulated weights; see `Choice`."""
        cumulated, total, last = stairs(weights)
        level = self._decide(purpose, position, index) * total
        # Rounding may lift `level` to the total, which lies behind the last positive weight.
        return min(bisect_right(cumulated, level), last)

    def noise(self, position: int, count: int) -> NDArray[np.float64]:
        """Compute independent exponential numbers of mean 1, (count,), the same in every epoch."""
        message = struct.pack("<QBI", self.seed, Purpose.NOISE, position)
        digest = hashlib.shake_128(message).digest(8 * count)
        # Shifted by one, so that no logarithm is infinite.
        units = (np.frombuffer(digest, "<u8") >> np.uint64(11)) + np.uint64(1)
        return np.asarray(-np.log(units * 2.0**-53), np.float64)

    def race(self, purpose: Purpose, position: int, weights: NDArray[np.float64]) -> int:
        """Pick argmin of noise over weight, which is argmax of log weight plus Gumbel noise.

        An exponential number over w is exponential of rate w, and the least of several is each in
        proportion to its rate.
        """
        self.ledger.enter((purpose, position, self.epoch, 0))
        runners = np.flatnonzero(weights)
        assert len(runners), "a draw needs a positive weight"
        noise = self.noise(position, len(weights))
        return int(runners[np.argmin(noise[runners] / weights[runners])])


def derive_seed(*parts: int | str) -> int:
    """Derive a u64 seed from numbers and names, in that order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
