"""The device of a parallel session as a pure machine: it drafts on while its blocks are verified.

Tokens drafted and not yet verified form the tail of the answer. A verdict acknowledges all tokens
before its end at once; a rejection voids what follows and begins a new epoch. Frames of a dead
epoch and frames that come twice are dropped and counted.
"""

from __future__ import annotations

import msgspec

from uara.decoding.answer import Answer
from uara.decoding.branches import (
    Branches,
    extend,
    find,
    from_position,
    grow,
    sprout,
    sprouts_of,
)
from uara.decoding.device import (
    NO_ANSWER,
    Corrected,
    DeviceEffect,
    DeviceEvent,
    Drafted,
    DraftToken,
    Finish,
    Judged,
    Received,
    Reconnected,
    Replan,
    Resolve,
    Resolved,
    SendUp,
    Start,
    Turn,
)
from uara.decoding.draft_budget import Pace
from uara.decoding.evolve import evolve
from uara.decoding.overlap import Overlap
from uara.decoding.protocol import (
    NO_TOKEN,
    Close,
    Draft,
    Error,
    NeedP,
    ProtocolError,
    Tails,
    Token,
    Verdict,
)
from uara.decoding.row import EMPTY_PAIRS, Pairs


class ParallelDeviceState(msgspec.Struct, frozen=True, gc=False):
    """All that the device knows of its current request.

    Attributes:
        overlap: form of the session.
        turn: whose it is; `DRAFTING` while the device drafts or waits for room.
        tail: tokens drafted in this epoch and not acknowledged.
        rows: what goes up with each token of the tail.
        sent_to: position up to which tokens went up.
        block_start: position at which the last block begins; -1 if none has begun.
        block_length: planned for it; 0 while none is under way.
        flying: positions at which the blocks that were sent whole end.
        is_busy: whether a draft step runs, maybe one of a dead epoch.
        is_first: whether the next block is the first after a rejection.
        parked: a verdict that waits for the block to be complete (barrier).
        is_handed_over: whether the server was told to go on alone.
        branches: drafted behind guessed corrections of this epoch.
        awaited: epoch, position and correction of the branch that was taken up while a draft step
            drew its next token; None if there is none.
        pace: what it has measured, if its blocks have a budget.
        is_cut: whether the block that is about to go up was cut.
        dropped: frames that were stale or came twice.
    """

    overlap: Overlap
    turn: Turn = Turn.IDLE
    sid: int = -1
    text: tuple[int, ...] = ()
    answer: Answer = NO_ANSWER
    draft_length: int = 0
    epoch: int = 0
    round: int = 0
    tail: tuple[int, ...] = ()
    rows: tuple[Pairs, ...] = ()
    sent_to: int = 0
    block_start: int = -1
    block_length: int = 0
    flying: tuple[int, ...] = ()
    is_busy: bool = False
    is_first: bool = True
    parked: Verdict | None = None
    is_handed_over: bool = False
    top: Pairs = EMPTY_PAIRS
    branches: Branches = ()
    awaited: tuple[int, int, int] | None = None
    pace: Pace | None = None
    is_cut: bool = False
    dropped: int = 0

    @property
    def context(self) -> tuple[int, ...]:
        """Prompt text, answer and tail."""
        return self.text + self.answer.tokens + self.tail

    @property
    def position(self) -> int:
        """Position of the next token to be committed."""
        return len(self.text) + len(self.answer.tokens)

    @property
    def block(self) -> tuple[int, ...]:
        """Tokens of the block under way."""
        return self.tail[max(0, self.block_start - self.position) :]

    @property
    def drafted_to(self) -> int:
        """Position behind the tail."""
        return len(self.text) + len(self.answer.tokens) + len(self.tail)

    @property
    def room(self) -> int:
        """How many tokens may still be drafted."""
        tail, answer = self.tail, self.answer
        ends = tail[-1] == answer.eos if tail else False
        return 0 if ends else answer.remaining - len(tail)

    @property
    def must_wait(self) -> bool:
        """Whether a verdict is due before the next block may begin."""
        if self.overlap.has_barrier:
            return self.position <= self.block_start
        return len(self.flying) > self.overlap.window

    @property
    def may_send(self) -> bool:
        """Whether a whole block may go up: there is room, or the step is over (barrier)."""
        if self.overlap.has_barrier:
            return self.position > self.block_start or self.sent_to == self.block_start
        return len(self.flying) < max(self.overlap.window, 1)

    @property
    def is_block_whole(self) -> bool:
        """Whether the block under way has all its tokens."""
        if self.block_length == 0:
            return False
        return self.drafted_to - self.block_start >= self.block_length or self.room == 0


