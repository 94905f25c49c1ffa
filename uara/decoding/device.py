"""The device as a pure machine: (state, event) -> (state, effects), without model, clock or socket.

Exactly one end has the turn. The device takes it with a frame that says so, drafts a block, sends
it and waits for the verdict; where its draft length is 0 it hands the turn to the server, which
then sends token by token until the turn comes back.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from uara.decoding.answer import Answer
from uara.decoding.branches import BranchToken, Stem
from uara.decoding.evolve import evolve
from uara.decoding.protocol import (
    NO_TOKEN,
    Close,
    Draft,
    Error,
    Frame,
    NeedP,
    Open,
    ProtocolError,
    Tails,
    Token,
    Verdict,
)
from uara.decoding.row import EMPTY_PAIRS, Pairs


class Turn(Enum):
    """What the device is doing about its request."""

    IDLE = "idle"
    SERVER = "server"  # the server reads the prompt or decodes alone
    DRAFTING = "drafting"
    VERIFYING = "verifying"
    RESOLVING = "resolving"  # drawing the token after a rejection


NO_ANSWER = Answer((), 1)


class DeviceState(msgspec.Struct, frozen=True, gc=False):
    """All that the device knows of its current request."""

    turn: Turn = Turn.IDLE
    sid: int = -1
    text: tuple[int, ...] = ()
    answer: Answer = NO_ANSWER
    draft_length: int = 0
    epoch: int = 0
    round: int = 0
    block: tuple[int, ...] = ()
    rows: tuple[Pairs, ...] = ()
    block_length: int = 0
    correction: int = NO_TOKEN
    top: Pairs = EMPTY_PAIRS

    @property
    def context(self) -> tuple[int, ...]:
        """Prompt text, answer and the block drafted so far."""
        return self.text + self.answer.tokens + self.block

    @property
    def position(self) -> int:
        """Position of the next token to be committed."""
        return len(self.text) + len(self.answer.tokens)


class Start(msgspec.Struct, frozen=True, gc=False):
    """A request begins: its opening frame goes out."""

    opening: Open
    draft_length: int


class Replan(msgspec.Struct, frozen=True, gc=False):
    """The draft length for blocks that begin from now on."""

    draft_length: int


class Received(msgspec.Struct, frozen=True, gc=False):
    """A frame came down."""

    frame: Frame
    now_s: float = 0.0


class Drafted(msgspec.Struct, frozen=True, gc=False):
    """A drafting job has drawn a token, and tokens behind branches.

    Attributes:
        token: the main chain's next.
        row: what goes up with it.
        sid: session of the job.
        epoch: in which the job began.
        guesses: other tokens in its place, likeliest first.
        grown: what was drawn behind branches.
    """

    token: int
    row: Pairs
    sid: int = -1
    epoch: int = 0
    guesses: tuple[int, ...] = ()
    grown: tuple[BranchToken, ...] = ()
    now_s: float = 0.0


class Resolved(msgspec.Struct, frozen=True, gc=False):
    """The token after a rejection, or None after `drawn` refused tail draws."""

    token: int | None
    drawn: int


class Reconnected(msgspec.Struct, frozen=True, gc=False):
    """The connection was lost and is back; what was not committed is drafted again."""


DeviceEvent = Start | Replan | Received | Drafted | Resolved | Reconnected


class SendUp(msgspec.Struct, frozen=True, gc=False):
    """Send a frame to the server; `is_cut`: it ends a block that its budget has cut."""

    frame: Frame
    is_cut: bool = False


class DraftToken(msgspec.Struct, frozen=True, gc=False):
    """Draft the token that follows a context, and in the same forward those behind branches.

    Attributes:
        context: prompt text, answer and tokens drafted so far.
        epoch: of the session; branches are drawn by the draws of the next.
        branches: that grow by a token.
        guesses: how many other tokens to name in place of each that is drawn.
        committed: tokens of the context that stand.
    """

    context: tuple[int, ...]
    epoch: int
    branches: tuple[Stem, ...] = ()
    guesses: int = 0
    committed: int = 0


class Resolve(msgspec.Struct, frozen=True, gc=False):
    """Draw the token after a rejection from the target's row."""

    top: Pairs
    tails: Pairs
    drawn: int
    position: int
    epoch: int


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The request is over with this answer; `refusal` is the server's reason if it failed."""

    tokens: tuple[int, ...]
    refusal: str = ""


class Judged(msgspec.Struct, frozen=True, gc=False):
    """A verdict was applied: of the tokens `drafted` from `base` on, `accepted` stand."""

    base: int
    accepted: int
    drafted: int


class Corrected(msgspec.Struct, frozen=True, gc=False):
    """The token after a rejection is known, where branches were drafted for it.

    All branches die. If it was guessed, the one behind it is the main chain from now on.

    Attributes:
        position: of the token.
        token: what it is.
        epoch: that the rejection has ended.
        is_guessed: whether a branch is taken up.
        tokens: that were ready behind it.
    """

    position: int
    token: int
    epoch: int
    is_guessed: bool
    tokens: int


DeviceEffect = SendUp | DraftToken | Resolve | Judged | Corrected | Finish
DeviceStep = tuple[DeviceState, tuple[DeviceEffect, ...]]


