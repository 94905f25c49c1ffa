"""The clock, the tallies and the server of the event judge; nothing of the project is imported."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol


class Clock:
    """Events in the order of their time; equal times keep the order in which they were set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stopped = False
        self._heap: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self._count = 0

    def at(self, time_s: float, call: Callable[[float, Any], None], what: Any = None) -> None:
        """Call `call(time_s, what)` then."""
        self._count += 1
        heapq.heappush(self._heap, (time_s, self._count, call, what))

    def run(self) -> None:
        """Let events happen until none is left or somebody has stopped the clock."""
        heap = self._heap
        pop = heapq.heappop
        while heap and not self.stopped:
            self.now, _, call, what = pop(heap)
            call(self.now, what)


@dataclass
class Tally:
    """Sums over one device and a span of time."""

    rounds: int = 0
    round_tokens: int = 0
    round_s: float = 0.0
    passes: int = 0
    waits: int = 0
    wait_s: float = 0.0
    verify_s: float = 0.0
    rows: float = 0.0
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    discarded: int = 0
    delivered: int = 0
    surplus: int = 0
    alive_s: float = 0.0
    bits_up: float = 0.0
    bits_down: float = 0.0


@dataclass
class ServerTally:
    """Sums over one server and a span of time."""

    passes: int = 0
    busy_s: float = 0.0
    rows: float = 0.0
    tokens: float = 0.0
    prefill_tokens: float = 0.0
    decode_work_s: float = 0.0
    prefill_work_s: float = 0.0
    foreign_work_s: float = 0.0


@dataclass(frozen=True)
class ServerSpec:
    """A server: the time of one forward pass, its prefill rule and its other customers.

    Attributes:
        fixed_s: seconds of a pass that carries nothing.
        per_row_s: seconds for each sequence in a pass, a prompt's chunk counting as one.
        per_token_s: seconds for each new token.
        per_context_s: seconds for each cached token that is read.
        chunk_tokens: prompt tokens that one pass takes along at most, first come first served.
        foreign_rows: sequences of other customers in each pass, one new token each; above zero
            the server never rests.
        foreign_context_tokens: cached tokens that each of them reads.
    """

    fixed_s: float = 0.1
    per_row_s: float = 0.0
    per_token_s: float = 0.0
    per_context_s: float = 0.0
    chunk_tokens: int = 512
    foreign_rows: float = 0.0
    foreign_context_tokens: float = 0.0


class Customer(Protocol):
    """What a server knows of a request: its prompt first, then the work it brings to a pass."""

    tally: Tally
    prompt_tokens: int
    prompt_done: int

    def take(self, now: float) -> tuple[int, int]:
        """Hand over what waits: new tokens, cached tokens read."""

    def passed(self, now: float) -> None:
        """Learn that the pass has ended."""

    def prefilled(self, now: float) -> None:
        """Learn that the pass with the prompt's last chunk has ended."""


class Server:
    """One pass at a time; when free, it starts a pass with everything that waits.

    A server that `is_closed` serves no other customers any more, so that a simulation can end.
    """

    def __init__(self, spec: ServerSpec, clock: Clock, rng: Random, jitter: float) -> None:
        self.spec = spec
        self.clock = clock
        self.tally = ServerTally()
        self._random = rng.random
        self._low, self._span = 1.0 - jitter, 2.0 * jitter
        self._waiting: list[Customer] = []
        self._prompts: deque[Customer] = deque()
        self._taken = False
        self.is_closed = False
        if spec.foreign_rows > 0:
            self._plan(0.0)

    def join(self, now: float, customer: Customer) -> None:
        """Put a sequence into the next pass."""
        self._waiting.append(customer)
        if not self._taken:
            self._plan(now)

    def add_prompt(self, now: float, customer: Customer) -> None:
        """Put a prompt behind those that wait for prefill."""
        customer.prompt_done = 0
        self._prompts.append(customer)
        if not self._taken:
            self._plan(now)

    def _plan(self, now: float) -> None:
        # The pass starts after the arrivals that are due at this instant: equals fare alike.
        self._taken = True
        self.clock.at(now, self._start)

    def _start(self, now: float, _: None) -> None:
        spec, tally = self.spec, self.tally
        batch, self._waiting = self._waiting, []
        new_tokens = cached_tokens = 0
        for customer in batch:
            new, cached = customer.take(now)
            new_tokens += new
            cached_tokens += cached
        decode_s = (
            spec.per_row_s * len(batch)
            + spec.per_token_s * new_tokens
            + spec.per_context_s * cached_tokens
        )
        ready, prefill_tokens, prefill_s = self._take_prompts()
        foreign = spec.foreign_rows
        foreign_s = foreign * (
            spec.per_row_s + spec.per_token_s + spec.per_context_s * spec.foreign_context_tokens
        )
        duration_s = spec.fixed_s + decode_s + prefill_s + foreign_s
        duration_s *= self._low + self._span * self._random()
        tally.passes += 1
        tally.busy_s += duration_s
        tally.rows += len(batch)
        tally.tokens += new_tokens
        tally.prefill_tokens += prefill_tokens
        tally.decode_work_s += decode_s
        tally.prefill_work_s += prefill_s
        tally.foreign_work_s += foreign_s
        rows = len(batch) + foreign
        for customer in batch:
            own = customer.tally
            own.passes += 1
            own.verify_s += duration_s
            own.rows += rows
        self.clock.at(now + duration_s, self._end, (batch, ready))

    def _take_prompts(self) -> tuple[list[Customer], int, float]:
        """Fill a pass with prompt tokens: prompts that become ready, tokens, seconds."""
        spec, prompts = self.spec, self._prompts
        ready: list[Customer] = []
        taken, work_s = 0, 0.0
        while prompts and taken < spec.chunk_tokens:
            first = prompts[0]
            chunk = min(spec.chunk_tokens - taken, first.prompt_tokens - first.prompt_done)
            work_s += (
                spec.per_row_s + spec.per_token_s * chunk + spec.per_context_s * first.prompt_done
            )
            taken += chunk
            first.prompt_done += chunk
            if first.prompt_done == first.prompt_tokens:
                ready.append(prompts.popleft())
        return ready, taken, work_s

    def _end(self, now: float, passed: tuple[list[Customer], list[Customer]]) -> None:
        batch, ready = passed
        for customer in batch:
            customer.passed(now)
        for customer in ready:
            customer.prefilled(now)
        self._taken = False
        if self._waiting or self._prompts or (self.spec.foreign_rows > 0 and not self.is_closed):
            self._plan(now)