Step = tuple[ParallelDeviceState, tuple[DeviceEffect, ...]]


def step_parallel_device(state: ParallelDeviceState, event: DeviceEvent) -> Step:
    """Advance the device by one event.

    Raises:
        ProtocolError: if a frame does not fit the state.
    """
    if state.pace is not None and isinstance(event, Drafted | Received):
        state = evolve(state, pace=state.pace.at(event.now_s))
    match event:
        case Start():
            return _start(state, event)
        case Replan():
            return evolve(state, draft_length=event.draft_length), ()
        case Drafted():
            return _drafted(state, event)
        case Resolved():
            return _resolved(state, event)
        case Reconnected():
            return _reconnected(state)
        case Received(frame=Token() as token):
            return _token(state, token)
        case Received(frame=Verdict() as verdict):
            return _verdict(state, verdict)
        case Received(frame=Tails() as tails):
            return _tails(state, tails)
        case Received(frame=Error() as error):
            return _idle(state), (Finish(state.answer.tokens, error.text),)
    raise ProtocolError(f"a device does not take {event}")


def _idle(state: ParallelDeviceState) -> ParallelDeviceState:
    return ParallelDeviceState(
        state.overlap, draft_length=state.draft_length, is_busy=state.is_busy, dropped=state.dropped
    )


def _start(state: ParallelDeviceState, event: Start) -> Step:
    opening = event.opening
    state = ParallelDeviceState(
        overlap=state.overlap,
        turn=Turn.SERVER,
        sid=opening.sid,
        text=opening.prompt[len(opening.prompt) - opening.text_tokens :],
        answer=Answer((), opening.max_new, opening.eos),
        draft_length=event.draft_length,
        pace=None if state.overlap.draft_budget is None else Pace(state.overlap.draft_budget),
    )
    return state, (SendUp(opening),)


def _reconnected(state: ParallelDeviceState) -> Step:
    """Go on from the committed tokens, or wait for the first one as after the opening."""
    state = evolve(_begin_chain(state), is_busy=False)
    if not state.answer.tokens:
        return evolve(state, turn=Turn.SERVER), ()
    return _go_on(state)


def _go_on(state: ParallelDeviceState) -> Step:
    """Send what may be sent, and draft the next token if one may be drafted."""
    if state.turn is not Turn.DRAFTING or state.is_handed_over:
        return state, ()
    effects: tuple[DeviceEffect, ...] = ()
    if state.is_block_whole:
        if state.parked is not None:
            return _apply(evolve(state, parked=None), state.parked)
        if state.may_send:
            state, effects = _send_block(state)
    if state.is_busy or state.is_block_whole or state.room == 0:
        return state, effects
    if state.block_length == 0:
        if state.must_wait:
            return state, effects
        if state.draft_length == 0:
            state, more = _hand_over(state)
            return state, (*effects, *more)
        state = _begin_block(state)
    state, draft = _begin_step(state)
    return state, (*effects, draft)


def _begin_step(state: ParallelDeviceState) -> tuple[ParallelDeviceState, DraftToken]:
    """Draft the main chain's next token, and with it those of all branches that may grow."""
    overlap = state.overlap
    if not overlap.guesses:
        return evolve(state, is_busy=True), DraftToken(state.context, state.epoch)
    end = len(state.text) + state.answer.max_new
    branches = grow(state.branches, overlap.branch_length, end, state.answer)
    stems = tuple(branch.stem for branch in branches if branch.is_growing)
    draft = DraftToken(state.context, state.epoch, stems, overlap.guesses, state.position)
    return evolve(state, is_busy=True, branches=branches), draft


def _begin_block(state: ParallelDeviceState) -> ParallelDeviceState:
    is_short = state.is_first and state.overlap.first_length > 0
    wanted = state.overlap.first_length if is_short else max(state.draft_length, 1)
    return evolve(
        state,
        block_start=state.drafted_to,
        block_length=min(wanted, state.room),
        is_first=False,
        pace=None if state.pace is None else state.pace.begin(),
    )


def _hand_over(state: ParallelDeviceState) -> Step:
    """Let the server go on alone behind what it is verifying."""
    frame = _frame(state)
    state = evolve(state, is_handed_over=True, round=state.round + 1)
    return state, (SendUp(frame),)


def _frame(
    state: ParallelDeviceState, *, continues: bool = False, correction: int = NO_TOKEN
) -> Draft:
    """Make a frame of all that has not gone up."""
    fresh = state.sent_to - state.position
    return Draft(
        sid=state.sid,
        round=state.round,
        epoch=state.epoch,
        base=state.sent_to,
        correction=correction,
        tokens=state.tail[fresh:],
        rows=tuple(row for row in state.rows[fresh:] if len(row)),
        continues=continues,
    )


