"""A device of the event judge: its links, its requests, and what all serving modes share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from tests.reference.judge_engine import Clock, Server, Tally

Mode = Literal["server_ar", "device_only", "sd", "psd", "async"]


@dataclass(frozen=True)
class DeviceSpec:
    """A device, its links, its requests and how they are served.

    Attributes:
        mode: serving mode; `draft_length` 0 means `server_ar` in each of them, but not in
            `device_only`.
        server: number of its server.
        draft_length: gamma, draft tokens per round or block.
        alpha: chance that a tested draft token is accepted; or one per position in the draft, the
            last holding for the rest.
        draft_token_s: mean seconds per draft token.
        device_prefill_token_s: seconds per prompt token until the device may draft; runs while
            the prompt is sent.
        uplink_bps: bits per second towards the server; frames leave one after the other.
        downlink_bps: the same towards the device.
        rtt_s: delay beyond the radio, half of it each way.
        prompt_tokens: tokens of a prompt, or the ends of a uniform law.
        output_tokens: tokens of an answer, or the ends of a uniform law.
        prompt_bits: bits sent up before the prefill.
        draft_bits: bits of a frame of so many draft tokens.
        accept_bits: bits of a verdict that accepts the whole draft.
        reject_bits: bits of a verdict that rejects, correction included.
        token_bits: bits of one token streamed down.
        arrivals_per_s: rate of the device's Poisson requests; None: each follows the last at once.
        first_token: whether the prefill's last pass gives the first token (`prefill`) or only the
            word to begin, a frame of no bits (`round`).
        psd_form: `pearl` or `pipeline`, see their machines.
        window: drafts that may be in flight unverified (`async`).
        early_first: the first token of each block is also sent alone, ahead (`async`).
        first_bits: bits of that frame; in `psd` of form `pearl` too.
        eager_row: the server forwards its own correction at once, alone (`async` and `psd` of form
            `pipeline`); otherwise with the next block.
        interruptible: a rejection stops the draft token under way (`async`).
        draft_budget: seconds of drafting after which a block is cut (`async`); `verdict`: as long
            as a verdict takes; None: blocks are never cut.
    """

    mode: Mode = "sd"
    server: int = 0
    draft_length: int = 4
    alpha: float | tuple[float, ...] = 0.8
    draft_token_s: float = 0.02
    device_prefill_token_s: float = 0.0
    uplink_bps: float = math.inf
    downlink_bps: float = math.inf
    rtt_s: float = 0.0
    prompt_tokens: int | tuple[int, int] = 200
    output_tokens: int | tuple[int, int] = 64
    prompt_bits: float = 0.0
    draft_bits: Callable[[int], float] = lambda gamma: 0.0
    accept_bits: float = 0.0
    reject_bits: float = 0.0
    token_bits: float = 0.0
    arrivals_per_s: float | None = None
    first_token: Literal["prefill", "round"] = "prefill"
    psd_form: Literal["pearl", "pipeline"] = "pearl"
    window: int = 1
    early_first: bool = False
    first_bits: float = 0.0
    eager_row: bool = True
    interruptible: bool = False
    draft_budget: float | Literal["verdict"] | None = None


@dataclass
class Record:
    """The instants of one request, seconds; `output_tokens` are wanted, `committed` were made."""

    arrived_s: float
    begun_s: float
    output_tokens: int
    prompt_at_server_s: float = math.nan
    prefilled_s: float = math.nan
    started_s: float = math.nan
    first_s: float = math.nan
    finished_s: float = math.nan
    committed: int = 0
    start_tokens: int = 0
    rounds: int = 0


class Machine(ABC):
    """What all modes share: requests one after the other, their prompt, their links, their end."""

    def __init__(
        self,
        spec: DeviceSpec,
        server: Server,
        clock: Clock,
        rng: Random,
        jitter: float,
        on_finish: Callable[[float, Machine, Record], None],
    ) -> None:
        self.spec = spec
        self.server = server
        self.clock = clock
        self.rng = rng
        self.random = rng.random
        self.on_finish = on_finish
        self.tally = Tally()
        self.records: list[Record] = []
        self.backlog: deque[float] = deque()
        self.alive = 0
        self.is_free = True
        self.is_over = True
        self.prompt_tokens = 0
        self.prompt_done = 0
        self.record = Record(0.0, 0.0, 0)
        self.half_rtt_s = spec.rtt_s / 2
        self.up_free_s = 0.0
        self.down_free_s = 0.0
        self.drafter_ready_s = 0.0
        self._alive_since_s = 0.0
        self._low_s = spec.draft_token_s * (1 - jitter)
        self._span_s = spec.draft_token_s * 2 * jitter
        given = (spec.alpha,) if isinstance(spec.alpha, float | int) else spec.alpha
        self.alphas = [given[min(i, len(given) - 1)] for i in range(spec.draft_length + 1)]

    def count_alive(self, now: float, change: int = 0) -> None:
        """Add to the time integral of the requests that wait or are served."""
        self.tally.alive_s += self.alive * (now - self._alive_since_s)
        self._alive_since_s = now
        self.alive += change

    def arrive(self, now: float) -> None:
        """Let a request arrive at the device; it begins when those before it have ended."""
        self.count_alive(now, 1)
        self.backlog.append(now)
        if self.is_free:
            self._begin(now)

    def _length(self, ends: int | tuple[int, int]) -> int:
        return ends if isinstance(ends, int) else self.rng.randint(*ends)

    def _begin(self, now: float) -> None:
        spec = self.spec
        self.is_free = self.is_over = False
        self.prompt_tokens = self._length(spec.prompt_tokens)
        self.record = Record(self.backlog.popleft(), now, self._length(spec.output_tokens))
        self.drafter_ready_s = now + spec.device_prefill_token_s * self.prompt_tokens
        self.send_prompt(now)

    @abstractmethod
    def send_prompt(self, now: float) -> None:
        """Send the prompt to where it is read."""

    def send_up(self, now: float, bits: float) -> float:
        """Send a frame behind those that the uplink still holds; seconds of its arrival."""
        self.tally.bits_up += bits
        self.up_free_s = max(now, self.up_free_s) + bits / self.spec.uplink_bps
        return self.up_free_s + self.half_rtt_s

    def send_down(self, now: float, bits: float) -> float:
        """Send a frame behind those that the downlink still holds; seconds of its arrival."""
        self.tally.bits_down += bits
        self.down_free_s = max(now, self.down_free_s) + bits / self.spec.downlink_bps
        return self.down_free_s + self.half_rtt_s

    def deliver(self, now: float, bits: float, tokens: int) -> float:
        """Commit tokens at the server and send them down; seconds of their arrival."""
        at_device = self.send_down(now, bits)
        self.commit(at_device, tokens)
        return at_device

    def commit(self, at_device_s: float, tokens: int) -> None:
        """Count tokens that reach the user at a time; the last one ends the request then."""
        record = self.record
        if record.committed == 0:
            record.first_s = at_device_s
        record.committed += tokens
        if record.committed >= record.output_tokens:
            self.is_over = True
            record.finished_s = at_device_s
            self.clock.at(at_device_s, self._finish)
            self.abandon()

    def _finish(self, now: float, _: None) -> None:
        record = self.record
        self.tally.delivered += record.output_tokens
        self.tally.surplus += record.committed - record.output_tokens
        self.records.append(record)
        self.count_alive(now, -1)
        self.ended(now)
        self.up_free_s = min(self.up_free_s, now)
        self.is_free = True
        self.on_finish(now, self, record)
        if self.backlog and self.is_free and not self.clock.stopped:
            self._begin(now)

    def draft_token_s(self) -> float:
        """Draw the time of one draft token."""
        return self._low_s + self._span_s * self.random()

    def accepted_run(self, first: int, tested: int) -> int:
        """Test positions from `first` up to below `tested`; the position of the first rejection."""
        position, alphas, random = first, self.alphas, self.random
        while position < tested and random() < alphas[position]:
            position += 1
        return position

    def count_round(self, tokens: int, seconds: float) -> None:
        """Count one round of the mode."""
        self.record.rounds += 1
        self.tally.rounds += 1
        self.tally.round_tokens += tokens
        self.tally.round_s += seconds

    def abandon(self) -> None:  # noqa: B027, most modes keep nothing there
        """Forget, at the server, the work of a request whose last token has been committed."""

    def ended(self, now: float) -> None:  # noqa: B027, likewise
        """Forget, at the device, the drafts of a request whose last token has arrived."""


class Served(Machine):
    """What the modes share in which a server reads the prompt."""

    def send_prompt(self, now: float) -> None:  # noqa: D102
        self.clock.at(self.send_up(now, self.spec.prompt_bits), self._prompt_at_server)

    def _prompt_at_server(self, now: float, _: None) -> None:
        self.record.prompt_at_server_s = now
        self.server.add_prompt(now, self)

    def prefilled(self, now: float) -> None:
        """Give the first token or the word to begin, and let the mode go on from there."""
        self.record.prefilled_s = now
        if self.spec.first_token == "prefill":
            self.record.start_tokens = 1
            at_device = self.deliver(now, self.spec.token_bits, 1)
        else:
            at_device = self.send_down(now, 0.0)
        self.record.started_s = at_device
        if not self.is_over:
            self.started(now, max(at_device, self.drafter_ready_s))

    def cached_tokens(self) -> int:
        """Count the tokens that a forward of this request reads from the cache."""
        return self.prompt_tokens + max(self.record.committed - 1, 0)

    @abstractmethod
    def started(self, now: float, at_device_s: float) -> None:
        """Begin decoding: the server is ready now, the device may draft from `at_device_s` on."""

    @abstractmethod
    def take(self, now: float) -> tuple[int, int]:
        """Hand the waiting work to a pass: new tokens, cached tokens read."""

    @abstractmethod
    def passed(self, now: float) -> None:
        """Judge what the pass has computed."""
