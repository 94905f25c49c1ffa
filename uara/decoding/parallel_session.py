"""A parallel session at its server: drafts received ahead, the row that is kept, and verdicts.

After a forward the server keeps the row behind the last token that it read. The next drafted token
is tested against that row at once; the forward that reads it waits until its block is complete,
while a correction is read at once. Every verdict acknowledges all that was accepted before it.
"""

from __future__ import annotations

from uara.decoding.evolve import evolve
from uara.decoding.overlap import Overlap
from uara.decoding.protocol import NO_TOKEN, Draft, Frame, ProtocolError, Token, Verdict
from uara.decoding.row import EMPTY_PAIRS, Pairs
from uara.decoding.rules import Outcome
from uara.decoding.session import Session, Stage
from uara.decoding.verifier import Work

MAX_PARKED_FRAMES = 64
STOP_AND_WAIT = Overlap(0)


class ParallelSession(Session, frozen=True, gc=False):
    """A request whose device drafts ahead.

    Attributes:
        overlap: form of the session.
        tokens: drafted tokens received in order and not yet judged.
        rows: what came with them.
        whole: how many of them belong to complete blocks.
        unread: committed tokens that no forward has read; at 0 the row behind them is kept.
        owes_row: whether the row behind the last committed token is wanted before more drafts come.
        is_handed_over: whether the server goes on alone once the drafts are judged.
        acknowledged: position up to which the device was told.
        early: frames that came before the ones they hang on.
        round: of the last frame.
        stale: frames of dead epochs, dropped.
        duplicates: frames that came twice, dropped.
    """

    overlap: Overlap = STOP_AND_WAIT
    tokens: tuple[int, ...] = ()
    rows: tuple[Pairs, ...] = ()
    whole: int = 0
    unread: int = 0
    owes_row: bool = False
    is_handed_over: bool = True
    acknowledged: int = 0
    early: tuple[Draft, ...] = ()
    round: int = 0
    stale: int = 0
    duplicates: int = 0

    @property
    def received_to(self) -> int:
        """Position behind the drafted tokens received in order."""
        return self.position + len(self.tokens)

    @property
    def tokens_to_read(self) -> int:
        """Context tokens that a server without a cache has to read: the row behind is kept."""
        return self.priced_tokens

    @property
    def new_tokens(self) -> int:
        """Tokens fed into the next forward, once the context is cached."""
        if self.stage is Stage.DECODE:
            return 1
        return self.unread + self.whole

    def resumed(self, tokens: tuple[int, ...], epoch: int) -> ParallelSession:
        """Take up a request where its device stands: the context is read, the device goes on."""
        session = evolve(self.grow(tokens), epoch=epoch, resume=Stage.DEVICE)
        return evolve(session, is_handed_over=False, acknowledged=session.position)

    def work(self) -> Work:
        """Describe its part of a forward."""
        if self.stage is Stage.PREFILL:
            return Work(self.sid, self.context, epoch=self.epoch, draw=self.resume is Stage.DECODE)
        if self.stage is Stage.DECODE:
            return Work(self.sid, self.context, epoch=self.epoch)
        return Work(
            sid=self.sid,
            context=self.context,
            tokens=self.tokens[: self.whole],
            rows=self.rows[: self.whole],
            epoch=self.epoch,
            draw=self.whole > 0,
            bonus=False,
        )

    def take_draft(self, frame: Draft, now: float) -> ParallelSession:
        """Take a frame of drafted tokens, a correction, or word that the server goes on alone.

        Raises:
            ProtocolError: if it cannot belong to this session.
        """
        if frame.epoch > self.epoch or len(self.early) >= MAX_PARKED_FRAMES:
            raise ProtocolError(f"draft of epoch {frame.epoch} where {self.epoch} is due")
        if frame.epoch < self.epoch:
            return evolve(self, stale=self.stale + 1)
        is_correction = frame.correction != NO_TOKEN
        due = self.position + 1 if self.awaits_token else self.received_to
        if frame.base < due or (is_correction and not self.awaits_token):
            return evolve(self, duplicates=self.duplicates + 1)
        if frame.base > due or (self.awaits_token and not is_correction):
            return evolve(self, early=(*self.early, frame))
        session = self._append(frame)
        fitting = [early for early in session.early if early.base <= session.received_to]
        session = evolve(session, early=tuple(f for f in session.early if f not in fitting))
        for early in sorted(fitting, key=lambda early: early.base):
            session = session.take_draft(early, now)
        return session

    def _append(self, frame: Draft) -> ParallelSession:
        session = self
        if frame.correction != NO_TOKEN:
            session = evolve(
                self.grow((frame.correction,)),
                awaits_token=False,
                owes_row=True,
                acknowledged=self.position + 1,
            )
        tokens = (*session.tokens, *frame.tokens)
        return evolve(
            session,
            tokens=tokens,
            rows=(*session.rows, *frame.rows),
            whole=session.whole if frame.continues else len(tokens),
            is_handed_over=not frame.continues and not frame.tokens,
            round=frame.round,
        )

    def grow(self, tokens: tuple[int, ...]) -> ParallelSession:
        """Commit tokens that no forward has read."""
        answer = self.answer.extend(tokens)
        return evolve(self, answer=answer, unread=self.unread + len(tokens))

    def settled(self, now: float) -> ParallelSession:
        """Tell what it needs next; not while a forward has it or its context is being read."""
        stage = self._next_stage()
        resume = Stage.DECODE if self.is_handed_over and not self.tokens else Stage.DEVICE
        queued_s = self.queued_s if stage is self.stage else now
        return evolve(self, stage=stage, resume=resume, queued_s=queued_s)

    def _next_stage(self) -> Stage:
        if self.awaits_token:
            return Stage.DEVICE
        goes_alone = self.is_handed_over and not self.tokens
        if self.unread == 0 and (goes_alone or (self.tokens and self.overlap.judges_first)):
            return Stage.JUDGE
        if goes_alone:
            return Stage.DECODE
        if self.whole or (self.owes_row and self.overlap.judges_first):
            return Stage.VERIFY
        return Stage.DEVICE


