"""The server as a pure machine: (state, event, now) -> (state, effects), without model or socket.

Work queues per session; a forward starts whenever the server is idle and something waits, and takes
along everything that waits, with prompts read in chunks, first come first served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from uara.decoding.answer import Answer
from uara.decoding.batcher import Batcher, Forward, add_prefill, compose, drop_prefill, finish
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
from uara.decoding.rules import EMPTY_PAIRS, Outcome, Pairs, Sampling
from uara.decoding.session import Session, Stage
from uara.decoding.verifier import Contract


@dataclass(frozen=True)
class ServerState:
    """All that a server knows.

    Attributes:
        index: of the server.
        vocab_size: of its target model.
        tokenizer_hash: of its tokenizer; a device with another one is refused.
        tail_draws: target draws that it sends with a rejection under `id_prob`.
        batcher: what waits and what runs.
        sessions: by id.
        parked: a frame that arrived before its session did.
    """

    index: int
    vocab_size: int
    tokenizer_hash: int
    tail_draws: int
    batcher: Batcher
    sessions: Mapping[int, Session] = field(default_factory=dict)
    parked: Mapping[int, Frame] = field(default_factory=dict)


@dataclass(frozen=True)
class Received:
    """A frame came up; the plan of its session goes with it."""

    frame: Frame
    draft_length: int = 0


@dataclass(frozen=True)
class Arrived:
    """A session came from another server."""

    session: Session


@dataclass(frozen=True)
class Replan:
    """The controller's plan for a session: which server it belongs to, and its draft length."""

    sid: int
    server: int
    draft_length: int


@dataclass(frozen=True)
class ForeignLoad:
    """Sequences in every forward, and prompt tokens in the queue, that belong to other networks."""

    rows: int
    prefill_tokens: int = 0


@dataclass(frozen=True)
class ForwardDone:
    """The running forward has ended; one outcome per work, None for a mere reading."""

    outcomes: tuple[Outcome | None, ...]


@dataclass(frozen=True)
class TailsDrawn:
    """More tail draws at a rejected position."""

    request: NeedP
    tails: Pairs


ServerEvent = Received | Arrived | Replan | ForeignLoad | ForwardDone | TailsDrawn


@dataclass(frozen=True)
class SendDown:
    """Send a frame to the session's device."""

    frame: Frame


@dataclass(frozen=True)
class StartForward:
    """Run a forward; its end is an event."""

    forward: Forward


@dataclass(frozen=True)
class DrawTails:
    """Draw more tail tokens at a rejected position."""

    request: NeedP


@dataclass(frozen=True)
class OpenCache:
    """Make an empty cache for a session."""

    sid: int
    contract: Contract
    seed: int


@dataclass(frozen=True)
class CloseCache:
    """Free a session's cache."""

    sid: int


@dataclass(frozen=True)
class Migrate:
    """Pass a session on to another server, without its cache."""

    session: Session
    server: int


ServerEffect = SendDown | StartForward | DrawTails | OpenCache | CloseCache | Migrate
ServerStep = tuple[ServerState, tuple[ServerEffect, ...]]


def step_server(state: ServerState, event: ServerEvent, now: float) -> ServerStep:
    """Advance the server by one event at time `now` (seconds), and start a forward if it can.

    A frame that breaks the protocol ends its session with an `Error` frame.
    """
    handlers: dict[type, Callable[..., ServerStep]] = {
        Received: _received,
        Arrived: _arrived,
        Replan: _replan,
        ForeignLoad: _foreign_load,
        ForwardDone: _forward_done,
        TailsDrawn: _tails_drawn,
    }
    state, effects = handlers[type(event)](state, event, now)
    batcher, forward = compose(state.batcher, state.sessions, now)
    if forward is None:
        return state, effects
    return replace(state, batcher=batcher), (*effects, StartForward(forward))


def _put(state: ServerState, session: Session) -> ServerState:
    return replace(state, sessions={**state.sessions, session.sid: session})


def _drop(state: ServerState, sid: int) -> ServerState:
    sessions = {key: value for key, value in state.sessions.items() if key != sid}
    return replace(state, sessions=sessions, batcher=drop_prefill(state.batcher, sid))


def _received(state: ServerState, event: Received, now: float) -> ServerStep:
    frame = event.frame
    try:
        if isinstance(frame, Open):
            return _open(state, frame, event.draft_length, now)
        if frame.sid not in state.sessions:
            return replace(state, parked={**state.parked, frame.sid: frame}), ()
        session = state.sessions[frame.sid]
        match frame:
            case Draft():
                return _put(state, session.take_draft(frame, now)), ()
            case NeedP():
                session.check_need(frame)
                if session.stage is Stage.PREFILL:
                    # The row it asks for exists once the context has been read here.
                    return replace(state, parked={**state.parked, frame.sid: frame}), ()
                return state, (DrawTails(frame),)
            case Close():
                return _drop(state, frame.sid), (CloseCache(frame.sid),)
        raise ProtocolError(f"a server does not take {type(frame).__name__}")
    except ProtocolError as error:
        refusal = SendDown(Error(frame.sid, str(error)))
        return _drop(state, frame.sid), (refusal, CloseCache(frame.sid))


