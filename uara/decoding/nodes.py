"""What a run under the virtual clock is made of: settings, and devices and servers at run time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from uara.decoding.batcher import Batcher
from uara.decoding.contract import Contract
from uara.decoding.device import (
    Corrected,
    DeviceEffect,
    DeviceEvent,
    DeviceState,
    Drafted,
    DraftToken,
    step_device,
)
from uara.decoding.draft_budget import DraftBudget
from uara.decoding.drafter import Drafter
from uara.decoding.estimates import RunningTimes
from uara.decoding.links import FluidLink
from uara.decoding.local_device import LocalState, step_local_device
from uara.decoding.model_verifier import ModelVerifier
from uara.decoding.overlap import Overlap, overlap_of
from uara.decoding.parallel_device import ParallelDeviceState, step_parallel_device
from uara.decoding.parallel_session import ParallelSession
from uara.decoding.protocol import Open
from uara.decoding.randomness import Draws, Ledger
from uara.decoding.records import Records
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile
from uara.decoding.server import ServerState
from uara.decoding.shadow import Shadow
from uara.decoding.traffic import FrameRecord
from uara.serving.modes import MODES

AnyDeviceState = DeviceState | ParallelDeviceState | LocalState


@dataclass(frozen=True)
class Jitter:
    """How modelled times scatter: normal factors of computing, exponential additions on the path.

    Attributes:
        draft_sd: of a draft step's time, relative.
        forward_sd: of a forward's time, relative.
        path_mean_s: added to each way; frames keep their order.
        seed: of the scatter.
    """

    draft_sd: float = 0.08
    forward_sd: float = 0.03
    path_mean_s: float = 3e-3
    seed: int = 0


class Scatter:
    """Draws the scatter of times, one stream per kind; none without a `Jitter`."""

    def __init__(self, jitter: Jitter | None) -> None:
        """Start the streams."""
        self._jitter = jitter
        seed = 0 if jitter is None else jitter.seed
        self._streams = [np.random.default_rng([seed, kind]) for kind in range(3)]

    def draft(self, duration_s: float) -> float:
        """Scatter the time of a draft step."""
        return duration_s if self._jitter is None else duration_s * self._factor(0)

    def forward(self, duration_s: float) -> float:
        """Scatter the time of a forward."""
        return duration_s if self._jitter is None else duration_s * self._factor(1)

    def path(self, one_way_s: float) -> float:
        """Lengthen a way."""
        if self._jitter is None:
            return one_way_s
        return one_way_s + float(self._streams[2].exponential(self._jitter.path_mean_s))

    def _factor(self, kind: int) -> float:
        assert self._jitter is not None, "no scatter without its size"
        sd = self._jitter.forward_sd if kind else self._jitter.draft_sd
        return max(0.1, 1 + sd * float(self._streams[kind].normal()))


@dataclass(frozen=True)
class KernelSettings:
    """What the kernel needs besides models, requests and plans.

    Attributes:
        slot_s: time between plans.
        contract: of every session.
        session_seed: gives a session's seed.
        frame_overhead_bytes: added to every frame on a link.
        prefill_chunk_tokens: prompt tokens that one forward takes along.
        tokenizer_hash: sent with every request.
        drain_slots: the run is stopped so many slots after the last arrival.
        mode: serving mode of requests where the plan names none.
        window: of mode `async`.
        draft_budget: drafting time of a block of mode `async`; None: blocks are never cut.
        overlap: form of parallel sessions in place of the one that belongs to their mode.
        jitter: scatter of times; None: times are those of the profiles.
        watchdog_s: a run in which requests are alive and nothing is committed for so long is
            stopped with `StalledRunError`; None: links may be silent for ever.
        priced_row_bits: added to a draft per token, for rows that are priced but not built.
        records: what is kept beside the requests: nothing, a record of every round, or of every
            frame and forward too.
        shadows: whether tokens of the server alone come with their probability, so that devices
            estimate acceptance without speculating.
        checks_draws: whether a draw that decides twice stops the run.
    """

    slot_s: float
    contract: Contract
    session_seed: Callable[[int], int]
    frame_overhead_bytes: int = 40
    prefill_chunk_tokens: int = 512
    tokenizer_hash: int = 0
    drain_slots: int = 4000
    mode: str = "sd"
    window: int = 1
    draft_budget: DraftBudget | None = None
    overlap: Overlap | None = None
    jitter: Jitter | None = None
    watchdog_s: float | None = None
    priced_row_bits: float = 0.0
    records: Records = "rounds"
    shadows: bool = False
    checks_draws: bool = True

    def draws(self, seed: int) -> Draws:
        """Make the draws of one end of a session."""
        return Draws(seed, ledger=Ledger(self.checks_draws))

    def opening(self, request: Request, vocab_size: int) -> Open:
        """Make the frame that opens a request; tokens that no model reads are zeros."""
        contract = self.contract
        unread = request.prompt_tokens - len(request.text)
        return Open(
            sid=request.sid,
            rule=contract.rule,
            row_top_k=contract.top_k,
            vocab_size=vocab_size,
            text_tokens=len(request.text),
            max_new=request.max_new,
            tokenizer_hash=self.tokenizer_hash,
            seed=self.session_seed(request.sid),
            temperature=contract.sampling.temperature,
            top_k=contract.sampling.top_k,
            top_p=contract.sampling.top_p,
            eos=request.eos,
            prompt=(0,) * unread + request.text,
            probability_bits=contract.probability_bits,
            is_lossy=contract.is_lossy,
        )

    def server_state(self, index: int, profile: ServerProfile, vocab_size: int) -> ServerState:
        """Make the machine of a server."""
        batcher = Batcher(self.prefill_chunk_tokens, profile.kv_capacity_tokens)
        return ServerState(
            index, vocab_size, self.tokenizer_hash, self.contract.tail_draws, batcher
        )

    def first_state(self, mode: str) -> AnyDeviceState:
        """Make the machine of a request that begins in a mode.

        The server decoding alone is draft length 0 of the run's own mode.
        """
        if mode == "server_ar":
            mode = self.mode if MODES[self.mode].drafts and MODES[self.mode].uses_server else "sd"
        if mode == "device_only":
            return LocalState()
        overlap = self.overlap or overlap_of(mode, self.window, self.draft_budget)
        return DeviceState() if overlap is None else ParallelDeviceState(overlap)


class StalledRunError(RuntimeError):
    """Requests are alive and nothing has been committed for longer than the watchdog allows."""


class Parcel(msgspec.Struct, frozen=True, gc=False):
    """A frame on a link."""

    sid: int
    data: bytes
    record: FrameRecord | None = None


@dataclass
class DeviceNode:
    """A device at run time."""

    profile: DeviceProfile
    uplink: FluidLink[Parcel] = field(default_factory=FluidLink)
    downlink: FluidLink[Parcel] = field(default_factory=FluidLink)
    state: AnyDeviceState = field(default_factory=DeviceState)
    waiting: deque[Request] = field(default_factory=deque)
    request: Request | None = None
    drafter: Drafter | None = None
    shadow: Shadow | None = None
    times: RunningTimes = field(default_factory=RunningTimes)
    unread_tokens: int = 0
    busy_until_s: float = 0.0
    draft_s: float = 0.0

    def link(self, is_up: bool) -> FluidLink[Parcel]:
        """Return the link of a direction."""
        return self.uplink if is_up else self.downlink

    @property
    def dropped(self) -> int:
        """Frames that were stale or came twice."""
        return self.state.dropped if isinstance(self.state, ParallelDeviceState) else 0

    @property
    def epoch(self) -> int:
        """Rejections of the request so far."""
        return 0 if isinstance(self.state, LocalState) else self.state.epoch

    @property
    def overlap(self) -> Overlap | None:
        """Form of the session if it is a parallel one."""
        return self.state.overlap if isinstance(self.state, ParallelDeviceState) else None

    def draft(self, step: DraftToken) -> tuple[Drafted, float]:
        """Draw the tokens of a draft step; return what it brings, and its time in seconds."""
        assert self.drafter is not None, "drafting needs a request"
        drawn = self.drafter.draft(
            step.context, step.epoch, step.branches, step.guesses, step.committed
        )
        branches, profile = len(step.branches), self.profile
        extra = drawn.tokens_read - 1 + drawn.branch_tokens_read - branches + self.unread_tokens
        self.unread_tokens = 0
        event = Drafted(
            drawn.token, drawn.row, self.state.sid, step.epoch, drawn.guesses, drawn.grown
        )
        step_s = profile.draft_time_s * (1 + profile.branch_share * branches)
        return event, step_s + extra * profile.read_token_s

    def work(self, start_s: float, duration_s: float, *, reads: bool) -> None:
        """Be busy with a draft step; one that `reads` a prompt says nothing of those to come."""
        self.draft_s += duration_s
        self.busy_until_s = start_s + duration_s
        if not reads:
            self.times.draft(duration_s)

    def correct(self, corrected: Corrected) -> None:
        """Let the draft model take up the branch behind a correction."""
        assert self.drafter is not None, "a correction needs a request"
        self.drafter.correct(corrected.position, corrected.token, corrected.epoch)

    def step(self, event: DeviceEvent) -> tuple[DeviceEffect, ...]:
        """Advance the machine."""
        match self.state:
            case ParallelDeviceState():
                self.state, effects = step_parallel_device(self.state, event)
            case LocalState():
                self.state, effects = step_local_device(self.state, event)
            case DeviceState():
                self.state, effects = step_device(self.state, event)
        return effects


@dataclass
class ServerNode:
    """A server at run time."""

    profile: ServerProfile
    verifier: ModelVerifier
    state: ServerState
    busy_s: float = 0.0
    idle_since_s: float = 0.0

    def dropped(self, sid: int) -> tuple[int, int]:
        """Count a session's frames that were stale, and those that came twice."""
        session = self.state.sessions.get(sid)
        if not isinstance(session, ParallelSession):
            return 0, 0
        return session.stale, session.duplicates