Decided = tuple[ParallelSession, tuple[Frame, ...]]


def after_forward(
    session: ParallelSession, work: Work, outcome: Outcome | None, started_s: float
) -> Decided:
    """Take in what a forward has read and judged."""
    read_to = len(work.context)
    if outcome is None:
        unread = session.position - read_to
        return evolve(session, unread=unread, owes_row=session.owes_row and unread > 0), ()
    if not work.tokens:
        return _decoded(evolve(session, unread=0), outcome)
    waited_s = started_s - session.queued_s
    # Behind a barrier the verdict waits for the next block's first token, if that is here.
    is_last = len(session.tokens) == len(work.tokens)
    tells = is_last or not session.overlap.has_barrier
    session = evolve(session, unread=0, owes_row=False)
    return _judged(session, outcome, len(work.tokens), waited_s, tells=tells)


def after_judging(session: ParallelSession, outcome: Outcome) -> Decided:
    """Take in what the kept row said of the next token."""
    if not session.tokens:
        return _decoded(session, outcome)
    # A block of one token is complete; of a longer one the rest is read with the first token.
    was_block = session.whole == 1
    tells = was_block or session.overlap.has_barrier
    session, frames = _judged(session, outcome, 1, 0.0, tells=tells)
    if outcome.accepted:
        session = evolve(session, unread=1, owes_row=was_block)
    return session, frames


def _decoded(session: ParallelSession, outcome: Outcome) -> Decided:
    """Commit a token that the server drew alone; what was accepted before is told first."""
    assert outcome.token is not None, "decoding always brings a token"
    frames: tuple[Frame, ...] = ()
    if session.answer.tokens and session.acknowledged < session.position:
        session, frames = _acknowledge(session, 0.0)
    position = session.position
    session = session.grow((outcome.token,))
    gives_turn = session.gives_turn
    session = evolve(
        session,
        owes_row=gives_turn,
        is_handed_over=not gives_turn,
        acknowledged=session.position,
    )
    token = Token(session.sid, position, outcome.token, gives_turn, told_probability(outcome))
    return session, (*frames, token)


def told_probability(outcome: Outcome) -> float | None:
    """Take the target's probability of a token drawn alone, if it is told."""
    return float(outcome.top.probabilities[0]) if len(outcome.top) else None


def _judged(
    session: ParallelSession, outcome: Outcome, tested: int, waited_s: float, *, tells: bool
) -> Decided:
    """Commit what passed of the first `tested` tokens; a rejection voids all behind it.

    What passed is acknowledged if `tells`, and at the end of the answer.
    """
    accepted = outcome.accepted
    answer = session.answer.extend(session.tokens[:accepted])
    session = evolve(session, answer=answer)
    if accepted == tested or answer.is_finished:
        session = evolve(
            session,
            tokens=session.tokens[tested:],
            rows=session.rows[tested:],
            whole=max(0, session.whole - tested),
        )
        is_told = tells or answer.is_finished
        return _acknowledge(session, waited_s) if is_told else (session, ())
    return _reject(session, outcome, waited_s)


def _acknowledge(session: ParallelSession, waited_s: float) -> Decided:
    frame = _verdict(session, session.position, waited_s)
    return evolve(session, acknowledged=session.position), (frame,)


def _reject(session: ParallelSession, outcome: Outcome, waited_s: float) -> Decided:
    end, is_split = session.position, outcome.token is None
    if outcome.token is not None:
        session = evolve(session.grow((outcome.token,)), owes_row=True)
    frame = _verdict(session, end, waited_s, outcome)
    session = evolve(
        session,
        epoch=session.epoch + 1,
        awaits_token=is_split,
        tokens=(),
        rows=(),
        whole=0,
        is_handed_over=False,
        early=(),
        acknowledged=session.position,
    )
    return session, (frame,)


def _verdict(
    session: ParallelSession, end: int, waited_s: float, rejection: Outcome | None = None
) -> Verdict:
    """Say up to where drafts stand, and what comes after the first that does not."""
    token = rejection.token if rejection is not None else None
    return Verdict(
        sid=session.sid,
        round=session.round,
        epoch=session.epoch,
        base=session.acknowledged,
        accepted=end - session.acknowledged,
        token=NO_TOKEN if token is None else token,
        device_turn=True,
        top=EMPTY_PAIRS if rejection is None or token is not None else rejection.top,
        tails=EMPTY_PAIRS if rejection is None or token is not None else rejection.tails,
        queue_us=min(int(waited_s * 1e6), NO_TOKEN),
    )
