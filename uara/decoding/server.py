"""The server as a pure machine: (state, event, now) -> (state, effects), without model or socket.

Work queues per session; a forward starts whenever the server is idle and something waits, and takes
along everything that waits, with prompts read in chunks, first come first served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from uara.decoding.answer import Answer
from uara.decoding.batcher import Batcher, Forward, add_prefill, compose, drop_prefill, finish
from uara.decoding.evolve import evolve
from uara.decoding.frame_checks import check_answer, check_draft, check_need, check_open
from uara.decoding.overlap import Overlap
from uara.decoding.parallel_session import (
    ParallelSession,
    after_forward,
    after_judging,
    told_probability,
)
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
from uara.decoding.rules import Outcome, Sampling
from uara.decoding.session import Session, Stage
from uara.decoding.verifier import Contract, Work


class ServerState(msgspec.Struct, frozen=True, gc=False):
    """All that a server knows.

    Attributes:
        index: of the server.
        vocab_size: of its target model.
        tokenizer_hash: of its tokenizer; a device with another one is refused.
        tail_draws: target draws that it sends with a rejection under `id_prob`.
        batcher: what waits and what runs.
        sessions: by id.
        parked: frames that arrived before their session did, or before the row they ask for.
    """

    index: int
    vocab_size: int
    tokenizer_hash: int
    tail_draws: int
    batcher: Batcher
    sessions: Mapping[int, Session] = msgspec.field(default_factory=dict)
    parked: Mapping[int, tuple[Frame, ...]] = msgspec.field(default_factory=dict)


class Received(msgspec.Struct, frozen=True, gc=False):
    """A frame came up; the plan of its session goes with it.

    Attributes:
        frame: what came.
        draft_length: planned.
        overlap: form of a parallel session that opens; None where the ends take turns.
        answer: what a request that opens again had committed before.
        epoch: its rejections so far.
    """

    frame: Frame
    draft_length: int = 0
    overlap: Overlap | None = None
    answer: tuple[int, ...] = ()
    epoch: int = 0


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """A session came from another server."""

    session: Session


class Replan(msgspec.Struct, frozen=True, gc=False):
    """The controller's plan for a session: which server it belongs to, and its draft length."""

    sid: int
    server: int
    draft_length: int


class ForeignLoad(msgspec.Struct, frozen=True, gc=False):
    """Sequences in every forward, and prompt tokens in the queue, that belong to other networks."""

    rows: int
    prefill_tokens: int = 0


class ForwardDone(msgspec.Struct, frozen=True, gc=False):
    """The running forward has ended; one outcome per work, None for a mere reading."""

    outcomes: tuple[Outcome | None, ...]


class TailsDrawn(msgspec.Struct, frozen=True, gc=False):
    """More tail draws at a rejected position."""

    request: NeedP
    tails: Pairs


class KeptRowJudged(msgspec.Struct, frozen=True, gc=False):
    """The kept row of a parallel session has said whether its next token stands, or drawn one."""

    sid: int
    outcome: Outcome


ServerEvent = KeptRowJudged | Received | Arrived | Replan | ForeignLoad | ForwardDone | TailsDrawn


class SendDown(msgspec.Struct, frozen=True, gc=False):
    """Send a frame to the session's device."""

    frame: Frame


class StartForward(msgspec.Struct, frozen=True, gc=False):
    """Run a forward; its end is an event."""

    forward: Forward


class DrawTails(msgspec.Struct, frozen=True, gc=False):
    """Draw more tail tokens at a rejected position."""

    request: NeedP


class JudgeByKeptRow(msgspec.Struct, frozen=True, gc=False):
    """Test a drafted token against the row that is kept, or draw from it if there is none.

    It takes no forward: the answer is due before anything else happens.
    """

    sid: int
    position: int
    tokens: tuple[int, ...]
    rows: tuple[Pairs, ...]
    epoch: int


class OpenCache(msgspec.Struct, frozen=True, gc=False):
    """Make an empty cache for a session."""

    sid: int
    contract: Contract
    seed: int