def _open(state: ServerState, frame: Open, draft_length: int, now: float) -> ServerStep:
    if frame.vocab_size != state.vocab_size or frame.tokenizer_hash != state.tokenizer_hash:
        raise ProtocolError("draft and target have different tokenizers")
    if frame.sid in state.sessions:
        raise ProtocolError(f"session {frame.sid} is open already")
    if len(frame.prompt) + frame.max_new > state.batcher.kv_capacity_tokens:
        raise ProtocolError("the request does not fit the KV memory of the server")
    text = frame.prompt[len(frame.prompt) - frame.text_tokens :]
    if not text:
        raise ProtocolError("a request needs at least one text token")
    session = Session(
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
        draft_length=draft_length,
        queued_s=now,
    )
    return _admit(state, session)


def _arrived(state: ServerState, event: Arrived, now: float) -> ServerStep:
    state, effects = _admit(state, replace(event.session, stage=Stage.PREFILL))
    frame = state.parked.get(event.session.sid)
    if frame is None:
        return state, effects
    parked = {key: value for key, value in state.parked.items() if key != frame.sid}
    state, more = _received(replace(state, parked=parked), Received(frame), now)
    return state, (*effects, *more)


def _admit(state: ServerState, session: Session) -> ServerStep:
    batcher = add_prefill(state.batcher, session.sid, session.tokens_to_read, session.kv_tokens)
    opened = OpenCache(session.sid, session.contract, session.seed)
    return _put(replace(state, batcher=batcher), session), (opened,)


def _replan(state: ServerState, event: Replan, now: float) -> ServerStep:
    session = state.sessions.get(event.sid)
    if session is None:
        return state, ()
    session = replace(session, draft_length=event.draft_length, server=event.server)
    return _migrate_if_due(_put(state, session), session)


def _migrate_if_due(state: ServerState, session: Session) -> ServerStep:
    """Pass a session on, unless it is part of the running forward."""
    if session.server == state.index or state.batcher.is_running(session.sid):
        return state, ()
    effects: tuple[ServerEffect, ...] = (CloseCache(session.sid), Migrate(session, session.server))
    return _drop(state, session.sid), effects


def _foreign_load(state: ServerState, event: ForeignLoad, now: float) -> ServerStep:
    batcher = replace(state.batcher, foreign_rows=event.rows)
    if event.prefill_tokens:
        batcher = add_prefill(batcher, None, event.prefill_tokens, 0)
    return replace(state, batcher=batcher), ()


def _tails_drawn(state: ServerState, event: TailsDrawn, now: float) -> ServerStep:
    need = event.request
    frame = Tails(need.sid, need.epoch, need.position, need.drawn, event.tails)
    return state, (SendDown(frame),)


def _forward_done(state: ServerState, event: ForwardDone, now: float) -> ServerStep:
    forward = state.batcher.running
    assert forward is not None, "a forward ended that did not run"
    state = replace(state, batcher=finish(state.batcher))
    effects: tuple[ServerEffect, ...] = ()
    for work, outcome in zip(forward.works, event.outcomes, strict=True):
        if work.sid not in state.sessions:
            continue
        state, more = _decided(state, state.sessions[work.sid], outcome, forward.started_s, now)
        effects += more
    for sid in forward.sids:
        if sid in state.sessions:
            state, more = _migrate_if_due(state, state.sessions[sid])
            effects += more
    return state, effects


def _decided(
    state: ServerState, session: Session, outcome: Outcome | None, started_s: float, now: float
) -> ServerStep:
    """Commit what a forward decided about one session, and tell its device."""
    if outcome is None:
        session = replace(session, stage=session.resume, queued_s=now)
        state, parked = _put(state, session), state.parked.get(session.sid)
        if not isinstance(parked, NeedP):
            return state, ()
        rest = {key: value for key, value in state.parked.items() if key != session.sid}
        return replace(state, parked=rest), (DrawTails(parked),)
    if session.stage is Stage.VERIFY:
        session, frame = _judge(session, outcome, started_s)
    else:
        assert outcome.token is not None, "decoding always brings a token"
        position = session.position
        session = session.commit((outcome.token,))
        frame = Token(session.sid, position, outcome.token, session.gives_turn)
    if session.answer.is_finished:
        return _drop(state, session.sid), (SendDown(frame), CloseCache(session.sid))
    stage = Stage.DEVICE if session.awaits_token or session.gives_turn else Stage.DECODE
    session = replace(session, stage=stage, resume=stage, draft=None, queued_s=now)
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
    session = replace(session, epoch=session.epoch + rejected, awaits_token=is_split)
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
