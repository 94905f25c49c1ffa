"""Real draft/verify runs in real processes: servers and phones are started, timed and stopped.

The plans are those that a controller made under the virtual clock, slot by slot, so that both runs
differ in nothing but their clocks.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import IO, Any

import msgspec
import numpy as np

from experiments.decode import DecodeSetup
from experiments.wall_worker import DeviceJob, DeviceReport, SlotOfDevice
from uara.decoding.control import WIRE_MODES
from uara.decoding.nodes import KernelSettings
from uara.decoding.records import RequestRecord
from uara.decoding.run import DecodingConfig, DecodingResult, kernel_settings
from uara.decoding.scenario import DeviceProfile, Request, SlotPlan
from uara.decoding.state_view import device_profiles
from uara.errors import UserError
from uara.serving.hardware import get_rack

START_S = 180.0
LEAD_S = 0.5


@dataclass(frozen=True)
class WallServerSpec:
    """One server of a run: a machine whose times are kept, or None for this machine's own."""

    pace: str | None
    kv_capacity_tokens: int
    rtt_s: float


@dataclass(frozen=True)
class WallResult:
    """What a run on the wall clock gave.

    Attributes:
        requests: in the order of their numbers; times count from the beginning of the run.
        residuals_s: how much too late each shaped frame of a phone was written.
        late_drafts: draft steps that this machine did not make in the time of the profile.
        resumptions: requests that went on after a lost connection.
        load: of this machine at the end, as its system averages it over a minute.
    """

    requests: list[RequestRecord]
    residuals_s: list[float]
    late_drafts: int
    resumptions: int
    load: float


@dataclass(frozen=True)
class ClockDifference:
    """How one request came out under the two clocks."""

    sid: int
    is_equal: bool
    virtual_e2e_s: float
    wall_e2e_s: float

    @property
    def is_close(self) -> bool:
        """Whether both latencies lie within max(5 %, 3 ms)."""
        distance = abs(self.wall_e2e_s - self.virtual_e2e_s)
        return distance <= max(0.05 * self.virtual_e2e_s, 3e-3)


def run_on_wall(
    requests: Sequence[Request],
    plans: Sequence[SlotPlan],
    servers: Sequence[WallServerSpec],
    devices: Sequence[DeviceProfile | None],
    settings: KernelSettings,
    *,
    draft: Path | str,
    target: Path | str,
) -> WallResult:
    """Play requests in real processes on loopback.

    Args:
        requests: as under the virtual clock.
        plans: of each slot; the last one stays.
        servers: one process each.
        devices: one process each; None: as fast as this machine is.
        settings: of the run; its mode is that of every request.
        draft: folder of the draft model.
        target: folder of the target model.

    Raises:
        UserError: if a process does not come up or ends before its time.
    """
    by_device = [[r for r in requests if r.device == index] for index in range(len(devices))]
    with ExitStack() as stack:
        addresses = [("127.0.0.1", _start_server(stack, spec, target)) for spec in servers]
        phones = []
        for index, own in enumerate(by_device):
            if own:
                job = _job(index, own, plans, servers, devices[index], settings, addresses, draft)
                phones.append(_start_phone(stack, job))
        for phone in phones:
            _expect(phone, "ready")
        begin_s = time.monotonic() + LEAD_S
        for phone in phones:
            _say(phone, f"{begin_s!r}")
        reports = [_report(phone) for phone in phones]
    records = sorted((r for report in reports for r in report.requests), key=lambda r: r.sid)
    return WallResult(
        requests=records,
        residuals_s=[value for report in reports for value in report.residuals_s],
        late_drafts=sum(report.late_drafts for report in reports),
        resumptions=sum(report.resumptions for report in reports),
        load=os.getloadavg()[0],
    )


def compare_clocks(
    virtual: Sequence[RequestRecord], wall: Sequence[RequestRecord]
) -> list[ClockDifference]:
    """Compare both runs request by request."""
    by_sid = {record.sid: record for record in wall}
    return [
        ClockDifference(
            record.sid,
            record.tokens == by_sid[record.sid].tokens,
            record.e2e_s,
            by_sid[record.sid].e2e_s,
        )
        for record in virtual
    ]


@dataclass(frozen=True)
class WallCheck:
    """A run on the wall clock beside the same one on the virtual clock."""

    differences: list[ClockDifference]
    wall: WallResult

    def sentence(self) -> str:
        """Say in one line how far both clocks agree."""
        count = len(self.differences)
        equal = sum(difference.is_equal for difference in self.differences)
        close = sum(difference.is_close for difference in self.differences)
        ratios = [d.wall_e2e_s / d.virtual_e2e_s for d in self.differences]
        errors = residual_summary(self.wall.residuals_s)
        return (
            f"wall clock against virtual clock: {equal} of {count} answers equal, E2E of {close} "
            f"within max(5 %, 3 ms), wall over virtual {min(ratios):.3f} to {max(ratios):.3f}; "
            f"{errors['frames']} shaped frames late by {errors['median_ms']:.3f} ms (median), "
            f"{errors['p99_ms']:.3f} ms (p99); {self.wall.late_drafts} draft steps late; load "
            f"{self.wall.load:.1f}"
        )