class CloseCache(msgspec.Struct, frozen=True, gc=False):
    """Free a session's cache."""

    sid: int


class Migrate(msgspec.Struct, frozen=True, gc=False):
    """Pass a session on to another server, without its cache."""

    session: Session
    server: int


ServerEffect = (
    SendDown | StartForward | DrawTails | JudgeByKeptRow | OpenCache | CloseCache | Migrate
)
ServerStep = tuple[ServerState, tuple[ServerEffect, ...]]


def step_server(state: ServerState, event: ServerEvent, now: float) -> ServerStep:
    """Advance the server by one event at time `now` (seconds), and start a forward if it can.

    A frame that breaks the protocol ends its session with an `Error` frame.
    """
    state, effects = _HANDLERS[type(event)](state, event, now)
    if state.batcher.running is not None:
        return state, effects
    for session in state.sessions.values():
        if session.stage is Stage.JUDGE:
            # What a kept row is about to say may have to ride along.
            return state, effects
    batcher, forward = compose(state.batcher, state.sessions, now)
    if forward is None:
        return state, effects
    return evolve(state, batcher=batcher), (*effects, StartForward(forward))


def _put(state: ServerState, session: Session) -> ServerState:
    return evolve(state, sessions={**state.sessions, session.sid: session})


def _drop(state: ServerState, sid: int) -> ServerState:
    sessions = {key: value for key, value in state.sessions.items() if key != sid}
    return evolve(state, sessions=sessions, batcher=drop_prefill(state.batcher, sid))


def _received(state: ServerState, event: Received, now: float) -> ServerStep:
    frame = event.frame
    try:
        if isinstance(frame, Open):
            return _open(state, frame, event, now)
        if frame.sid not in state.sessions:
            return _park(state, frame), ()
        session = state.sessions[frame.sid]
        match frame:
            case Draft():
                check_draft(frame, session, state.vocab_size)
                return _settle(state, session.take_draft(frame, now), now)
            case NeedP():
                check_need(frame)
                session.check_need(frame)
                if session.stage is Stage.PREFILL:
                    # The row it asks for exists once the context has been read here.
                    return _park(state, frame), ()
                return state, (DrawTails(frame),)
            case Close():
                return _drop(state, frame.sid), (CloseCache(frame.sid),)
        raise ProtocolError(f"a server does not take {type(frame).__name__}")
    except ProtocolError as error:
        refusal = SendDown(Error(frame.sid, str(error)))
        return _drop(state, frame.sid), (refusal, CloseCache(frame.sid))


def _park(state: ServerState, frame: Frame) -> ServerState:
    waiting = (*state.parked.get(frame.sid, ()), frame)
    return evolve(state, parked={**state.parked, frame.sid: waiting})


def _settle(state: ServerState, session: Session, now: float) -> ServerStep:
    """Put a session back; a parallel one goes on at once unless a forward or its reading has it."""
    waits = session.stage in (Stage.PREFILL, Stage.JUDGE)
    is_held = waits or state.batcher.is_running(session.sid)
    if not isinstance(session, ParallelSession) or is_held:
        return _put(state, session), ()
    session = session.settled(now)
    effects: tuple[ServerEffect, ...] = ()
    if session.stage is Stage.JUDGE:
        effects = (
            JudgeByKeptRow(
                session.sid,
                session.position,
                session.tokens[:1],
                session.rows[:1],
                session.epoch,
            ),
        )
    return _put(state, session), effects


def _conclude(
    state: ServerState, session: ParallelSession, frames: tuple[Frame, ...], now: float
) -> ServerStep:
    """Send what was decided about a parallel session, and go on with it or end it."""
    sent: tuple[ServerEffect, ...] = tuple(SendDown(frame) for frame in frames)
    if session.answer.is_finished:
        return _drop(state, session.sid), (*sent, CloseCache(session.sid))
    state, effects = _settle(state, evolve(session, stage=Stage.DEVICE), now)
    return state, (*sent, *effects)


