"""One request as its server sees it: committed tokens, whose turn it is, and what it waits for."""

from __future__ import annotations

from enum import Enum

import msgspec

from uara.decoding.answer import Answer
from uara.decoding.evolve import evolve
from uara.decoding.protocol import NO_TOKEN, Draft, NeedP, ProtocolError
from uara.decoding.verifier import Contract, Work


class Stage(Enum):
    """What a session needs of the server."""

    PREFILL = "prefill"  # its context is not cached here yet
    DEVICE = "device"  # nothing: the device has the turn
    VERIFY = "verify"
    JUDGE = "judge"  # one token, against the row that is kept (parallel modes)
    DECODE = "decode"


class Session(msgspec.Struct, frozen=True, gc=False):
    """A request at a server.

    Attributes:
        sid: its number.
        contract: what both ends agreed on.
        seed: of all its draws.
        text: prompt tokens that the models read.
        unread_tokens: prompt tokens that are priced but not read.
        answer: committed tokens.
        server: that the controller wants it at.
        draft_length: planned; 0 keeps the turn with the server.
        stage: what it needs now.
        resume: what it needs once its context is cached; `DECODE` draws from the context's end.
        epoch: rejections so far.
        awaits_token: whether the device is drawing the token after a rejection.
        draft: to be verified.
        queued_s: since when it waits, seconds.
    """

    sid: int
    contract: Contract
    seed: int
    text: tuple[int, ...]
    unread_tokens: int
    answer: Answer
    server: int
    draft_length: int
    stage: Stage = Stage.PREFILL
    resume: Stage = Stage.DECODE
    epoch: int = 0
    awaits_token: bool = False
    draft: Draft | None = None
    queued_s: float = 0.0

    @property
    def context(self) -> tuple[int, ...]:
        """Prompt text and answer."""
        return self.text + self.answer.tokens

    @property
    def position(self) -> int:
        """Position of the next token to be committed."""
        return len(self.text) + len(self.answer.tokens)

    @property
    def priced_tokens(self) -> int:
        """Context tokens that time and memory are counted for."""
        return self.position + self.unread_tokens

    @property
    def kv_tokens(self) -> int:
        """KV memory that it may come to need."""
        return self.unread_tokens + len(self.text) + self.answer.max_new

    @property
    def tokens_to_read(self) -> int:
        """Context tokens that a server without a cache has to read."""
        keeps_last = self.resume is not Stage.DECODE and not self.awaits_token
        return self.priced_tokens - keeps_last

    @property
    def gives_turn(self) -> bool:
        """Whether the device should go on: it is to draft, and a draft can still be used."""
        return self.draft_length > 0 and self.answer.remaining >= 2

    @property
    def new_tokens(self) -> int:
        """Tokens fed into the next forward, once the context is cached."""
        return 1 + (len(self.draft.tokens) if self.draft is not None else 0)

    def commit(self, tokens: tuple[int, ...]) -> Session:
        """Commit tokens."""
        return evolve(self, answer=self.answer.extend(tokens))

    def resumed(self, tokens: tuple[int, ...], epoch: int) -> Session:
        """Take up a request where its device stands: the context is read, the device goes on."""
        return evolve(self.commit(tokens), epoch=epoch, resume=Stage.DEVICE)

    def take_draft(self, frame: Draft, now: float) -> Session:
        """Queue a draft, or the turn if it is empty.

        Raises:
            ProtocolError: if it was not the device's turn or the draft hangs on another context.
        """
        waits = self.resume if self.stage is Stage.PREFILL else self.stage
        if waits is not Stage.DEVICE:
            raise ProtocolError(f"draft out of turn, while the session is at '{waits.value}'")
        if (frame.correction != NO_TOKEN) is not self.awaits_token:
            raise ProtocolError(
                "a correction goes with the draft after a rejection, and only there"
            )
        session = self
        if self.awaits_token:
            session = evolve(self.commit((frame.correction,)), awaits_token=False)
        if (frame.epoch, frame.base) != (session.epoch, session.position):
            raise ProtocolError(
                f"draft {(frame.epoch, frame.base)} where {(session.epoch, session.position)} "
                "was due"
            )
        need = Stage.VERIFY if frame.tokens else Stage.DECODE
        stage = Stage.PREFILL if self.stage is Stage.PREFILL else need
        draft = frame if frame.tokens else None
        return evolve(session, stage=stage, resume=need, draft=draft, queued_s=now)

    def check_need(self, frame: NeedP) -> None:
        """Check that a request for tail draws belongs to the rejection at hand.

        Raises:
            ProtocolError: if it does not.
        """
        if not self.awaits_token or (frame.epoch, frame.position) != (
            self.epoch - 1,
            self.position,
        ):
            raise ProtocolError(f"no rejection at {(frame.epoch, frame.position)}")

    def work(self) -> Work:
        """Describe its part of a forward; for a prefill, of the forward that completes it."""
        if self.stage is Stage.PREFILL and self.resume is not Stage.DECODE:
            context = self.context if self.awaits_token else self.context[:-1]
            return Work(self.sid, context, draw=False)
        if self.draft is None:
            return Work(self.sid, self.context, epoch=self.epoch)
        return Work(self.sid, self.context, self.draft.tokens, self.draft.rows, self.epoch)