def _send_block(state: ParallelDeviceState) -> Step:
    frame, end, is_cut = _frame(state), state.drafted_to, state.is_cut
    pace = None if state.pace is None else state.pace.send(state.block_start, end)
    state = evolve(
        state,
        sent_to=end,
        round=state.round + 1,
        block_length=0,
        flying=(*state.flying, end),
        pace=pace,
        is_cut=False,
    )
    return state, (SendUp(frame, is_cut),)


def _drafted(state: ParallelDeviceState, event: Drafted) -> Step:
    state = evolve(state, is_busy=False)
    is_live = (event.sid, event.epoch) == (state.sid, state.epoch)
    if is_live:
        state = evolve(state, branches=extend(state.branches, event.grown))
    if state.turn is not Turn.DRAFTING or not is_live:
        return _take_awaited(state, event)
    return _add_token(state, event.token, event.row, event.guesses)


def _take_awaited(state: ParallelDeviceState, event: Drafted) -> Step:
    """Take what a step of a dead epoch has drawn behind the branch that was taken up."""
    for drawn in event.grown if event.sid == state.sid else ():
        if (event.epoch, drawn.position, drawn.correction) == state.awaited:
            if not state.block_length:
                state = _begin_block(state)
            state = evolve(state, awaited=None)
            return _add_token(state, drawn.token, drawn.row, drawn.guesses)
    return _go_on(state)


def _add_token(
    state: ParallelDeviceState, token: int, row: Pairs, guesses: tuple[int, ...]
) -> Step:
    """Add a drafted token to the block under way."""
    state = evolve(
        state,
        tail=(*state.tail, token),
        rows=(*state.rows, row),
        branches=(*state.branches, *sprout(state.drafted_to, guesses)),
    )
    effects: tuple[DeviceEffect, ...] = ()
    is_first = state.drafted_to == state.block_start + 1
    if state.pace is not None:
        state = _watch_time(state, state.pace)
    # The row is fixed before the token is drawn, so stopping on the end token keeps the law.
    if state.overlap.sends_first_ahead and is_first and not state.is_block_whole:
        frame = _frame(state, continues=True)
        state, effects = evolve(state, sent_to=state.drafted_to), (SendUp(frame),)
    state, more = _go_on(state)
    return state, (*effects, *more)


def _watch_time(state: ParallelDeviceState, pace: Pace) -> ParallelDeviceState:
    """End the block under way here if it has used up its time and may go up at once."""
    if not pace.is_over or not state.may_send or state.is_block_whole:
        return state
    return evolve(state, is_cut=True, block_length=state.drafted_to - state.block_start)


def _token(state: ParallelDeviceState, frame: Token) -> Step:
    if frame.position < state.position:
        return evolve(state, dropped=state.dropped + 1), ()
    takes = state.turn is Turn.SERVER or state.is_handed_over
    if not takes or frame.position != state.position or state.tail:
        raise ProtocolError(f"token for position {frame.position}, expected {state.position}")
    state = evolve(
        state, turn=Turn.SERVER, answer=state.answer.extend((frame.token,)), is_handed_over=False
    )
    if state.answer.is_finished:
        return _idle(state), (Finish(state.answer.tokens),)
    if not frame.device_turn:
        return state, ()
    return _go_on(_begin_chain(state))


def _begin_chain(state: ParallelDeviceState) -> ParallelDeviceState:
    """Draft from the end of the answer, with nothing on its way."""
    return evolve(
        state,
        turn=Turn.DRAFTING,
        tail=(),
        rows=(),
        sent_to=state.position,
        block_start=-1,
        block_length=0,
        flying=(),
        is_first=True,
        parked=None,
        is_handed_over=False,
        branches=(),
        awaited=None,
        pace=None if state.pace is None else state.pace.restart(),
    )


def _verdict(state: ParallelDeviceState, frame: Verdict) -> Step:
    is_dead = frame.epoch != state.epoch or state.turn is not Turn.DRAFTING
    is_rejection = frame.token != NO_TOKEN or len(frame.top) > 0
    if is_dead or (not is_rejection and frame.base + frame.accepted <= state.position):
        return evolve(state, dropped=state.dropped + 1), ()
    if frame.base + frame.accepted > state.sent_to:
        raise ProtocolError(f"verdict up to {frame.base + frame.accepted} on tokens never sent")
    if (pace := state.pace) is not None:
        pace = pace.hear(frame.base + frame.accepted, rejected=is_rejection)
        state = evolve(state, pace=pace)
    if state.overlap.has_barrier and state.block_length and not state.is_block_whole:
        return evolve(state, parked=frame), ()
    return _apply(state, frame)


