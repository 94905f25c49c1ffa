"""The virtual kernel beside the event judge, where both speak of one setting.

`python -m benchmarks.judge_kernel` prints the table. Language models are replaced by a pair whose
draft tokens pass with a given probability; frames are real, and the judge is told their bits. Few
tokens realise another acceptance than they were given, so the judge takes the realised one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.reference.event_judge import Setting, judge
from tests.reference.judge_device import DeviceSpec, Mode
from tests.reference.judge_engine import ServerSpec
from uara.decoding.bernoulli import bernoulli_pair
from uara.decoding.contract import Contract
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.kv import Floats
from uara.decoding.nodes import Jitter
from uara.decoding.overlap import Overlap
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.rules import Sampling
from uara.decoding.scenario import DeviceProfile, ForeignArrival, Request, ServerProfile, SlotPlan
from uara.serving.hardware import ForwardTime
from uara.serving.payload import make_codec

PROMPT_TOKENS = 16
SPREAD = 0.2  # of the judge's uniform times, relative; the kernel's normal ones have its deviation
CODEC = make_codec("ids", vocab_size=2, top_k=2, ids_rule="onehot")
BOUND = 0.01
MODES: tuple[Mode, ...] = ("sd", "psd", "async", "server_ar")


@dataclass(frozen=True)
class Case:
    """One setting; devices, links and servers are drawn from the seed.

    Attributes:
        mode: of all devices.
        devices: device i is served by server i modulo `servers`.
        servers: how many.
        window: of `async`.
        foreign_rows: other customers in every pass.
        has_path: whether links and round trip take time. Of `psd` the two have different forms
            there: the kernel's server reads its correction at once, the judge's when the device's
            next step has reached it.
        seed: of everything.
    """

    mode: Mode
    devices: int = 1
    servers: int = 1
    window: int = 1
    foreign_rows: int = 0
    has_path: bool = True
    seed: int = 0

    @property
    def name(self) -> str:
        """The mode, with the window of `async`."""
        return f"{self.mode} {self.window}" if self.mode == "async" else self.mode


@dataclass(frozen=True)
class Comparison:
    """Seconds per token and from arrival to first token: kernel and judge, means over devices."""

    case: Case
    rounds: int
    kernel_token_s: float
    judge_token_s: float
    device_errors: tuple[float, ...]  # of seconds per token, relative

    @property
    def error(self) -> float:
        """Of the kernel's mean seconds per token, relative to the judge."""
        return self.kernel_token_s / self.judge_token_s - 1


@dataclass(frozen=True)
class _Network:
    """What both are told, (M,) per device."""

    draft_token_s: Floats
    draft_length: NDArray[np.int64]
    uplink_bps: Floats
    downlink_bps: Floats
    server: NDArray[np.int64]
    alpha: float
    forward: ForwardTime
    rtt_s: float

    @classmethod
    def draw(cls, case: Case) -> _Network:
        generator = np.random.default_rng(derive_seed("judge", case.seed, case.mode))
        count = case.devices
        length, fast = generator.integers(2, 7, count), np.full(count, np.inf)
        return cls(
            draft_token_s=generator.uniform(0.015, 0.03, count),
            draft_length=0 * length if case.mode == "server_ar" else length,
            uplink_bps=generator.uniform(2e5, 2e6, count) if case.has_path else fast,
            downlink_bps=generator.uniform(2e5, 2e6, count) if case.has_path else fast,
            server=np.arange(count) % case.servers,
            alpha=float(generator.uniform(0.6, 0.85)),
            forward=ForwardTime(0.05, 0.001, 0.0004, 1e-7),
            rtt_s=0.02 if case.has_path else 0.0,
        )


def compare(case: Case, *, rounds: int = 2000) -> Comparison:
    """Play a setting in the kernel, and ask the judge about it.

    Every device answers one long request; lengths are such that all end at about the same time, so
    that servers are shared to the end.

    Args:
        case: setting.
        rounds: of a device of mean speed, about.
    """
    network = _Network.draw(case)
    alphas = np.full(case.devices, network.alpha)
    # Asked first with the given acceptance, only to make answers of equal duration.
    token_s = _judged(case, network, alphas, np.full(case.devices, 400))
    mean_length = float(network.draft_length.mean())
    per_round = (1 - network.alpha ** (mean_length + 1)) / (1 - network.alpha)
    tokens = np.maximum(rounds * per_round * token_s.mean() / token_s, 50).astype(int)
    kernel = _kernel(case, network, tokens)
    records = [kernel.run().requests[sid] for sid in range(case.devices)]
    own_s = np.array([record.tpot_s for record in records])
    if case.mode != "server_ar":
        alphas = np.array([record.acceptance for record in records])
    judged_s = _judged(case, network, alphas, tokens)
    return Comparison(
        case=case,
        rounds=sum(record.verifications for record in records),
        kernel_token_s=float(own_s.mean()),
        judge_token_s=float(judged_s.mean()),
        device_errors=tuple((own_s / judged_s - 1).tolist()),
    )


