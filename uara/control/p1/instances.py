"""Instances of P1: the paper's devices, servers and tasks, drawn at random.

Shape legend: B networks, M devices, E servers.

Machines are those of `uara.serving.profiles` for arXiv 2511.01695: GPT2 on three phones, GPT2-XL on
three GPUs. Each device draws its kind, task, power and battery, each server its kind, uniformly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uara.control.p1.drop import draw_gains
from uara.control.p1.problem import Problem
from uara.control.p1.readings import P1Config, P1Task
from uara.errors import UserError
from uara.radio.bank import ChannelBank, Split
from uara.serving.hardware import get_phone, get_rack

PHONE_NAMES = ("galaxy-s23", "iphone-14", "mate-60")
GPU_NAMES = ("rtx2080-gpt2-xl", "rtx3090-gpt2-xl", "rtx4090-gpt2-xl")
TARGET_FLOP_PER_TOKEN = 2 * 1.558e9  # two per weight of GPT2-XL
JOULES_PER_WH = 3600.0


@dataclass(frozen=True)
class TaskLoad:
    """What one task asks for."""

    drafted_tokens: float
    prompt_tokens: float
    passes: float  # of the target
    verified_tokens: float

    @classmethod
    def of(cls, task: P1Task, readings: P1Config) -> TaskLoad:
        """Count the tokens of a round, or of all rounds of an answer with its prompt."""
        per_round = task.draft_length
        if readings.work == "round":
            return cls(per_round, 0.0, 1.0, per_round + 1)
        rounds = task.rounds
        return cls(rounds * per_round, task.prompt_tokens, rounds, rounds * (per_round + 1))


def _table(numbers: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _suffix(readings: P1Config) -> str:
    return "-flops" if readings.times == "flops" else ""


def _drafting(readings: P1Config) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tabulate time (kinds, tasks), FLOP (kinds, tasks), uplink bits (tasks), battery (kinds)."""
    phones = [get_phone(name + _suffix(readings)) for name in PHONE_NAMES]
    loads = [TaskLoad.of(task, readings) for task in readings.tasks]
    # A prompt is read in one go, at the FLOPs-only rate of the phone in either reading.
    reading_s = [get_phone(name + "-flops").draft_time_s for name in PHONE_NAMES]
    time_s = [
        [a.drafted_tokens * p.draft_time_s + a.prompt_tokens * r for a in loads]
        for p, r in zip(phones, reading_s, strict=True)
    ]
    flop = [
        [(a.drafted_tokens + a.prompt_tokens) * p.draft_flop_per_token for a in loads]
        for p in phones
    ]
    bits = [a.drafted_tokens * readings.bits_per_token + 16 * a.prompt_tokens for a in loads]
    battery_j = [p.battery_wh * JOULES_PER_WH for p in phones]
    return _table(time_s), _table(flop), _table(bits), _table(battery_j)


def _verifying(readings: P1Config) -> tuple[Tensor, Tensor]:
    """Tabulate the time of a task alone on a server (kinds, tasks), and FLOP/s (kinds)."""
    racks = [get_rack(name + _suffix(readings)) for name in GPU_NAMES]
    loads = [TaskLoad.of(task, readings) for task in readings.tasks]
    time_s = [
        [
            a.passes * r.forward.fixed_s
            + (a.verified_tokens + a.prompt_tokens) * r.forward.per_token_s
            for a in loads
        ]
        for r in racks
    ]
    printed = [get_rack(name + "-flops").forward.per_token_s for name in GPU_NAMES]
    rate = [TARGET_FLOP_PER_TOKEN / seconds for seconds in printed]
    return _table(time_s), _table(rate)


def gains_from_bank(bank: ChannelBank, split: Split = "evaluation", slot: int = 0) -> Tensor:
    """Take the gains of one slot of a bank's worlds, (B, M, E) float64."""
    return torch.from_numpy(bank.gain()[bank.worlds(split), slot]).double()


def draw_problem(
    readings: P1Config,
    num_networks: int,
    num_devices: int,
    num_servers: int,
    generator: torch.Generator,
    gain: Tensor | None = None,
) -> Problem:
    """Draw B instances.

    Args:
        readings: how P1 is read.
        num_networks: B.
        num_devices: M.
        num_servers: E.
        generator: source of everything.
        gain: (B, M, E) linear, e.g. of a bank; None: drawn by `draw_gains`.

    Raises:
        UserError: if the gains given have another shape.
    """
    shape = (num_networks, num_devices, num_servers)
    if gain is None:
        gain = draw_gains(*shape, readings.area_side_m, readings.carrier_hz, generator)
    elif gain.shape != shape:
        raise UserError(
            f"gain has shape {tuple(gain.shape)}, but {shape} networks, devices and servers are "
            "asked for; build a bank of that size"
        )

    def kinds(columns: int, count: int) -> Tensor:
        return torch.randint(count, (num_networks, columns), generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand((num_networks, num_devices), generator=generator, dtype=torch.float64)
        return low + (high - low) * draw

    phone, gpu = kinds(num_devices, len(PHONE_NAMES)), kinds(num_servers, len(GPU_NAMES))
    task = kinds(num_devices, len(readings.tasks))
    power_dbm = uniform(readings.power_min_dbm, readings.power_max_dbm)
    level = uniform(readings.battery_min, 1.0)
    slots = kinds(num_servers, readings.queue_slots_max + 1).double()
    draft_s, flop, bits, battery_j = _drafting(readings)
    verify_s, rate = _verifying(readings)
    per_server = readings.num_bands(num_servers)
    return Problem(
        readings=readings,
        device_time_s=draft_s[phone, task],
        work_s=verify_s[gpu[:, None, :], task[:, :, None]],
        payload_bits=bits[task],
        gain=gain,
        power_w=10 ** ((power_dbm - 30) / 10),
        band_hz=torch.full(
            (num_networks, num_servers), readings.bandwidth_hz / per_server, dtype=torch.float64
        ),
        noise_w_per_hz=torch.full(shape, readings.noise_w_per_hz, dtype=torch.float64),
        queue_s=slots * readings.slot_s * (readings.queue == "slots"),
        compute_energy_j=readings.joules_per_flop * flop[phone, task],
        battery=level * battery_j[phone] if readings.battery == "repaired" else level,
        capacity_flop_per_s=rate[gpu],
    )