def step_device(state: DeviceState, event: DeviceEvent) -> DeviceStep:
    """Advance the device by one event.

    Raises:
        ProtocolError: if a frame does not fit the state.
    """
    match event:
        case Start():
            return _start(event)
        case Replan():
            return evolve(state, draft_length=event.draft_length), ()
        case Drafted():
            return _add_to_block(state, event)
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
            return DeviceState(draft_length=state.draft_length), (
                Finish(state.answer.tokens, error.text),
            )
    raise ProtocolError(f"a device does not take {event}")


def _start(event: Start) -> DeviceStep:
    opening = event.opening
    text = opening.prompt[len(opening.prompt) - opening.text_tokens :]
    state = DeviceState(
        turn=Turn.SERVER,
        sid=opening.sid,
        text=text,
        answer=Answer((), opening.max_new, opening.eos),
        draft_length=event.draft_length,
    )
    return state, (SendUp(opening),)


def _reconnected(state: DeviceState) -> DeviceStep:
    """Go on from the committed tokens, or wait for the first one as after the opening."""
    if not state.answer.tokens:
        return evolve(state, turn=Turn.SERVER), ()
    # A correction is part of what the server has been told anew.
    return _take_turn(evolve(state, correction=NO_TOKEN))


def _take_turn(state: DeviceState) -> DeviceStep:
    """Begin a block, hand the turn over, or finish."""
    if state.answer.is_finished:
        return _finish(state)
    # A round commits one token more than it drafts.
    length = min(state.draft_length, state.answer.remaining - 1)
    state = evolve(state, block=(), rows=(), block_length=length)
    if length == 0:
        return _send_block(state)
    state = evolve(state, turn=Turn.DRAFTING)
    return state, (DraftToken(state.context, state.epoch),)


def _finish(state: DeviceState) -> DeviceStep:
    # The server cannot know of an end that the device has drawn itself.
    close = () if state.correction == NO_TOKEN else (SendUp(Close(state.sid)),)
    return DeviceState(draft_length=state.draft_length), (*close, Finish(state.answer.tokens))


def _add_to_block(state: DeviceState, event: Drafted) -> DeviceStep:
    assert state.turn is Turn.DRAFTING, "a draft token came without a turn"
    state = evolve(state, block=(*state.block, event.token), rows=(*state.rows, event.row))
    # The row is fixed before the token is drawn, so stopping on the end token keeps the law.
    if len(state.block) >= state.block_length or event.token == state.answer.eos:
        return _send_block(state)
    return state, (DraftToken(state.context, state.epoch),)


def _send_block(state: DeviceState) -> DeviceStep:
    rows = tuple(row for row in state.rows if len(row))
    frame = Draft(
        state.sid, state.round, state.epoch, state.position, state.correction, state.block, rows
    )
    turn = Turn.VERIFYING if state.block else Turn.SERVER
    state = evolve(state, turn=turn, round=state.round + 1, correction=NO_TOKEN)
    return state, (SendUp(frame),)


def _commit(state: DeviceState, tokens: tuple[int, ...]) -> DeviceState:
    return evolve(state, answer=state.answer.extend(tokens))


def _token(state: DeviceState, frame: Token) -> DeviceStep:
    if state.turn is not Turn.SERVER or frame.position != state.position:
        raise ProtocolError(f"token for position {frame.position}, expected {state.position}")
    state = _commit(state, (frame.token,))
    if frame.device_turn or state.answer.is_finished:
        return _take_turn(state)
    return state, ()


def _verdict(state: DeviceState, frame: Verdict) -> DeviceStep:
    if state.turn is not Turn.VERIFYING or (frame.epoch, frame.base) != (
        state.epoch,
        state.position,
    ):
        raise ProtocolError(f"verdict on draft {(frame.epoch, frame.base)} that is not awaited")
    rejected = frame.accepted < len(state.block)
    state = _commit(state, state.block[: frame.accepted])
    if state.answer.is_finished:
        return _take_turn(state)
    if frame.token == NO_TOKEN:
        state = evolve(state, turn=Turn.RESOLVING, top=frame.top)
        return state, (Resolve(frame.top, frame.tails, 0, state.position, state.epoch),)
    state = _commit(state, (frame.token,))
    state = evolve(state, block=(), rows=(), epoch=state.epoch + rejected)
    if frame.device_turn or state.answer.is_finished:
        return _take_turn(state)
    return evolve(state, turn=Turn.SERVER), ()


def _resolved(state: DeviceState, event: Resolved) -> DeviceStep:
    assert state.turn is Turn.RESOLVING, "a resolution came without a rejection"
    if event.token is None:
        return state, (SendUp(NeedP(state.sid, state.epoch, state.position, event.drawn)),)
    state = _commit(state, (event.token,))
    return _take_turn(evolve(state, epoch=state.epoch + 1, correction=event.token))


def _tails(state: DeviceState, frame: Tails) -> DeviceStep:
    if state.turn is not Turn.RESOLVING or frame.position != state.position:
        raise ProtocolError(f"tail draws for position {frame.position} that were not asked for")
    return state, (Resolve(state.top, frame.tails, frame.drawn, state.position, state.epoch),)
