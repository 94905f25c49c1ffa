"""What a server asks of the engine that holds its target model, whatever that engine is.

One `forward` takes any mixture of work along: works with drafted tokens are verified, works without
are stepped by one token or merely read. What an engine cannot do it says in its capabilities, and
the server refuses sessions that need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from uara.decoding.contract import Contract as Contract  # a name of verifiers as well
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Draws
from uara.decoding.row import Pairs
from uara.decoding.rules import Outcome


class Work(msgspec.Struct, frozen=True, gc=False):
    """One session's part of a forward.

    Attributes:
        sid: session.
        context: committed tokens, prompt text and answer.
        tokens: drafted tokens to verify; none to decode one token.
        rows: what is known of the draft's laws.
        epoch: rejections so far.
        draw: False to read the context without drawing a token (a cache rebuilt elsewhere).
        bonus: False to draw nothing behind a draft that passes whole, and to keep its last row.
    """

    sid: int
    context: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    rows: tuple[Pairs, ...] = ()
    epoch: int = 0
    draw: bool = True
    bonus: bool = True


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do.

    Attributes:
        rules: payloads that it can test drafts by.
        samples: whether it takes temperatures above 0.
        returns_rows: whether it keeps the target's row behind what it read last, which parallel
            sessions and residuals drawn by devices need.
        batch_invariant: whether a session's tokens are the same in whatever company it is served.
        context_tokens: longest context that the target reads; None: no limit of its own.
    """

    rules: frozenset[RuleCode]
    samples: bool
    returns_rows: bool
    batch_invariant: bool
    context_tokens: int | None = None


class Verifier(Protocol):
    """The target of one server, with what it remembers of every session."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    def open(self, sid: int, contract: Contract, draws: Draws) -> None:
        """Take a session in, with nothing read."""

    def forward(self, batch: Sequence[Work]) -> list[Outcome | None]:
        """Verify works with drafted tokens, step those without; None for a mere reading."""

    def close(self, sid: int) -> None:
        """Forget a session; unknown ones are none of its business."""

    def judge(
        self, sid: int, position: int, tokens: tuple[int, ...], rows: tuple[Pairs, ...], epoch: int
    ) -> Outcome:
        """Test one drafted token against the row that is kept, or draw from it without any.

        Asked only of engines that return rows, as is `more_tails`.
        """

    def more_tails(self, sid: int, position: int, drawn: int, epoch: int) -> Pairs:
        """Draw further tail tokens at the rejected position, after `drawn` were refused."""