def play_again(
    setup: DecodeSetup,
    result: DecodingResult,
    *,
    draft: Path | str,
    target: Path | str,
) -> WallCheck:
    """Play a task's run in real processes, under the plans of the virtual one.

    A request stays with the server of its first slot.

    Args:
        setup: of the run.
        result: what the virtual clock gave.
        draft: folder of the draft model.
        target: folder of the target model.

    Raises:
        UserError: if the task's mode does not use a server.
    """
    world = setup.task.world
    config = DecodingConfig(temperature=setup.acceptance.temperature, seed=setup.task.decode.seed)
    settings = kernel_settings(setup.pair, world, setup.physics, config)
    mode = "sd" if settings.mode == "server_ar" else settings.mode
    if mode not in WIRE_MODES:
        raise UserError(
            f"mode '{mode}' has no sockets; allowed with --kernel wall: server_ar, "
            f"{', '.join(WIRE_MODES)}"
        )
    servers = [
        WallServerSpec(name, get_rack(name).kv_capacity_tokens, world.rtt_s)
        for name in world.servers
    ]
    wall = run_on_wall(
        setup.requests,
        result.plans,
        servers,
        device_profiles(world, setup.task.bank.num_devices, config.read_token_s),
        replace(settings, mode=mode),
        draft=draft,
        target=target,
    )
    return WallCheck(compare_clocks(result.requests, wall.requests), wall)


def _job(
    index: int,
    requests: list[Request],
    plans: Sequence[SlotPlan],
    servers: Sequence[WallServerSpec],
    profile: DeviceProfile | None,
    settings: KernelSettings,
    addresses: list[tuple[str, int]],
    draft: Path | str,
) -> DeviceJob:
    contract = settings.contract
    profile = profile or DeviceProfile(0.0)
    return DeviceJob(
        draft=str(draft),
        addresses=addresses,
        rtt_s=[spec.rtt_s for spec in servers],
        rule=int(contract.rule),
        sampling=(
            contract.sampling.temperature,
            contract.sampling.top_k,
            contract.sampling.top_p,
        ),
        top_k=contract.top_k,
        tail_draws=contract.tail_draws,
        probability_bits=contract.probability_bits,
        is_lossy=contract.is_lossy,
        requests=sorted(requests, key=lambda request: request.arrival_s),
        seeds=[
            settings.session_seed(request.sid)
            for request in sorted(requests, key=lambda request: request.arrival_s)
        ],
        slots=[
            SlotOfDevice(
                int(plan.server[index]),
                int(plan.draft_length[index]),
                _rate(plan.uplink_bps[index]),
                _rate(plan.downlink_bps[index]),
            )
            for plan in plans
        ],
        slot_s=settings.slot_s,
        mode=settings.mode,
        window=settings.window,
        overhead_bytes=settings.frame_overhead_bytes,
        draft_time_s=profile.draft_time_s,
        read_token_s=profile.read_token_s,
    )


def _rate(bps: np.float64) -> float:
    """JSON knows no infinity; nobody tells a terabit per second from it."""
    return min(float(bps), 1e12)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _start_server(stack: ExitStack, spec: WallServerSpec, target: Path | str) -> int:
    command = [
        *(sys.executable, "-m", "uara", "serve", "--listen", "127.0.0.1:0"),
        *("--target", str(target), f"kv_capacity_tokens={spec.kv_capacity_tokens}"),
        *(("--pace", spec.pace) if spec.pace is not None else ()),
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=_environment(), bufsize=1
    )
    stack.callback(_stop, process)
    assert process.stderr is not None, "a pipe was asked for"
    for line in process.stderr:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if told.get("event") == "listening":
            # Nobody reads on, and a full pipe would stop the server.
            Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
            return int(told["port"])
    raise UserError(f"a server process ended with status {process.wait()} before it listened")


def _start_phone(stack: ExitStack, job: DeviceJob) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.wall_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
        bufsize=1,
    )
    stack.callback(_stop, process)
    _say(process, msgspec.json.encode(job).decode())
    return process


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None, "a pipe was asked for"
    return stream


def _say(process: subprocess.Popen[str], line: str) -> None:
    _pipe(process.stdin).write(line + "\n")
    _pipe(process.stdin).flush()


def _hear(process: subprocess.Popen[str]) -> str:
    line = _pipe(process.stdout).readline()
    if not line:
        raise UserError(f"a phone process ended with status {process.wait()} before its time")
    return line


def _expect(process: subprocess.Popen[str], word: str) -> None:
    while _hear(process).strip() != word:
        pass


def _report(process: subprocess.Popen[str]) -> DeviceReport:
    return msgspec.json.decode(_hear(process), type=DeviceReport)


def residual_summary(residuals_s: Sequence[float]) -> dict[str, Any]:
    """Summarise by how much shaped frames were late."""
    if not residuals_s:
        return {"frames": 0, "median_ms": math.nan, "p99_ms": math.nan}
    median, high = np.percentile(np.array(residuals_s), [50, 99])
    return {"frames": len(residuals_s), "median_ms": 1e3 * median, "p99_ms": 1e3 * high}
