"""The server's end of many connections, without a socket or a clock of its own.

It greets, tells the sessions of one connection from those of another, keeps limits and drives the
server machine; what is to be written, computed or hung up comes back as actions. A connection that
ends takes its sessions along: their devices know what is committed and open them again.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from uara.decoding import server as srv
from uara.decoding.batcher import Batcher, Forward
from uara.decoding.control import (
    CONTROL_VERSION,
    Hello,
    Ping,
    Plan,
    Pong,
    Resume,
    Welcome,
    decode_control,
    encode_control,
    is_control,
)
from uara.decoding.evolve import evolve
from uara.decoding.protocol import (
    NO_TOKEN,
    Close,
    Draft,
    Error,
    Format,
    Frame,
    Open,
    ProtocolError,
    RuleCode,
    decode,
    encode,
)
from uara.decoding.randomness import Draws, Ledger
from uara.decoding.rules import Outcome
from uara.decoding.verifier import Verifier

MAX_PARKED_FRAMES = 8
_PLAIN = Format(RuleCode.IDS, 1, 0)  # of errors that belong to no session


class ServerLimits(BaseModel):
    """How much of a server strangers and customers may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_frame_bytes: int = Field(4 * 2**20, gt=0, description="longer frames end a connection")
    max_backlog_bytes: int = Field(
        8 * 2**20, gt=0, description="unsent bytes at which a slow reader is hung up on"
    )
    max_connections: int = Field(256, gt=0, description="connections that have greeted")
    max_strangers: int = Field(
        128, gt=0, description="connections that have not; the oldest one makes room"
    )
    max_sessions: int = Field(256, gt=0, description="requests that are open at a time")
    connection_sessions: int = Field(8, gt=0, description="of them, of one connection")
    kv_capacity_tokens: int = Field(
        200_000, gt=0, description="KV memory; a request waits until it fits"
    )
    prefill_chunk_tokens: int = Field(512, gt=0, description="prompt tokens per forward")
    tail_draws: int = Field(8, ge=1, description="target draws with a rejection (`id_prob`)")
    greeting_s: float = Field(5.0, gt=0, description="within which a connection has to greet")
    idle_s: float = Field(60.0, gt=0, description="silence after which a connection is dead")
    drain_s: float = Field(30.0, ge=0, description="given to open requests at the end")


@dataclass(frozen=True)
class Write:
    """Send bytes to a peer, over its shaped link."""

    peer: int
    data: bytes


@dataclass(frozen=True)
class Shape:
    """Set the rate and delay of what is sent to a peer."""

    peer: int
    plan: Plan


@dataclass(frozen=True)
class HangUp:
    """Close a peer's connection; it is forgotten already."""

    peer: int
    reason: str


@dataclass(frozen=True)
class Run:
    """Run a forward and report its outcomes."""

    forward: Forward


Action = Write | Shape | HangUp | Run


@dataclass
class _Peer:
    since_s: float
    last_s: float
    client: bytes | None = None  # once it has greeted
    plan: Plan | None = None
    form: Format | None = None
    sessions: dict[int, int] = field(default_factory=dict)  # its own number -> ours


