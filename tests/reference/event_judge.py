"""An independent simulator of draft/verify serving, event by event: the judge of the formulas.

It imports nothing of the project. What holds in every mode:

* A request begins at its device when it arrives, or when the one before it has ended. Its prompt
  goes up, waits for prefill in chunks, and the prefill's last pass gives the first token (or only
  the word to begin: `first_token`). Then the mode's machine decodes; see `judge_modes` for
  `device_only`, `server_ar`, `sd` and `psd` of form `pearl`, and `judge_blocks` for `psd` of form
  `pipeline` and `async`.
* A frame of b bits takes b / rate on its own device's link, one frame after the other, and half
  the RTT beyond. Nothing is lost and nothing is shared on the radio.
* A server runs one pass at a time and starts the next, when free, with everything that waits.
* The device does not know how long the answer will be: the request ends when its last token
  arrives, and surplus tokens of the last verdict are dropped.
* Each draft token and each pass takes its mean time, times a uniform draw within `jitter`; without
  it, times of equal length lock phases, and figures jump with their inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from tests.reference.judge_device import DeviceSpec, Machine, Record
from tests.reference.judge_engine import Clock, Server, ServerSpec, ServerTally, Tally
from tests.reference.judge_modes import machine_class

BATCHES_FOR_ERROR = 20


@dataclass(frozen=True)
class Setting:
    """What is to be judged.

    Attributes:
        devices: the devices.
        servers: the servers, numbered from 0.
        requests: finished requests, over all devices, at which the simulation stops.
        warmup: share of them after which counting begins.
        jitter: draft and pass times are uniform within this share of their means.
        seed: of everything random.
        stagger_s: first requests of closed loops come within this time.
        drain: begin no more than `requests` requests and run until all have ended; the quiet end
            is then part of the figures.
    """

    devices: tuple[DeviceSpec, ...]
    servers: tuple[ServerSpec, ...] = (ServerSpec(),)
    requests: int = 400
    warmup: float = 0.1
    jitter: float = 0.2
    seed: int = 0
    stagger_s: float = 10.0
    drain: bool = False

    def __post_init__(self) -> None:
        for device in self.devices:
            assert 0 <= device.server < len(self.servers), f"no server {device.server}"


@dataclass(frozen=True)
class DeviceFigures:
    """What one device saw; means are NaN where nothing was counted.

    Attributes:
        requests: requests that ended.
        requests_per_s: the same per second.
        ttft_s: mean time from a request's arrival to its first token; `ttft_error_s`: its standard
            error, here as below from the means of up to 20 batches of consecutive requests.
        tpot_s: mean of (end - first token) / (tokens - 1).
        e2e_s: mean time from arrival to the last token.
        queue_s: mean wait at the device behind earlier requests.
        upload_s: mean time until the prompt is at the server.
        prefill_s: mean time from there to the end of the prompt's last chunk.
        token_s: decoding time over decoded tokens, those beyond the answer's end included: free of
            the end's rounding.
        round_s: mean time of a round.
        rounds: mean rounds per ended request.
        tokens_per_round: mean committed tokens, those beyond the end included.
        wait_s: mean time from the arrival of a verification at the server to its pass.
        verify_s: mean time of the passes that carried this device.
        batch_rows: mean sequences in those passes, the other customers' included, prompts not.
        acceptance: accepted / tested draft tokens.
        drafted: draft tokens made; `accepted`, `rejected` and, untested, `discarded` of them.
        tokens: tokens delivered in answers; `surplus`: committed beyond an answer's end.
        bits_up: bits sent up, prompts included; `bits_down`: the same down.
        alive: mean number of requests that wait at the device or are served.
    """

    requests: int
    requests_per_s: float
    ttft_s: float
    ttft_error_s: float
    tpot_s: float
    tpot_error_s: float
    e2e_s: float
    e2e_error_s: float
    queue_s: float
    upload_s: float
    prefill_s: float
    token_s: float
    round_s: float
    rounds: float
    tokens_per_round: float
    wait_s: float
    verify_s: float
    batch_rows: float
    acceptance: float
    drafted: int
    accepted: int
    rejected: int
    discarded: int
    tokens: int
    surplus: int
    bits_up: float
    bits_down: float
    alive: float


@dataclass(frozen=True)
class ServerFigures:
    """What one server did.

    Attributes:
        passes: passes started; `pass_s`: their mean time.
        busy_share: share of the time in a pass.
        rows: mean own sequences in a pass, prompts not counted.
        new_tokens: mean own new tokens in a pass, prompts not counted.
        prefill_tokens: mean prompt tokens in a pass.
        prefill_load: seconds of prefill work (all but a pass's fixed time) per second.
        decode_load: the same for own decoding and verifying.
        foreign_load: the same for the other customers.
        offered_load: their sum.
    """

    passes: int
    pass_s: float
    busy_share: float
    rows: float
    new_tokens: float
    prefill_tokens: float
    prefill_load: float
    decode_load: float
    foreign_load: float
    offered_load: float


@dataclass(frozen=True)
class Judgement:
    """The figures of a simulation.

    Attributes:
        devices: per device.
        servers: per server.
        span_s: simulated seconds that were counted.
    """

    devices: tuple[DeviceFigures, ...]
    servers: tuple[ServerFigures, ...]
    span_s: float


def judge(setting: Setting) -> Judgement:
    """Simulate a setting and measure it."""
    return _Simulation(setting).run()


class _Simulation:
    """The machines and servers of a setting, their requests, and the span that is counted."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.clock = Clock()
        self.servers = [
            Server(spec, self.clock, self._rng("server", number), setting.jitter)
            for number, spec in enumerate(setting.servers)
        ]
        self.machines = [
            machine_class(spec)(
                spec,
                self.servers[spec.server],
                self.clock,
                self._rng("device", number),
                setting.jitter,
                self._finished,
            )
            for number, spec in enumerate(setting.devices)
        ]
        self.arrivals = [self._rng("arrivals", number) for number in range(len(self.machines))]
        self.begun = self.ended = 0
        self.counted_from_s = 0.0

    def _rng(self, purpose: str, number: int) -> Random:
        return Random(f"{self.setting.seed} {purpose} {number}")

    def run(self) -> Judgement:
        """Run until enough requests have ended."""
        for number, machine in enumerate(self.machines):
            rate = machine.spec.arrivals_per_s
            rng = self.arrivals[number]
            wait_s = (
                rng.uniform(0, self.setting.stagger_s) if rate is None else rng.expovariate(rate)
            )
            self.clock.at(wait_s, self._arrive, number)
        self.clock.run()
        end_s = self.clock.now
        span_s = end_s - self.counted_from_s
        for machine in self.machines:
            machine.count_alive(end_s)
        return Judgement(
            tuple(_device_figures(m.tally, m.records, span_s) for m in self.machines),
            tuple(_server_figures(server.tally, span_s) for server in self.servers),
            span_s,
        )

    def _arrive(self, now: float, number: int) -> None:
        if self.setting.drain and self.begun == self.setting.requests:
            return
        self.begun += 1
        machine = self.machines[number]
        machine.arrive(now)
        rate = machine.spec.arrivals_per_s
        if rate is not None:
            self.clock.at(now + self.arrivals[number].expovariate(rate), self._arrive, number)

    def _finished(self, now: float, machine: Machine, _: Record) -> None:
        setting = self.setting
        self.ended += 1
        if self.ended == setting.requests:
            self.clock.stopped = not setting.drain
        elif self.ended == int(setting.warmup * setting.requests):
            self._forget(now)
        if machine.spec.arrivals_per_s is None and not self.clock.stopped:
            self._arrive(now, self.machines.index(machine))
        if setting.drain and self.ended == setting.requests:
            self._stop_servers()

    def _stop_servers(self) -> None:
        """End a drained run once the frames still under way have arrived."""
        for server in self.servers:
            server.is_closed = True

    def _forget(self, now: float) -> None:
        """Begin to count anew."""
        self.counted_from_s = now
        for machine in self.machines:
            machine.count_alive(now)
            machine.tally = Tally()
            machine.records.clear()
        for server in self.servers:
            server.tally = ServerTally()


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _error(values: Sequence[float]) -> float:
    """Compute the standard error of a mean of successive values from the means of batches."""
    if len(values) < 2:
        return math.nan
    batches = np.array_split(np.asarray(values), min(BATCHES_FOR_ERROR, len(values)))
    means = [batch.mean() for batch in batches]
    return float(np.std(means, ddof=1) / math.sqrt(len(means)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _device_figures(tally: Tally, records: Sequence[Record], span_s: float) -> DeviceFigures:
    ttft_s = [r.first_s - r.arrived_s for r in records]
    e2e_s = [r.finished_s - r.arrived_s for r in records]
    tpot_s = [
        (r.finished_s - r.first_s) / (r.output_tokens - 1) for r in records if r.output_tokens > 1
    ]
    decoded_s = sum(r.finished_s - r.started_s for r in records)
    return DeviceFigures(
        requests=len(records),
        requests_per_s=len(records) / span_s,
        ttft_s=_mean(ttft_s),
        ttft_error_s=_error(ttft_s),
        tpot_s=_mean(tpot_s),
        tpot_error_s=_error(tpot_s),
        e2e_s=_mean(e2e_s),
        e2e_error_s=_error(e2e_s),
        queue_s=_mean([r.begun_s - r.arrived_s for r in records]),
        upload_s=_mean([r.prompt_at_server_s - r.begun_s for r in records]),
        prefill_s=_mean([r.prefilled_s - r.prompt_at_server_s for r in records]),
        token_s=_ratio(decoded_s, sum(r.committed - r.start_tokens for r in records)),
        round_s=_ratio(tally.round_s, tally.rounds),
        rounds=_mean([r.rounds for r in records]),
        tokens_per_round=_ratio(tally.round_tokens, tally.rounds),
        wait_s=_ratio(tally.wait_s, tally.waits),
        verify_s=_ratio(tally.verify_s, tally.passes),
        batch_rows=_ratio(tally.rows, tally.passes),
        acceptance=_ratio(tally.accepted, tally.accepted + tally.rejected),
        drafted=tally.drafted,
        accepted=tally.accepted,
        rejected=tally.rejected,
        discarded=tally.discarded,
        tokens=tally.delivered,
        surplus=tally.surplus,
        bits_up=tally.bits_up,
        bits_down=tally.bits_down,
        alive=tally.alive_s / span_s,
    )


def _server_figures(tally: ServerTally, span_s: float) -> ServerFigures:
    works_s = (tally.prefill_work_s, tally.decode_work_s, tally.foreign_work_s)
    return ServerFigures(
        passes=tally.passes,
        pass_s=_ratio(tally.busy_s, tally.passes),
        busy_share=tally.busy_s / span_s,
        rows=_ratio(tally.rows, tally.passes),
        new_tokens=_ratio(tally.tokens, tally.passes),
        prefill_tokens=_ratio(tally.prefill_tokens, tally.passes),
        prefill_load=works_s[0] / span_s,
        decode_load=works_s[1] / span_s,
        foreign_load=works_s[2] / span_s,
        offered_load=sum(works_s) / span_s,
    )
