"""One direction of a radio link: a first-come-first-served queue served at a rate that may change.

A frame's service ends when the integral of the rate since its service began reaches its bits; a
change of rate applies in the middle of a frame. Propagation comes afterwards and keeps the order.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass
class FluidLink(Generic[Item]):
    """A queue of items with sizes, and the clock at which its head was last served.

    Attributes:
        rate_bps: current service rate; 0 stops the link.
        busy_s: time spent serving so far.
        began_s: when the service of the item at the head began.
        version: grows with every change of the next finish, so that an old announcement of it can
            be told from a valid one.
    """

    rate_bps: float = 0.0
    busy_s: float = 0.0
    version: int = 0
    began_s: float = 0.0
    _queue: deque[tuple[Item, float]] = field(default_factory=deque)
    _served_s: float = 0.0
    _delivered_s: float = 0.0

    @property
    def backlog_bits(self) -> float:
        """Bits not served yet, as of the last change."""
        return sum(bits for _, bits in self._queue)

    def bits_left(self, now: float) -> float:
        """Compute the bits not served at `now`."""
        return max(0.0, self.backlog_bits - self._gained(now)) if self._queue else 0.0

    def push(self, item: Item, bits: float, now: float) -> bool:
        """Queue an item of so many bits; tell whether its service begins at once."""
        is_first = not self._queue
        if is_first:
            self._served_s = self.began_s = now
            self.version += 1
        self._queue.append((item, bits))
        return is_first

    def set_rate(self, rate_bps: float, now: float) -> None:
        """Change the rate from `now` on."""
        self._serve(now)
        self.rate_bps = rate_bps
        self.version += 1

    def next_finish(self) -> float:
        """Compute when the head will be through at the current rate; inf if never."""
        if not self._queue or self.rate_bps <= 0:
            return math.inf
        return self._served_s + self._queue[0][1] / self.rate_bps

    def pop(self, now: float) -> Item:
        """Take the head, whose service ends `now`."""
        self.busy_s += now - self._served_s if self.rate_bps > 0 else 0.0
        item, _ = self._queue.popleft()
        self._served_s = self.began_s = now
        self.version += 1
        return item

    def deliver(self, time_s: float) -> float:
        """Return when an item is there that would be at `time_s`: not before those ahead of it."""
        self._delivered_s = max(self._delivered_s, time_s)
        return self._delivered_s

    def _gained(self, now: float) -> float:
        # An infinite rate serves in no time, by announcing the finish at once.
        if not self._queue or self.rate_bps <= 0 or now <= self._served_s:
            return 0.0
        return min(self._queue[0][1], self.rate_bps * (now - self._served_s))

    def _serve(self, now: float) -> None:
        """Bring the head's remaining bits up to `now`."""
        if self._queue:
            gained = self._gained(now)
            item, bits = self._queue[0]
            self._queue[0] = (item, bits - gained)
            self.busy_s += now - self._served_s if self.rate_bps > 0 else 0.0
        self._served_s = now
