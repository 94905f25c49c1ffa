"""A device's end of its connection, without a socket, a model or a clock of its own.

It greets, opens requests one after the other, and drives the device machine; what is to be written
or computed comes back as actions. A lost connection costs a request nothing that was committed: the
server is told the answer so far, and the rest is drafted again, with the same random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from uara.decoding import device as dev
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
    pack_answer,
)
from uara.decoding.device import DeviceState, step_device
from uara.decoding.parallel_device import ParallelDeviceState, step_parallel_device
from uara.decoding.protocol import (
    NO_TOKEN,
    Error,
    Format,
    Frame,
    Open,
    ProtocolError,
    RuleCode,
    Token,
    Verdict,
    decode,
    encode,
)

MachineState = DeviceState | ParallelDeviceState
_PLAIN = Format(RuleCode.IDS, 1, 0)  # of errors that belong to no session


@dataclass(frozen=True)
class Write:
    """Send bytes up: a frame of a request over the shaped link, or a control frame past it."""

    data: bytes
    frame: Frame | None = None


@dataclass(frozen=True)
class Compute:
    """Run a job of the draft model; its event counts only with this number."""

    job: dev.DraftToken | dev.Resolve
    number: int


@dataclass(frozen=True)
class HangUp:
    """Close the connection and make a new one."""

    reason: str


@dataclass(frozen=True)
class Judged:
    """A verdict came: of `drafted` tokens, `accepted` stand."""

    accepted: int
    drafted: int


@dataclass(frozen=True)
class Finished:
    """The request is over with this answer; `refusal` says why if it failed."""

    tokens: tuple[int, ...]
    refusal: str = ""


Action = Write | Compute | HangUp | Judged | Finished


class DeviceFront:
    """See the module's docstring.

    Attributes:
        state: of the device machine; None without a request.
        welcome: of the server; None while there is no connection.
        resumptions: how often a request went on after a lost connection.
    """

    def __init__(
        self, client: bytes, token: bytes = b"", max_losses: int = 8, stall_s: float = 120.0
    ) -> None:
        """Make the end of one device.

        Args:
            client: 16 random bytes that are this device's name.
            token: secret of the server.
            max_losses: lost connections in a row, without a token between them, that a request
                survives.
            stall_s: time without a token after which the connection is made anew, whatever signs
                of life there are.
        """
        self._client = client
        self._token = token
        self._max_losses = max_losses
        self._stall_s = stall_s
        self._progress: tuple[int, float] | None = None  # tokens, and since when
        self._losses = 0
        self._number = 0
        self._heard_s = 0.0
        self._spoke_s = 0.0
        self._plan = Plan(0)
        self._opening: Open | None = None
        self._form: Format | None = None
        self._actions: list[Action] = []
        self.state: MachineState | None = None
        self.welcome: Welcome | None = None
        self.resumptions = 0

    # Requests

    def start(self, opening: Open, plan: Plan) -> list[Action]:
        """Begin a request; it goes out once there is a connection."""
        assert self.state is None, "a device serves one request at a time"
        overlap = plan.overlap
        self.state = DeviceState() if overlap is None else ParallelDeviceState(overlap)
        self._opening, self._plan, self._losses = opening, plan, 0
        self._form = Format(
            opening.rule, opening.vocab_size, opening.row_top_k, opening.probability_bits
        )
        self._number += 1
        self._advance(dev.Start(opening, plan.draft_length), is_silent=True)
        self._enter()
        return self._take()

    def replan(self, plan: Plan) -> list[Action]:
        """Follow another plan from now on; the mode of a running request stays."""
        self._plan = plan
        if self.welcome is not None:
            self._actions.append(Write(encode_control(plan)))
        if self.state is not None:
            self._advance(dev.Replan(plan.draft_length))
        return self._take()

    def computed(self, event: dev.Drafted | dev.Resolved, number: int) -> list[Action]:
        """Take the result of a job; one from before a lost connection is void."""
        if number == self._number and self.state is not None:
            self._advance(event)
        return self._take()

    def give_up(self, reason: str) -> list[Action]:
        """End the request with what is committed."""
        if self.state is not None:
            self._finish(self.state.answer.tokens, reason)
        return self._take()

    # Connections

    def connected(self, now: float) -> list[Action]:
        """Greet the server."""
        self._heard_s = self._spoke_s = now
        hello = Hello(CONTROL_VERSION, self._client, self._token)
        self._actions.append(Write(encode_control(hello)))
        return self._take()

    def disconnected(self) -> list[Action]:
        """Note that the connection is gone, or that none could be made."""
        self.welcome = None
        self._losses += 1
        if self._losses > self._max_losses:
            return self.give_up(f"the connection was lost {self._losses} times without a token")
        return self._take()

    def tick(self, now: float) -> list[Action]:
        """Ask for a sign of life after a silence; hang up after a long one."""
        limit_s = self.welcome.idle_s if self.welcome is not None else 5.0
        if now - self._heard_s > limit_s:
            self._actions.append(HangUp("the server is silent"))
        elif self._is_stalled(now):
            self._actions.append(HangUp("no token has come for too long"))
        elif self.welcome is not None and now - max(self._heard_s, self._spoke_s) > limit_s / 3:
            self._spoke_s = now
            self._actions.append(Write(encode_control(Ping())))
        return self._take()

    def _is_stalled(self, now: float) -> bool:
        count = -1 if self.state is None else len(self.state.answer.tokens)
        if self._progress is None or count != self._progress[0]:
            self._progress = (count, now)
        if self.state is None or now - self._progress[1] <= self._stall_s:
            return False
        self._progress = None
        return True

    def receive(self, data: bytes, now: float) -> list[Action]:
        """Take one whole frame of the server."""
        self._heard_s = now
        try:
            if is_control(data):
                self._control(decode_control(data))
            elif self.welcome is None:
                self._refused(decode(data, _PLAIN))
            elif self.state is not None:
                self._frame(decode(data, self._form))
        except ProtocolError as error:
            self._actions.append(HangUp(str(error)))
        return self._take()

    def _control(self, frame: object) -> None:
        match frame:
            case Welcome():
                if self.welcome is not None:
                    raise ProtocolError("a second welcome")
                self.welcome = frame
                self._enter()
            case Pong():
                pass
            case other:
                raise ProtocolError(f"a device does not take {type(other).__name__}")

    def _refused(self, frame: Frame) -> None:
        """Take the answer of a server that does not welcome this device."""
        if not isinstance(frame, Error):
            raise ProtocolError("a server's first frame is its welcome")
        if self.state is not None:
            self._finish(self.state.answer.tokens, frame.text)
        self._actions.append(HangUp(frame.text))

    def _enter(self) -> None:
        """Open the request, or go on with it."""
        if self.welcome is None or self.state is None:
            return
        assert self._opening is not None, "a request has an opening"
        assert self._form is not None, "a request has a format"
        self._number += 1
        self._actions.append(Write(encode_control(self._plan)))
        opening, answer = encode(self._opening, self._form), self.state.answer.tokens
        if answer:
            self.resumptions += 1
            resume = Resume(opening, pack_answer(answer), self.state.epoch, self.state.position)
            self._actions.append(Write(encode_control(resume)))
        else:
            self._actions.append(Write(opening, self._opening))
        self._advance(dev.Reconnected())

    def _frame(self, frame: Frame) -> None:
        state = self.state
        assert state is not None, "frames are for requests"
        if isinstance(frame, Error) and frame.sid == NO_TOKEN:
            raise ProtocolError(f"the server hangs up: {frame.text}")
        if frame.sid != state.sid:
            return
        self._check(frame, state)
        if isinstance(frame, Verdict) and isinstance(state, DeviceState):
            self._actions.append(Judged(frame.accepted, len(state.block)))
        self._advance(dev.Received(frame, self._heard_s))

    def _check(self, frame: Frame, state: MachineState) -> None:
        """Check what the machine and the draft model rely on."""
        form = self._form
        assert form is not None, "a request has a format"
        if isinstance(frame, Token | Verdict) and form.vocab_size <= frame.token != NO_TOKEN:
            raise ProtocolError(f"token id {frame.token} is outside {form.vocab_size} ids")
        if not isinstance(frame, Verdict):
            return
        if isinstance(state, DeviceState) and frame.accepted > len(state.block):
            raise ProtocolError(f"{frame.accepted} tokens of {len(state.block)} were accepted")
        if len(frame.top) and form.rule is not RuleCode.ID_PROB:
            raise ProtocolError("a row came down that this request has no use for")

    # The machine

    def _advance(self, event: dev.DeviceEvent, *, is_silent: bool = False) -> None:
        state = self.state
        assert state is not None, "events are for requests"
        before = len(state.answer.tokens)
        effects: tuple[dev.DeviceEffect, ...]
        if isinstance(state, DeviceState):
            self.state, effects = step_device(state, event)
        else:
            self.state, effects = step_parallel_device(state, event)
        if len(self.state.answer.tokens) > before:
            self._losses = 0
        for effect in effects:
            match effect:
                case dev.SendUp(frame):
                    if self.welcome is not None and not is_silent:
                        assert self._form is not None, "a request has a format"
                        self._actions.append(Write(encode(frame, self._form), frame))
                case dev.DraftToken() | dev.Resolve():
                    self._actions.append(Compute(effect, self._number))
                case dev.Judged():
                    self._actions.append(Judged(effect.accepted, effect.drafted))
                case dev.Finish():
                    self._finish(effect.tokens, effect.refusal)

    def _finish(self, tokens: tuple[int, ...], refusal: str) -> None:
        self.state, self._opening = None, None
        self._actions.append(Finished(tokens, refusal))

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
