"""The observation of `envs.observation` with its pair features made by compiled code.

Shape legend: B networks, M devices, E servers, F features.

The torch form makes some sixty passes over (B, M, E) tensors; `pair_rows.c` makes one. The numbers
agree to a few units of float32.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from envs.local_prediction import (
    ASSUMED_RESIDUAL_SHARE,
    PRESENCE_WHEN_DRAFTING,
    ServerLoad,
    assumed_draft_length,
)
from envs.observation import Observation, device_rows, schema, server_rows
from uara.errors import UserError
from uara.native import load_library
from uara.network import NetworkState, Phase
from uara.prediction import MIN_RATE_BPS, Physics
from uara.serving.modes import MODES

MODES_IN_C = ("sd", "server_ar")

_SOURCE = Path(__file__).with_name("pair_rows.c")
_LANES = 16  # as in the C file, which pads its scratch rows to it
_SCRATCH_COLUMNS = 10


class _Constants(ctypes.Structure):
    """The struct `Constants` of the C file."""

    _fields_ = tuple(
        (name, ctypes.c_float)
        for name in (
            "uplink_noise", "downlink_noise", "efficiency_max", "rate_min", "draft_bits",
            "draft_length", "presence", "residual_share", "chunk_tokens", "drafts",
        )
    )  # fmt: skip


@dataclass(frozen=True)
class NativeObserver:
    """Observes networks under one physics; call it as `observe`."""

    physics: Physics
    library: ctypes.CDLL
    constants: _Constants

    @classmethod
    def of(cls, physics: Physics) -> NativeObserver:
        """Compile for a physics configuration.

        Raises:
            UserError: if the compiled code does not know the mode or the link model, or if there
                is no C compiler.
        """
        link, mode = physics.config.link, physics.config.mode
        if mode not in MODES_IN_C or (link.interference, link.adaptation) != (
            "orthogonal",
            "shannon",
        ):
            raise UserError(
                f"native observations do not know mode '{mode}' with interference "
                f"'{link.interference}' and adaptation '{link.adaptation}'; allowed: "
                f"{', '.join(MODES_IN_C)} with 'orthogonal' and 'shannon'; leave `native` off"
            )
        gap = 10 ** (link.snr_gap_db / 10)
        length, drafts = assumed_draft_length(physics), MODES[mode].drafts
        constants = _Constants(
            uplink_noise=link.uplink_noise_w_per_hz * gap,
            downlink_noise=link.downlink_noise_w_per_hz * gap,
            efficiency_max=link.spectral_efficiency_max,
            rate_min=MIN_RATE_BPS,
            draft_bits=physics.codec.draft_bits(float(length)) if drafts else 0.0,
            draft_length=length,
            presence=PRESENCE_WHEN_DRAFTING if drafts else 1.0,
            residual_share=ASSUMED_RESIDUAL_SHARE,
            chunk_tokens=physics.config.batching.prefill_chunk_tokens,
            drafts=float(drafts),
        )
        return cls(physics, load_library(_SOURCE), constants)

    def __call__(self, state: NetworkState) -> Observation:
        """Observe B networks.

        Args:
            state: float32, on the CPU.

        Returns:
            Features in the order of `schema()`.
        """
        pair, totals = self._pair_rows(state)
        requests, uploading, held, backlog = totals.unbind(1)
        load = ServerLoad(pair[..., 2], requests, uploading, held, backlog)
        return Observation(
            device=device_rows(state),
            pair=pair,
            server=server_rows(state, load),
            mask=state.reachable,
            active=state.has_request,
        )

    def _pair_rows(self, state: NetworkState) -> tuple[Tensor, Tensor]:
        """Make the features of pairs (B, M, E, F) and the sums of servers (B, 4, E)."""
        assert state.gain.dtype == torch.float32, "compiled code reads float32"
        networks, devices, servers = state.gain.shape
        features = len(schema().pair)
        width = -(-devices // _LANES) * _LANES
        rows = torch.empty(networks, features, servers, devices)
        totals = torch.empty(networks, 4, servers)
        scratch = torch.empty((features * servers + _SCRATCH_COLUMNS) * width)
        inputs = [tensor.contiguous() for tensor in self._inputs(state)]
        pointers = (ctypes.c_void_p * len(inputs))(*(tensor.data_ptr() for tensor in inputs))
        self.library.pair_rows(
            pointers,
            ctypes.byref(self.constants),
            *(ctypes.c_int64(size) for size in (networks, devices, servers, Phase.UPLOADING)),
            *(ctypes.c_void_p(out.data_ptr()) for out in (totals, rows, scratch)),
        )
        return rows.permute(0, 3, 2, 1), totals

    def _inputs(self, state: NetworkState) -> tuple[Tensor, ...]:
        """List the tensors in the order of the struct `Inputs`."""
        mode = MODES[self.physics.config.mode]
        length = torch.tensor(self.constants.draft_length)
        return (
            state.gain, state.reachable, state.server, state.has_request, state.phase,
            state.context_tokens, state.kv_tokens, state.upload_bits,
            state.expected_remaining_tokens, state.draft_time_s,
            self.physics.codec.verdict_bits(length, state.acceptance),
            mode.expected_tokens(state.acceptance, length), state.power_max_w,
            state.uplink_bandwidth_hz, state.downlink_bandwidth_hz, state.downlink_power_w,
            state.rtt_s, state.forward_fixed_s, state.forward_per_row_s,
            state.forward_per_token_s, state.forward_per_context_s, state.foreign_rows,
            state.foreign_prefill_tokens,
        )  # fmt: skip
