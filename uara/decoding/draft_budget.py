"""Latency-aware truncation: a device that drafts for too long ends its block and sends it.

PicoSpec (arXiv 2603.19133, 3.3) lets the device watch its drafting time and, if it lags, cut the
block so that the server need not idle; it names no threshold. Read as: whenever a token is drafted
and the block may go up at once, a block that was begun `budget` ago or earlier ends there. Only the
clock decides, never the token just drawn, which is sent with its block: the law is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

DraftBudget = float | Literal["verdict"]

VERDICT_WEIGHT = 1 / 8  # of the newest verdict in the running mean, as TCP weighs round trips


@dataclass(frozen=True)
class Flight:
    """A block on its way: its tokens' positions, and when it went up, seconds."""

    start: int
    end: int
    sent_s: float


@dataclass(frozen=True)
class Pace:
    """What a device has measured of its own speed and of its server's, seconds.

    Attributes:
        budget_s: drafting time of a block; `verdict`: as long as a verdict takes on average.
        now_s: time of the last event.
        began_s: when drafting of the block under way began.
        verdict_s: running mean of the time from sending a block to its verdict; None before one.
        flights: blocks sent whole and without a verdict, oldest first.
    """

    budget_s: DraftBudget
    now_s: float = 0.0
    began_s: float = 0.0
    verdict_s: float | None = None
    flights: tuple[Flight, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether the block under way has used up its time."""
        budget_s = self.verdict_s if self.budget_s == "verdict" else self.budget_s
        return budget_s is not None and self.now_s - self.began_s >= budget_s

    def at(self, now_s: float) -> Pace:
        """Let time pass."""
        return replace(self, now_s=now_s)

    def begin(self) -> Pace:
        """Begin a block."""
        return replace(self, began_s=self.now_s)

    def restart(self) -> Pace:
        """Forget the blocks on their way."""
        return replace(self, flights=())

    def send(self, start: int, end: int) -> Pace:
        """Note that a block went up."""
        return replace(self, flights=(*self.flights, Flight(start, end, self.now_s)))

    def hear(self, position: int, *, rejected: bool) -> Pace:
        """Take the time of a verdict, unless it needed no forward.

        Args:
            position: behind the last token that stands.
            rejected: whether the token there was rejected. A block's first token is tested against
                the row that the server keeps, so its rejection says nothing of the server's speed.
        """
        found = [f for f in self.flights if f.start < position and position <= f.end - rejected]
        flights = tuple(f for f in self.flights if f.end > position)
        mean_s = self.verdict_s
        if found and (rejected or found[0].end == position):
            took_s = self.now_s - found[0].sent_s
            mean_s = took_s if mean_s is None else mean_s + (took_s - mean_s) * VERDICT_WEIGHT
        return replace(self, verdict_s=mean_s, flights=flights)
