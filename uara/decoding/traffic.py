"""What a run leaves behind of its frames and forwards: one record each."""

from __future__ import annotations

from typing import Literal

import msgspec

Fate = Literal["on the way", "taken", "stale", "duplicate", "closed"]


class FrameRecord(msgspec.Struct, kw_only=True):
    """One frame on its way; times in seconds of the virtual clock.

    Attributes:
        sid: session.
        device: of the session.
        is_up: towards a server.
        kind: name of the frame.
        size: bytes on the link, overhead and attachments included.
        epoch: of the session as the sender knew it; -1 where the frame names none.
        backlog_bits: waiting on the link before this frame.
        enqueue_s: when it was handed to the link.
        start_s: when its first bit was served.
        finish_s: when its last bit was.
        deliver_s: when it was at the other end.
        fate: what the receiver did with it; `closed` where its session had ended.
    """

    sid: int
    device: int
    is_up: bool
    kind: str
    size: int
    epoch: int
    backlog_bits: float
    enqueue_s: float
    start_s: float = 0.0
    finish_s: float = 0.0
    deliver_s: float = 0.0
    fate: Fate = "on the way"

    def serve(self, start_s: float, finish_s: float, deliver_s: float) -> None:
        """Note when the link served it."""
        self.start_s, self.finish_s, self.deliver_s = start_s, finish_s, deliver_s

    def end(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Note its fate, from the receiver's counts of stale and doubled frames."""
        if after[0] > before[0]:
            self.fate = "stale"
        else:
            self.fate = "duplicate" if after[1] > before[1] else "taken"


class ForwardRecord(msgspec.Struct, kw_only=True):
    """One forward of a server.

    Attributes:
        server: index.
        start_s: when it began.
        end_s: when it ended.
        rows: sequences in the batch, those of other networks included.
        new_tokens: fed in.
        context_tokens: cached tokens read.
        works: sessions for which something was decided or read to the end.
        idle_before_s: since the end of the forward before, or since the run's start.
    """

    server: int
    start_s: float
    end_s: float
    rows: int
    new_tokens: int
    context_tokens: int
    works: int
    idle_before_s: float
