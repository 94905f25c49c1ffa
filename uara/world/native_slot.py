"""One slot of B networks played by compiled code, for the worlds that it knows.

Shape legend: B networks, M devices, E servers, R requests of a device, T slots with arrivals,
W T slots of all worlds of the bank.

The torch form of `World.step` makes some five hundred passes over (B, M) tensors;
`native_slot.c` makes one over the networks. The numbers agree to a few units of float32.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from uara.native import load_library, pointers
from uara.network import Decision, SlotOutcome
from uara.prediction import Physics
from uara.radio.native_link import LinkConstants, NativeLink
from uara.rates import ACTIVITY_PASSES, MIN_RATE_BPS
from uara.serving.modes import MODES
from uara.world.acceptance import ConstantAcceptance
from uara.world.config import WorldConfig
from uara.world.progress import Progress
from uara.world.requests import AnswerLengths, RequestTable

MODES_IN_C = ("sd", "server_ar")

_SOURCE = Path(__file__).with_name("native_slot.c")
# The same orders as in the C file.
_STATE_COLUMNS = (
    "arrived", "upload_bits", "kv_tokens", "tokens", "accepted", "tested", "ttft_s",
    "prompt_tokens", "attachment_bits", "output_tokens", "acceptance", "arrival_s",
    "age_s", "waiting_requests", "expected_remaining_tokens", "estimate",
)  # fmt: skip
_STATE_COUNTS = ("finished", "server", "task", "phase")
_OUTCOME_COLUMNS = (
    "tokens", "device_energy_j", "uplink_bits", "downlink_bits", "e2e_s", "ttft_s",
    "finished_tokens",
)  # fmt: skip
_FLAGS = ("active", "handover", "finished")
_BATTERY_COLUMNS = ("battery_j", "battery_share", "failed")
_DEVICE_CONSTANTS = ("draft_time_s", "draft_power_w")
_SERVER_CONSTANTS = (
    "forward_fixed_s", "forward_per_row_s", "forward_per_token_s", "forward_per_context_s",
    "server_power_w", "uplink_bandwidth_hz", "downlink_bandwidth_hz", "downlink_power_w", "rtt_s",
    "foreign_rows", "foreign_prefill_tokens", "kv_capacity_tokens",
)  # fmt: skip


class _Constants(ctypes.Structure):
    """The struct `Constants` of the C file."""

    _fields_ = (
        ("uplink_noise", ctypes.c_float),
        ("downlink_noise", ctypes.c_float),
        ("link", LinkConstants),
        *(
            (name, ctypes.c_float)
            for name in (
                "activity_passes", "rate_min", "drafts", "id_bytes", "row_bytes",
                "draft_base_bits", "prompt_base_bits", "verdict_accepted_bits",
                "verdict_rejected_bits", "token_bits", "chunk_tokens", "inverse_efficiency",
                "slot_s", "prior_tokens", "infinity", "iterations", "idle_j", "failure_s",
            )
        ),
    )  # fmt: skip


def knows_physics(physics: Physics) -> bool:
    """Tell whether compiled code knows the mode of a physics configuration."""
    return physics.config.mode in MODES_IN_C


def knows_world(config: WorldConfig, physics: Physics) -> bool:
    """Tell whether compiled code can play the slots of a world."""
    requests, memory = config.requests, config.memory
    return (
        knows_physics(physics)
        and physics.config.service == "batched"
        and not memory.admission
        and memory.handover == "prefill"
        and config.energy.form == "airtime"
        and config.outages is None
        and config.believed is None
        and requests.conversations is None
        and isinstance(requests.acceptance, ConstantAcceptance)
        and all(task.length_law == "exponential" for task in requests.tasks)
    )


@dataclass(frozen=True)
class NativeStep:
    """What one slot made of B networks; no tensor is shared with earlier slots."""

    progress: Progress
    request: dict[str, Tensor]  # (B, M) the current request, zeros where there is none
    known: dict[str, Tensor]  # columns of `NetworkState` that follow from both
    outcome: SlotOutcome


@dataclass(frozen=True)
class NativeSlot:
    """Plays slots under one world configuration."""

    library: ctypes.CDLL
    constants: _Constants
    link: NativeLink
    machines: tuple[Tensor, ...]  # (B, M) and (B, E), in the order of the C file
    tasks: tuple[Tensor, ...]  # (number of tasks,) acceptance, and low, mean, high of answers

    @classmethod
    def of(
        cls,
        config: WorldConfig,
        physics: Physics,
        machines: dict[str, Tensor],
        lengths: AnswerLengths,
        acceptance_mean: Tensor,
    ) -> NativeSlot:
        """Compile for a world.

        Args:
            config: of the world; `knows_world` must hold.
            physics: of the world.
            machines: constants (B, M) and (B, E) by name.
            lengths: the law of answers per task.
            acceptance_mean: (number of tasks,).

        Raises:
            UserError: if there is no C compiler.
        """
        assert knows_world(config, physics), "compiled code does not know this world"
        library = load_library(_SOURCE)
        library.scratch_floats.restype = ctypes.c_int64
        names = (*_DEVICE_CONSTANTS, *_SERVER_CONSTANTS)
        link = NativeLink.of(physics.config.link)
        return cls(
            library=library,
            constants=_constants(config, physics, link),
            link=link,
            machines=tuple(machines[name].contiguous() for name in names),
            tasks=(acceptance_mean, lengths.low, lengths.mean, lengths.high),
        )

    def __call__(
        self,
        now: Progress,
        request: dict[str, Tensor],
        decision: Decision,
        gain: tuple[Tensor, Tensor],
        table: RequestTable,
        arrivals: tuple[Tensor, Tensor],
    ) -> NativeStep:
        """Play one slot.

        Args:
            now: progress at its start; not changed.
            request: the current request of each device, (B, M) each.
            decision: without modes of its own.
            gain: (W T, M, E) linear and (B,) long, the row of each network.
            table: all requests.
            arrivals: counts (B, T, M) and waiting seconds (B, T).
        """
        assert decision.mode is None, "compiled code knows the world's own mode alone"
        (networks, devices), servers = now.active.shape, gain[0].shape[2]
        inputs = self._inputs(now, request, decision, gain, table, arrivals)
        out = _Outputs.empty(networks, devices, servers, batteries=now.battery_j is not None)
        sizes = (networks, devices, servers, table.task.shape[2], arrivals[1].shape[1])
        floats = self.library.scratch_floats(ctypes.c_int64(devices), ctypes.c_int64(servers))
        scratch = torch.empty(floats)
        self.library.play_slot(
            pointers(inputs),
            ctypes.byref(self.constants),
            *(ctypes.c_int64(size) for size in sizes),
            pointers(out.tensors()),
            ctypes.c_void_p(scratch.data_ptr()),
        )
        return out.to_step()

    def _inputs(
        self,
        now: Progress,
        request: dict[str, Tensor],
        decision: Decision,
        gain: tuple[Tensor, Tensor],
        table: RequestTable,
        arrivals: tuple[Tensor, Tensor],
    ) -> tuple[Tensor | None, ...]:
        """List the tensors in the order of the struct `Inputs`."""
        found = (
            self.link.uplink, self.link.downlink, *gain,
            decision.server, decision.bandwidth_hz.float(), decision.power_w.float(),
            decision.draft_length,
            now.slot, now.finished, now.arrived, now.active, now.upload_bits, now.kv_tokens,
            now.tokens, now.server, now.accepted, now.tested, now.ttft_s,
            now.battery_j,
            request["task"], request["prompt_tokens"], request["attachment_bits"],
            request["output_tokens"], request["acceptance"], request["arrival_s"],
            table.arrival_s, table.task, table.prompt_tokens, table.attachment_bits,
            table.output_tokens, table.acceptance,
            *arrivals, *self.tasks, *self.machines,
        )  # fmt: skip
        return tuple(None if tensor is None else tensor.contiguous() for tensor in found)


@dataclass(frozen=True)
class _Outputs:
    """The struct `Outputs` of the C file."""

    state_columns: Tensor
    state_counts: Tensor
    outcome_columns: Tensor
    flags: Tensor
    finished_task: Tensor
    slot: Tensor
    kv_free: Tensor
    server_energy: Tensor
    alive: Tensor
    drained: Tensor
    battery_columns: Tensor | None

    @classmethod
    def empty(cls, networks: int, devices: int, servers: int, *, batteries: bool) -> _Outputs:
        """Allocate."""
        shape = (networks, devices)
        return cls(
            state_columns=torch.empty(len(_STATE_COLUMNS), *shape),
            state_counts=torch.empty(len(_STATE_COUNTS), *shape, dtype=torch.long),
            outcome_columns=torch.empty(len(_OUTCOME_COLUMNS), *shape),
            flags=torch.empty(len(_FLAGS), *shape, dtype=torch.bool),
            finished_task=torch.empty(shape, dtype=torch.long),
            slot=torch.empty(networks, dtype=torch.long),
            kv_free=torch.empty(networks, servers),
            server_energy=torch.empty(networks, servers),
            alive=torch.empty(networks),
            drained=torch.empty(networks, dtype=torch.bool),
            battery_columns=torch.empty(len(_BATTERY_COLUMNS), *shape) if batteries else None,
        )

    def tensors(self) -> tuple[Tensor | None, ...]:
        """List them in the order of the struct."""
        return (
            self.state_columns, self.state_counts, self.outcome_columns, self.flags,
            self.finished_task, self.slot, self.kv_free, self.server_energy, self.alive,
            self.drained, self.battery_columns,
        )  # fmt: skip

    def to_step(self) -> NativeStep:
        """Name the columns."""
        state = dict(zip(_STATE_COLUMNS, self.state_columns.unbind(), strict=True))
        state |= zip(_STATE_COUNTS, self.state_counts.unbind(), strict=True)
        flags = dict(zip(_FLAGS, self.flags.unbind(), strict=True))
        progress = {name: state[name] for name in _IN_PROGRESS}
        battery_j = battery_share = failed = None
        if self.battery_columns is not None:
            battery_j, battery_share, failed = self.battery_columns.unbind()
        return NativeStep(
            progress=Progress(
                slot=self.slot, active=flags["active"], battery_j=battery_j, **progress
            ),
            request={name: state[name] for name in _IN_REQUEST},
            known={
                **{name: state[name] for name in _IN_KNOWN},
                "acceptance": state["estimate"],
                "kv_free_tokens": self.kv_free,
            },
            outcome=SlotOutcome(
                alive_s=self.alive,
                server_energy_j=self.server_energy,
                handover=flags["handover"],
                finished=flags["finished"],
                finished_task=self.finished_task,
                drained=self.drained,
                battery_share=battery_share,
                failed=failed,
                **dict(zip(_OUTCOME_COLUMNS, self.outcome_columns.unbind(), strict=True)),
            ),
        )


_IN_PROGRESS = (
    "finished", "arrived", "upload_bits", "kv_tokens", "tokens", "server", "accepted", "tested",
    "ttft_s",
)  # fmt: skip
_IN_REQUEST = (
    "task", "prompt_tokens", "attachment_bits", "output_tokens", "acceptance", "arrival_s",
)  # fmt: skip
_IN_KNOWN = (
    "phase", "task", "age_s", "waiting_requests", "prompt_tokens", "expected_remaining_tokens",
)  # fmt: skip


def _constants(config: WorldConfig, physics: Physics, native: NativeLink) -> _Constants:
    """Fill the struct; a frame's base is what it has without the contents that vary."""
    link, codec, batteries = physics.config.link, physics.codec, config.batteries
    empty_field_bits = 8.0 * 2  # the head of a field without content
    return _Constants(
        uplink_noise=link.uplink_noise_w_per_hz,
        downlink_noise=link.downlink_noise_w_per_hz,
        link=native.constants,
        activity_passes=ACTIVITY_PASSES if link.interference == "reuse1" else 0,
        rate_min=MIN_RATE_BPS,
        drafts=float(MODES[physics.config.mode].drafts),
        id_bytes=codec.id_bytes,
        row_bytes=codec.row_bytes_per_token,
        draft_base_bits=codec.draft_bits(0.0) - 2 * empty_field_bits,
        prompt_base_bits=codec.prompt_bits(0.0) - empty_field_bits,
        verdict_accepted_bits=codec.verdict_bits_given(rejected=False),
        verdict_rejected_bits=codec.verdict_bits_given(rejected=True),
        token_bits=codec.token_bits(),
        chunk_tokens=physics.config.batching.prefill_chunk_tokens,
        inverse_efficiency=1 / physics.config.amplifier_efficiency,
        slot_s=config.slot_s,
        prior_tokens=config.acceptance_prior_tokens,
        infinity=float("inf"),
        iterations=physics.config.batching.iterations,
        idle_j=0.0 if batteries is None else batteries.idle_power_w * config.slot_s,
        failure_s=0.0 if batteries is None else batteries.failure_s,
    )
