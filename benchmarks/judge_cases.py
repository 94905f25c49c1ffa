"""Cases in which the prediction and the event judge are asked for the same times per token.

Shape legend: B = 1 network, M devices, E servers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tests.reference.event_judge import Judgement, Setting, judge
from tests.reference.judge_device import DeviceSpec, Mode
from tests.reference.judge_engine import ServerSpec
from uara.network import Decision, NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig, Prediction, effective_mode, predict
from uara.serving.hardware import PHONES, RACKS, Phone, Rack
from uara.serving.modes import MODE_INDEX, MODES
from uara.serving.payload import Codec

PROMPT_TOKENS = 16  # so short that prefill is no matter
OUTPUT_TOKENS = 400
SATURATED = 0.8  # offered load from which no bound is promised
UPLINK_HZ, DOWNLINK_HZ, DOWNLINK_W = 5e6, 20e6, 2.0
JUDGED_MODES = get_args(Mode)
MIXED_MODES = ("sd", "server_ar", "psd", "async")


@dataclass(frozen=True)
class Case:
    """One network to be predicted and judged; everything else is drawn from the seed.

    Attributes:
        mode: of all devices; `mixed` draws one per device.
        codec: what a draft carries.
        devices: M.
        racks: names, one per server; device i goes to server i modulo E.
        rtt_s: beyond the radio.
        window: of `async`.
        draft_budget: of `async`, in seconds or `verdict`.
        foreign_rows: other customers in each pass; the server then never rests.
        token_work: factor on the racks' time per token, which makes load.
        seed: of gains, phones, acceptances and draft lengths.
    """

    mode: str
    codec: str = "topk"
    devices: int = 1
    racks: tuple[str, ...] = ("4xA100-40GB",)
    rtt_s: float = 0.01
    window: int = 1
    foreign_rows: float = 0.0
    token_work: float = 1.0
    seed: int = 0
    draft_budget: float | Literal["verdict"] | None = None

    @property
    def name(self) -> str:
        """The mode, with the window of `async`."""
        cut = "" if self.draft_budget is None else f" {self.draft_budget}"
        return f"{self.mode} {self.window}{cut}" if self.mode == "async" else self.mode


@dataclass(frozen=True)
class Comparison:
    """What prediction and judge say of one server's devices; errors are relative to the judge."""

    case: Case
    server: int
    devices: int
    offered_load: float
    predicted_s: float  # mean time per token
    judged_s: float
    error: float  # of the mean
    device_errors: tuple[float, ...]

    @property
    def is_saturated(self) -> bool:
        """Tell whether the server is offered more than the bounds are promised for."""
        return self.offered_load >= SATURATED


def describe(case: Case) -> tuple[NetworkState, Decision, Physics]:
    """Draw the network of a case, with everybody in the middle of an answer."""
    rng = np.random.default_rng(case.seed)
    each, at = (1, case.devices), (1, len(case.racks))
    rack = [RACKS[name] for name in case.racks]
    phone = [PHONES[name] for name in rng.choice(sorted(PHONES), case.devices)]
    server = torch.arange(case.devices)[None] % len(rack)

    def full(value: float, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, float(value))

    def of_racks(value: Callable[[Rack], float]) -> Tensor:
        return torch.tensor([[value(r) for r in rack]])

    def of_phones(value: Callable[[Phone], float]) -> Tensor:
        return torch.tensor([[value(p) for p in phone]])

    gain = torch.tensor(10 ** rng.uniform(-10.5, -8.5, (1, case.devices, len(rack)))).float()
    alpha = torch.tensor(rng.uniform(0.5, 0.92, each)).float()
    length = torch.tensor(rng.integers(2, 8, each, endpoint=True))
    state = NetworkState(
        time_s=torch.zeros(1),
        gain=gain,
        reachable=torch.ones_like(gain, dtype=torch.bool),
        phase=torch.full(each, int(Phase.DECODING)),
        task=torch.zeros(each, dtype=torch.long),
        age_s=full(0, each),
        waiting_requests=full(0, each),
        prompt_tokens=full(PROMPT_TOKENS, each),
        upload_bits=full(0, each),
        tokens_so_far=full(OUTPUT_TOKENS / 2, each),
        expected_remaining_tokens=full(OUTPUT_TOKENS / 2, each),
        acceptance=alpha,
        server=server,
        kv_tokens=full(PROMPT_TOKENS + OUTPUT_TOKENS / 2, each),
        draft_time_s=of_phones(lambda p: p.draft_time_s),
        draft_power_w=of_phones(lambda p: p.draft_power_w),
        power_max_w=full(0.2, each),
        position_m=torch.zeros(*each, 2),
        forward_fixed_s=of_racks(lambda r: r.forward.fixed_s),
        forward_per_row_s=of_racks(lambda r: r.forward.per_row_s),
        forward_per_token_s=of_racks(lambda r: r.forward.per_token_s * case.token_work),
        forward_per_context_s=of_racks(lambda r: r.forward.per_context_s),
        server_power_w=of_racks(lambda r: r.power_w),
        uplink_bandwidth_hz=full(UPLINK_HZ, at),
        downlink_bandwidth_hz=full(DOWNLINK_HZ, at),
        downlink_power_w=full(DOWNLINK_W, at),
        rtt_s=full(case.rtt_s, at),
        kv_free_tokens=of_racks(lambda r: float(r.kv_capacity_tokens)),
        foreign_rows=full(case.foreign_rows, at),
        foreign_prefill_tokens=full(0, at),
    )
    drawn = rng.choice(MIXED_MODES, case.devices)
    sharers = math.ceil(case.devices / len(rack))
    decision = Decision(
        server=server,
        bandwidth_hz=full(UPLINK_HZ / sharers, each),
        power_w=state.power_max_w,
        draft_length=length,
        mode=torch.tensor([[MODE_INDEX[name] for name in drawn]]) if case.mode == "mixed" else None,
    )
    config = PhysicsConfig.model_validate(
        {
            "mode": "sd" if case.mode == "mixed" else case.mode,
            "codec": case.codec,
            "window": case.window,
            "draft_budget": case.draft_budget,
        }
    )
    return state, decision, Physics.of(config)