def _kernel(case: Case, network: _Network, tokens: NDArray[np.int64]) -> VirtualKernel:
    spread = SPREAD / math.sqrt(3)
    plan = SlotPlan(network.server, network.draft_length, network.uplink_bps, network.downlink_bps)
    overlap = Overlap(case.window, sends_first_ahead=False) if case.mode == "async" else None
    settings = KernelSettings(
        1e4,
        Contract(RuleCode.IDS, Sampling(), 2, 1),
        lambda sid: derive_seed("judge", case.seed, sid),
        mode="sd" if case.mode == "server_ar" else case.mode,
        window=case.window,
        overlap=overlap,
        jitter=Jitter(spread, spread, 0.0, case.seed),
    )
    load = [ForeignArrival(0.0, server, case.foreign_rows) for server in range(case.servers)]
    return VirtualKernel(
        *bernoulli_pair(network.alpha),
        [DeviceProfile(float(draft_s)) for draft_s in network.draft_token_s],
        [ServerProfile(network.forward, 10**9, network.rtt_s)] * case.servers,
        [
            Request(sid, sid, 0.0, (0, 1), PROMPT_TOKENS, int(tokens[sid]))
            for sid in range(case.devices)
        ],
        _Constant(plan),
        settings,
        load if case.foreign_rows else (),
    )


@dataclass(frozen=True)
class _Constant:
    plan_of_slot: SlotPlan

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        return self.plan_of_slot


def _judged(case: Case, network: _Network, alphas: Floats, tokens: NDArray[np.int64]) -> Floats:
    """Ask the judge for seconds per token, (M,)."""
    forward = network.forward

    def rest_bits(length: int) -> float:
        return CODEC.draft_bits(length - 1.0) if length > 1 else 0.0

    devices = tuple(
        DeviceSpec(
            mode=case.mode,
            server=int(network.server[i]),
            draft_length=int(network.draft_length[i]),
            alpha=float(alphas[i]),
            draft_token_s=float(network.draft_token_s[i]),
            uplink_bps=float(network.uplink_bps[i]),
            downlink_bps=float(network.downlink_bps[i]),
            rtt_s=network.rtt_s,
            prompt_tokens=PROMPT_TOKENS,
            output_tokens=int(tokens[i]),
            draft_bits=rest_bits if case.mode == "psd" else CODEC.draft_bits,
            accept_bits=CODEC.verdict_bits_given(rejected=False),
            reject_bits=CODEC.verdict_bits_given(rejected=True),
            token_bits=CODEC.token_bits(),
            first_bits=CODEC.draft_bits(1.0),
            window=case.window,
        )
        for i in range(case.devices)
    )
    servers = (
        ServerSpec(
            forward.fixed_s, forward.per_row_s, forward.per_token_s, forward.per_context_s,
            foreign_rows=float(case.foreign_rows),
        ),
    ) * case.servers  # fmt: skip
    requests = max(8 * case.devices, math.ceil(30_000 * case.devices / tokens.sum()))
    seen = judge(Setting(devices, servers, requests=requests, jitter=SPREAD, seed=case.seed))
    return np.array([device.token_s for device in seen.devices])


CASES = [
    *(Case(mode, has_path=mode != "psd") for mode in MODES),
    Case("async", window=2),
    *(
        Case(mode, devices=8, servers=servers, foreign_rows=foreign, has_path=mode != "psd", seed=1)
        for mode in MODES
        for servers, foreign in ((1, 0), (3, 0), (2, 6))
    ),
]


def show(rows: Sequence[Comparison]) -> Table:
    """Show all settings."""
    table = Table(
        title="Virtual kernel beside the event judge, times per token", box=box.SIMPLE_HEAD
    )
    table.add_column("mode")
    for name in ("devices", "servers", "foreign", "rounds", "kernel (ms)", "judge (ms)",
                 "error", "worst"):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        case = row.case
        table.add_row(
            case.name,
            *(str(n) for n in (case.devices, case.servers, case.foreign_rows, row.rounds)),
            f"{1e3 * row.kernel_token_s:.2f}",
            f"{1e3 * row.judge_token_s:.2f}",
            f"{row.error:+.2%}",
            f"{max(row.device_errors, key=abs):+.2%}",
        )
    return table


def main(
    rounds: Annotated[int, typer.Option(min=50, help="per device")] = 4000,
    only: Annotated[str, typer.Option(help="modes whose name begins so")] = "",
) -> None:
    """Hold the kernel to the event judge on one and on many devices."""
    console = Console()
    cases = [case for case in CASES if case.name.startswith(only)]
    rows = [compare(case, rounds=rounds) for case in track(cases, console=console, transient=True)]
    console.print(show(rows))
    missed = [row.case for row in rows if abs(row.error) > BOUND]
    console.print(f"{len(rows) - len(missed)} of {len(rows)} settings within {BOUND:.0%}")
    for case in missed:
        console.print(f"missed: {case}")


if __name__ == "__main__":
    typer.run(main)