def _kept_row_judged(state: ServerState, event: KeptRowJudged, now: float) -> ServerStep:
    session = state.sessions[event.sid]
    assert isinstance(session, ParallelSession), "only parallel sessions keep rows"
    session, frames = after_judging(session, event.outcome)
    state, effects = _conclude(state, session, frames, now)
    if session.sid not in state.sessions:
        return state, effects
    state, more = _migrate_if_due(state, state.sessions[session.sid])
    return state, (*effects, *more)


def _open(state: ServerState, frame: Open, event: Received, now: float) -> ServerStep:
    if frame.vocab_size != state.vocab_size or frame.tokenizer_hash != state.tokenizer_hash:
        raise ProtocolError("draft and target have different tokenizers")
    if frame.sid in state.sessions:
        raise ProtocolError(f"session {frame.sid} is open already")
    check_open(frame)
    if len(frame.prompt) + frame.max_new > state.batcher.kv_capacity_tokens:
        raise ProtocolError("the request does not fit the KV memory of the server")
    text = frame.prompt[len(frame.prompt) - frame.text_tokens :]
    if not text:
        raise ProtocolError("a request needs at least one text token")
    kind = Session if event.overlap is None else partial(ParallelSession, overlap=event.overlap)
    session = kind(
        sid=frame.sid,
        contract=Contract(
            frame.rule,
            Sampling(frame.temperature, frame.top_k, frame.top_p),
            frame.row_top_k,
            state.tail_draws,
            frame.probability_bits,
            frame.is_lossy,
        ),
        seed=frame.seed,
        text=text,
        unread_tokens=len(frame.prompt) - len(text),
        answer=Answer((), frame.max_new, frame.eos),
        server=state.index,
        draft_length=event.draft_length,
        queued_s=now,
    )
    if event.answer:
        check_answer(event.answer, frame)
        session = session.resumed(event.answer, event.epoch)
    return _admit(state, session)


def _arrived(state: ServerState, event: Arrived, now: float) -> ServerStep:
    state, effects = _admit(state, evolve(event.session, stage=Stage.PREFILL))
    state, more = _unpark(state, event.session.sid, now)
    return state, (*effects, *more)


def _unpark(state: ServerState, sid: int, now: float) -> ServerStep:
    """Take the frames that waited for a session."""
    frames = state.parked.get(sid, ())
    parked = {key: value for key, value in state.parked.items() if key != sid}
    state = evolve(state, parked=parked)
    effects: tuple[ServerEffect, ...] = ()
    for frame in frames:
        state, more = _received(state, Received(frame), now)
        effects = (*effects, *more)
    return state, effects


def _admit(state: ServerState, session: Session) -> ServerStep:
    batcher = add_prefill(state.batcher, session.sid, session.tokens_to_read, session.kv_tokens)
    opened = OpenCache(session.sid, session.contract, session.seed)
    return _put(evolve(state, batcher=batcher), session), (opened,)


def _replan(state: ServerState, event: Replan, now: float) -> ServerStep:
    session = state.sessions.get(event.sid)
    if session is None:
        return state, ()
    session = evolve(session, draft_length=event.draft_length, server=event.server)
    return _migrate_if_due(_put(state, session), session)


def _migrate_if_due(state: ServerState, session: Session) -> ServerStep:
    """Pass a session on, unless a forward or the row kept here is deciding about it."""
    is_held = state.batcher.is_running(session.sid) or session.stage is Stage.JUDGE
    if session.server == state.index or is_held:
        return state, ()
    effects: tuple[ServerEffect, ...] = (CloseCache(session.sid), Migrate(session, session.server))
    return _drop(state, session.sid), effects


def _foreign_load(state: ServerState, event: ForeignLoad, now: float) -> ServerStep:
    batcher = evolve(state.batcher, foreign_rows=event.rows)
    if event.prefill_tokens:
        batcher = add_prefill(batcher, None, event.prefill_tokens, 0)
    return evolve(state, batcher=batcher), ()