def _apply(state: ParallelDeviceState, frame: Verdict) -> Step:
    """Commit what a verdict accepts; it stands for all verdicts before it."""
    accepted = frame.base + frame.accepted - state.position
    rejected = frame.token != NO_TOKEN or len(frame.top) > 0
    drafted = len(state.tail) if rejected else accepted
    judged = Judged(state.position, accepted, drafted)
    answer = state.answer.extend(state.tail[:accepted])
    if answer.is_finished:
        return _idle(state), (judged, Finish(answer.tokens))
    if rejected:
        return _reject(evolve(state, answer=answer), frame, judged)
    state = evolve(
        state,
        answer=answer,
        tail=state.tail[accepted:],
        rows=state.rows[accepted:],
        branches=from_position(state.branches, state.position + accepted),
    )
    flying = tuple(end for end in state.flying if end > state.position)
    state, effects = _go_on(evolve(state, flying=flying))
    return state, (judged, *effects)


def _reject(state: ParallelDeviceState, frame: Verdict, judged: Judged) -> Step:
    """Void the tail; draw the token after it, or take the server's."""
    if frame.token == NO_TOKEN:
        state = evolve(
            _begin_chain(state), turn=Turn.RESOLVING, top=frame.top, branches=state.branches
        )
        resolve = Resolve(frame.top, frame.tails, 0, state.position, state.epoch)
        return state, (judged, resolve)
    state = evolve(state, answer=state.answer.extend((frame.token,)), epoch=state.epoch + 1)
    if state.answer.is_finished:
        return _idle(state), (judged, Finish(state.answer.tokens))
    state, corrected = _take_branch(state, frame.token)
    state, effects = _go_on(state)
    return state, (judged, *corrected, *effects)


def _take_branch(state: ParallelDeviceState, token: int) -> Step:
    """Begin the chain behind a correction, with the branch that foresaw it if there is one."""
    position, epoch = state.position - 1, state.epoch - 1
    # Without a draft length the server is about to go on alone.
    branch = find(state.branches, position, token) if state.draft_length else None
    chain = _begin_chain(state)
    if not state.overlap.guesses:
        return chain, ()
    if branch is None:
        return chain, (Corrected(position, token, epoch, is_guessed=False, tokens=0),)
    ready = len(branch.tokens)
    chain = evolve(
        chain,
        tail=branch.tokens,
        rows=branch.rows,
        branches=sprouts_of(branch),
        awaited=(epoch, position, token) if branch.is_growing else None,
    )
    if ready:
        chain = evolve(chain, block_start=chain.position, block_length=ready, is_first=False)
    return chain, (Corrected(position, token, epoch, is_guessed=True, tokens=ready),)


def _resolved(state: ParallelDeviceState, event: Resolved) -> Step:
    assert state.turn is Turn.RESOLVING, "a resolution came without a rejection"
    if event.token is None:
        return state, (SendUp(NeedP(state.sid, state.epoch, state.position, event.drawn)),)
    state = evolve(
        state,
        answer=state.answer.extend((event.token,)),
        epoch=state.epoch + 1,
    )
    if state.answer.is_finished:
        # The server cannot know of an end that the device has drawn itself.
        return _idle(state), (SendUp(Close(state.sid)), Finish(state.answer.tokens))
    state, corrected = _take_branch(state, event.token)
    state, sent = _send_correction(state, event.token)
    state, effects = _go_on(state)
    return state, (*corrected, *sent, *effects)


def _send_correction(state: ParallelDeviceState, token: int) -> Step:
    """Send a correction, with the tokens of its branch in the same frame.

    Alone, the server would begin to read it, and the tokens would wait for that forward's end.
    """
    if state.block_length:
        frame, end = _frame(state, correction=token), state.drafted_to
        state = evolve(state, sent_to=end, block_length=0, flying=(end,))
    else:
        # The server reads the correction while the next block is drafted.
        frame = _frame(state, continues=True, correction=token)
    return evolve(state, round=state.round + 1), (SendUp(frame),)


def _tails(state: ParallelDeviceState, frame: Tails) -> Step:
    if state.turn is not Turn.RESOLVING or frame.position != state.position:
        return evolve(state, dropped=state.dropped + 1), ()
    return state, (Resolve(state.top, frame.tails, frame.drawn, state.position, state.epoch),)