class ServerFront:
    """See the module's docstring.

    Attributes:
        state: of the server machine.
        is_draining: whether new requests are refused.
        counts: of what has happened so far, by name.
    """

    def __init__(
        self,
        verifier: Verifier,
        vocab_size: int,
        tokenizer_hash: int,
        limits: ServerLimits,
        token: bytes | None = None,
    ) -> None:
        """Serve a verifier; with a token, only those who know it."""
        self._verifier = verifier
        self._limits = limits
        self._token = token
        self._peers: dict[int, _Peer] = {}
        self._owner: dict[int, tuple[int, int]] = {}  # our session -> peer, its own number
        self._next_sid = 0
        self._closing: set[int] = set()
        self._actions: list[Action] = []
        self.is_draining = False
        self.counts: dict[str, int] = {}
        batcher = Batcher(limits.prefill_chunk_tokens, limits.kv_capacity_tokens)
        self.state = srv.ServerState(0, vocab_size, tokenizer_hash, limits.tail_draws, batcher)

    @property
    def num_sessions(self) -> int:
        """Requests that are open."""
        return len(self._owner)

    @property
    def num_greeted(self) -> int:
        """Connections that have greeted."""
        return sum(peer.client is not None for peer in self._peers.values())

    # Connections

    def connect(self, number: int, now: float) -> list[Action]:
        """Take a connection in."""
        strangers = [key for key, peer in self._peers.items() if peer.client is None]
        if len(strangers) >= self._limits.max_strangers:
            self._hang_up(min(strangers, key=lambda key: self._peers[key].since_s), "crowded out")
        self._peers[number] = _Peer(now, now)
        self._count("connections")
        return self._take()

    def disconnect(self, number: int, now: float) -> list[Action]:
        """Forget a connection and free its sessions."""
        self._forget(number, now)
        return self._take()

    def tick(self, now: float) -> list[Action]:
        """Hang up on connections that have been silent for too long."""
        for number, peer in list(self._peers.items()):
            if peer.client is None and now - peer.since_s > self._limits.greeting_s:
                self._hang_up(number, "no greeting")
            elif now - peer.last_s > self._limits.idle_s:
                self._hang_up(number, "silent")
        return self._take()

    def drop(self, number: int, reason: str) -> list[Action]:
        """Hang up on a connection, whose reader is slow or whose frames have no end."""
        if number in self._peers:
            self._hang_up(number, reason)
        return self._take()

    def _forget(self, number: int, now: float) -> None:
        peer = self._peers.pop(number, None)
        if peer is None:
            return
        for sid in list(peer.sessions.values()):
            self._end(sid, now)

    def _hang_up(self, number: int, reason: str) -> None:
        self._forget(number, self._peers[number].last_s)
        self._count("hang_ups")
        self._actions.append(HangUp(number, reason))

    def _end(self, sid: int, now: float) -> None:
        """Let the machine forget a session."""
        if sid in self._owner:
            self._step(srv.Received(Close(sid)), now)

    # Frames

    def receive(self, number: int, data: bytes, now: float) -> list[Action]:
        """Take one whole frame of a peer."""
        peer = self._peers.get(number)
        if peer is None:
            return []
        peer.last_s = now
        try:
            if peer.client is None:
                self._greet(number, peer, data)
            elif is_control(data):
                self._control(number, peer, data, now)
            else:
                self._frame(number, peer, decode(data, peer.form), now)
        except ProtocolError as error:
            self._count("refused_frames")
            self._write(number, Error(NO_TOKEN, str(error)), _PLAIN)
            self._hang_up(number, str(error))
        return self._take()

    def _greet(self, number: int, peer: _Peer, data: bytes) -> None:
        hello = decode_control(data) if is_control(data) else None
        if not isinstance(hello, Hello):
            raise ProtocolError("a connection begins with a greeting")
        if self._token is not None and not hmac.compare_digest(hello.token, self._token):
            self._count("refused_tokens")
            raise ProtocolError("the token is wrong or missing")
        for other, known in list(self._peers.items()):
            if known.client == hello.client:
                self._hang_up(other, "replaced by a new connection")
        if self.num_greeted >= self._limits.max_connections:
            raise ProtocolError("the server has no room for another connection")
        peer.client = hello.client
        state, idle_s = self.state, self._limits.idle_s
        welcome = Welcome(CONTROL_VERSION, state.vocab_size, state.tokenizer_hash, idle_s)
        self._actions.append(Write(number, encode_control(welcome)))

    def _control(self, number: int, peer: _Peer, data: bytes, now: float) -> None:
        match decode_control(data):
            case Ping():
                self._actions.append(Write(number, encode_control(Pong())))
            case Plan() as plan:
                peer.plan = plan
                self._actions.append(Shape(number, plan))
                for sid in list(peer.sessions.values()):
                    self._step(srv.Replan(sid, self.state.index, plan.draft_length), now)
            case Resume() as resume:
                frame = decode(resume.opening)
                if not isinstance(frame, Open):
                    raise ProtocolError("a resumption without its opening")
                if frame.text_tokens + len(resume.tokens) != resume.base:
                    raise ProtocolError(f"a resumption at {resume.base} with another answer")
                self._open(number, peer, frame, now, resume.tokens, resume.epoch)
                self._count("resumptions")
            case other:
                raise ProtocolError(f"a server does not take {type(other).__name__}")

    def _frame(self, number: int, peer: _Peer, frame: Frame, now: float) -> None:
        if isinstance(frame, Open):
            self._open(number, peer, frame, now)
            return
        sid = peer.sessions.get(frame.sid)
        if sid is None:
            # A device that drafts ahead may not know yet that its request is over.
            if not isinstance(frame, Close):
                self._count("stray_frames")
                self._refuse(number, frame.sid, "no such session")
            return
        if isinstance(frame, Draft) and frame.tokens:
            self._count("rounds")
        if len(self.state.parked.get(sid, ())) >= MAX_PARKED_FRAMES:
            raise ProtocolError("too many frames before their time")
        self._step(srv.Received(evolve(frame, sid=sid)), now)

    def _open(
        self,
        number: int,
        peer: _Peer,
        frame: Open,
        now: float,
        answer: tuple[int, ...] = (),
        epoch: int = 0,
    ) -> None:
        if frame.sid in peer.sessions:
            # Which of the two the device means cannot be told; it has to say so anew.
            raise ProtocolError(f"session {frame.sid} is open already")
        plan = peer.plan
        if plan is None:
            raise ProtocolError("a request opens without a plan")
        reason = self._refusal(peer, plan, frame)
        if reason is not None:
            self._refuse(number, frame.sid, reason)
            return
        peer.form = Format(frame.rule, frame.vocab_size, frame.row_top_k, frame.probability_bits)
        sid, self._next_sid = self._next_sid, (self._next_sid + 1) % NO_TOKEN
        peer.sessions[frame.sid] = sid
        self._owner[sid] = (number, frame.sid)
        self._step(
            srv.Received(evolve(frame, sid=sid), plan.draft_length, plan.overlap, answer, epoch),
            now,
        )
        self._count("sessions")

    def _refusal(self, peer: _Peer, plan: Plan, frame: Open) -> str | None:
        """Say why a request cannot be served here; None if it can."""
        able, limits = self._verifier.capabilities, self._limits
        needs_rows = frame.rule is RuleCode.ID_PROB or plan.overlap is not None
        longest = able.context_tokens
        if self.is_draining:
            return "the server is shutting down"
        if self.num_sessions >= limits.max_sessions:
            return "the server has no room for another request"
        if len(peer.sessions) >= limits.connection_sessions:
            return f"more than {limits.connection_sessions} requests of one connection"
        if frame.rule not in able.rules or (frame.temperature and not able.samples):
            return f"this server does not test by {frame.rule.name} at {frame.temperature:g}"
        if needs_rows and not able.returns_rows:
            return "this server keeps no rows for parallel sessions or residuals of devices"
        if longest is not None and frame.text_tokens + frame.max_new > longest:
            return f"{frame.text_tokens} + {frame.max_new} tokens; the target reads {longest}"
        form = Format(frame.rule, frame.vocab_size, frame.row_top_k, frame.probability_bits)
        if peer.sessions and peer.form != form:
            return "requests of one connection have one format"
        return None

    # The machine

    def forward_done(self, outcomes: tuple[Outcome | None, ...], now: float) -> list[Action]:
        """Take the outcomes of the running forward."""
        ended, self._closing = self._closing, set()
        for sid in ended:
            self._verifier.close(sid)
        self._step(srv.ForwardDone(outcomes), now)
        return self._take()

    def forward_failed(self, now: float) -> list[Action]:
        """End the sessions of the running forward, since it has broken."""
        forward = self.state.batcher.running
        assert forward is not None, "no forward is running"
        for sid in forward.sids:
            if sid in self._owner:
                self._refuse(*self._owner[sid], "internal error")
                self._end(sid, now)
        return self.forward_done((None,) * len(forward.works), now)

    def _step(self, event: srv.ServerEvent, now: float) -> None:
        self.state, effects = srv.step_server(self.state, event, now)
        for effect in effects:
            self._carry_out(effect, now)

    def _carry_out(self, effect: srv.ServerEffect, now: float) -> None:
        match effect:
            case srv.SendDown(frame):
                number, own = self._owner[frame.sid]
                form = self._peers[number].form if number in self._peers else None
                if form is not None:
                    self._write(number, evolve(frame, sid=own), form)
            case srv.StartForward(forward):
                self._actions.append(Run(forward))
            case srv.DrawTails(need):
                tails = self._verifier.more_tails(need.sid, need.position, need.drawn, need.epoch)
                self._step(srv.TailsDrawn(need, tails), now)
            case srv.JudgeByKeptRow():
                outcome = self._verifier.judge(
                    effect.sid, effect.position, effect.tokens, effect.rows, effect.epoch
                )
                self._step(srv.KeptRowJudged(effect.sid, outcome), now)
            case srv.OpenCache(sid, contract, seed):
                self._verifier.open(sid, contract, Draws(seed, ledger=Ledger(False)))
            case srv.CloseCache(sid):
                self._free(sid)
            case srv.Migrate():
                raise AssertionError("a server on sockets passes no session on")

    def _free(self, sid: int) -> None:
        """Forget a session that the machine has dropped."""
        number, own = self._owner.pop(sid)
        if number in self._peers:
            self._peers[number].sessions.pop(own, None)
        parked = {key: frames for key, frames in self.state.parked.items() if key != sid}
        self.state = evolve(self.state, parked=parked)
        if self.state.batcher.is_running(sid):
            self._closing.add(sid)  # a forward is at work on its cache
        else:
            self._verifier.close(sid)

    def _refuse(self, number: int, own: int, reason: str) -> None:
        self._count("refusals")
        self._write(number, Error(own, reason), _PLAIN)

    def _write(self, number: int, frame: Frame, form: Format) -> None:
        self._actions.append(Write(number, encode(frame, form)))

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