def _tails_drawn(state: ServerState, event: TailsDrawn, now: float) -> ServerStep:
    need = event.request
    frame = Tails(need.sid, need.epoch, need.position, need.drawn, event.tails)
    return state, (SendDown(frame),)


def _forward_done(state: ServerState, event: ForwardDone, now: float) -> ServerStep:
    forward = state.batcher.running
    assert forward is not None, "a forward ended that did not run"
    state = evolve(state, batcher=finish(state.batcher))
    effects: tuple[ServerEffect, ...] = ()
    for work, outcome in zip(forward.works, event.outcomes, strict=True):
        if work.sid not in state.sessions:
            continue
        session = state.sessions[work.sid]
        if isinstance(session, ParallelSession):
            state, more = _read(state, session, work, outcome, forward.started_s, now)
        else:
            state, more = _decided(state, session, outcome, forward.started_s, now)
        effects += more
    for sid in forward.sids:
        if sid in state.sessions:
            state, more = _migrate_if_due(state, state.sessions[sid])
            effects += more
    return state, effects


def _read(
    state: ServerState,
    session: ParallelSession,
    work: Work,
    outcome: Outcome | None,
    started_s: float,
    now: float,
) -> ServerStep:
    """Let a parallel session take in its part of the forward that has ended."""
    session, frames = after_forward(session, work, outcome, started_s)
    state, effects = _conclude(state, session, frames, now)
    if session.sid not in state.sessions:
        return state, effects
    state, more = _unpark(state, session.sid, now)
    return state, (*effects, *more)


def _decided(
    state: ServerState, session: Session, outcome: Outcome | None, started_s: float, now: float
) -> ServerStep:
    """Commit what a forward decided about one session, and tell its device."""
    if outcome is None:
        session = evolve(session, stage=session.resume, queued_s=now)
        return _unpark(_put(state, session), session.sid, now)
    if session.stage is Stage.VERIFY:
        session, frame = _judge(session, outcome, started_s)
    else:
        assert outcome.token is not None, "decoding always brings a token"
        position = session.position
        session = session.commit((outcome.token,))
        frame = Token(
            session.sid, position, outcome.token, session.gives_turn, told_probability(outcome)
        )
    if session.answer.is_finished:
        return _drop(state, session.sid), (SendDown(frame), CloseCache(session.sid))
    stage = Stage.DEVICE if session.awaits_token or session.gives_turn else Stage.DECODE
    session = evolve(session, stage=stage, resume=stage, draft=None, queued_s=now)
    return _put(state, session), (SendDown(frame),)


def _judge(session: Session, outcome: Outcome, started_s: float) -> tuple[Session, Frame]:
    """Turn the outcome of a verification into a verdict."""
    draft = session.draft
    assert draft is not None, "a verdict needs a draft"
    rejected = outcome.accepted < len(draft.tokens)
    session = session.commit(draft.tokens[: outcome.accepted])
    is_split = outcome.token is None and not session.answer.is_finished
    if outcome.token is not None:
        session = session.commit((outcome.token,))
    session = evolve(session, epoch=session.epoch + rejected, awaits_token=is_split)
    frame = Verdict(
        sid=session.sid,
        round=draft.round,
        epoch=draft.epoch,
        base=draft.base,
        accepted=outcome.accepted,
        token=NO_TOKEN if outcome.token is None else outcome.token,
        device_turn=is_split or session.gives_turn,
        top=outcome.top if is_split else EMPTY_PAIRS,
        tails=outcome.tails if is_split else EMPTY_PAIRS,
        queue_us=min(int((started_s - session.queued_s) * 1e6), NO_TOKEN),
    )
    return session, frame


_HANDLERS: dict[type, Callable[..., ServerStep]] = {
    Received: _received,
    Arrived: _arrived,
    Replan: _replan,
    ForeignLoad: _foreign_load,
    ForwardDone: _forward_done,
    TailsDrawn: _tails_drawn,
    KeptRowJudged: _kept_row_judged,
}