def to_setting(
    state: NetworkState,
    decision: Decision,
    physics: Physics,
    plan: Prediction,
    *,
    requests_per_device: int,
    seed: int,
) -> Setting:
    """Ask the judge about the same network, at the link rates of the prediction."""
    mode = effective_mode(state, decision, physics)
    devices = tuple(
        _device(state, plan, physics, device, list(MODES)[int(mode[0, device])], decision)
        for device in range(state.num_devices)
    )
    servers = tuple(
        ServerSpec(
            fixed_s=float(state.forward_fixed_s[0, server]),
            per_row_s=float(state.forward_per_row_s[0, server]),
            per_token_s=float(state.forward_per_token_s[0, server]),
            per_context_s=float(state.forward_per_context_s[0, server]),
            chunk_tokens=physics.config.batching.prefill_chunk_tokens,
            foreign_rows=float(state.foreign_rows[0, server]),
        )
        for server in range(state.num_servers)
    )
    requests = requests_per_device * state.num_devices
    return Setting(devices, servers, requests=requests, seed=seed)


def _device(
    state: NetworkState,
    plan: Prediction,
    physics: Physics,
    device: int,
    mode: str,
    decision: Decision,
) -> DeviceSpec:
    """Describe one device to the judge."""
    codec, server = physics.codec, int(decision.server[0, device])
    assert mode in JUDGED_MODES, f"the judge has no mode {mode}"
    return DeviceSpec(
        mode=mode,  # type: ignore[arg-type]
        server=server,
        draft_length=int(decision.draft_length[0, device]),
        alpha=float(state.acceptance[0, device]),
        draft_token_s=float(state.draft_time_s[0, device]),
        uplink_bps=float(plan.uplink_bps[0, device]),
        downlink_bps=float(plan.downlink_bps[0, device]),
        rtt_s=float(state.rtt_s[0, server]),
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        draft_bits=_rest_bits(codec) if mode == "psd" else codec.draft_bits,
        accept_bits=codec.verdict_bits_given(rejected=False),
        reject_bits=codec.verdict_bits_given(rejected=True),
        token_bits=codec.token_bits(),
        first_bits=codec.draft_bits(1.0),
        window=physics.config.window,
        draft_budget=physics.config.draft_budget,
    )


def _rest_bits(codec: Codec) -> Callable[[int], float]:
    """Price a block whose first token went ahead."""
    return lambda length: codec.draft_bits(length - 1.0) if length > 1 else 0.0


def compare(case: Case, *, requests_per_device: int = 4) -> list[Comparison]:
    """Predict and judge a case; one row per server that has devices."""
    state, decision, physics = describe(case)
    plan = predict(state, decision, physics)
    setting = to_setting(
        state, decision, physics, plan, requests_per_device=requests_per_device, seed=case.seed
    )
    return _rows(case, state, decision, plan, judge(setting))


def _rows(
    case: Case, state: NetworkState, decision: Decision, plan: Prediction, seen: Judgement
) -> list[Comparison]:
    predicted_s = plan.tpot_s[0].double().numpy()
    judged_s = np.array([device.token_s for device in seen.devices])
    server = decision.server[0].numpy()
    rows = []
    for number in range(state.num_servers):
        # A device too slow to finish a request while the others finished theirs has no figures.
        mine = (server == number) & np.isfinite(judged_s)
        if not mine.any():
            continue
        mean_s, truth_s = float(predicted_s[mine].mean()), float(judged_s[mine].mean())
        rows.append(
            Comparison(
                case=case,
                server=number,
                devices=int(mine.sum()),
                offered_load=seen.servers[number].offered_load,
                predicted_s=mean_s,
                judged_s=truth_s,
                error=mean_s / truth_s - 1,
                device_errors=tuple((predicted_s[mine] / judged_s[mine] - 1).tolist()),
            )
        )
    return rows
