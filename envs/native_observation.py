"""The observation of `envs.observation` made by compiled code.

Shape legend: B networks, M devices, E servers, F features.

The torch form makes some sixty passes over (B, M, E) tensors; `observe.c` makes one. The numbers
agree to a few units of float32.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from envs.observation import Observation, schema
from uara.errors import UserError
from uara.local_prediction import (
    ASSUMED_ACTIVITY,
    ASSUMED_RESIDUAL_SHARE,
    PRESENCE_WHEN_DRAFTING,
    assumed_draft_length,
)
from uara.native import load_library, pointers
from uara.network import NetworkState
from uara.prediction import Physics
from uara.radio.native_link import LinkConstants, NativeLink
from uara.rates import MIN_RATE_BPS
from uara.serving.modes import MODES
from uara.world.native_slot import MODES_IN_C, knows_physics

_SOURCE = Path(__file__).with_name("observe.c")
_LANES = 16  # as in the C files, which pad the rows of pairs to it


class _Constants(ctypes.Structure):
    """The struct `Constants` of the C file."""

    _fields_ = (
        ("uplink_noise", ctypes.c_float),
        ("downlink_noise", ctypes.c_float),
        ("link", LinkConstants),
        *(
            (name, ctypes.c_float)
            for name in (
                "shares_band", "activity", "rate_min", "draft_bits", "draft_length", "presence",
                "residual_share", "chunk_tokens", "drafts", "verdict_bits", "rejection_bits",
            )
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class NativeObserver:
    """Observes networks under one physics; call it as `observe`."""

    physics: Physics
    link: NativeLink
    library: ctypes.CDLL
    constants: _Constants

    @classmethod
    def of(cls, physics: Physics) -> NativeObserver:
        """Compile for a physics configuration.

        Raises:
            UserError: if the compiled code does not know the mode, or if there is no C compiler.
        """
        link, mode = physics.config.link, physics.config.mode
        if not knows_physics(physics):
            raise UserError(
                f"native observations do not know mode '{mode}'; allowed: "
                f"{', '.join(MODES_IN_C)}; leave `native` off"
            )
        native = NativeLink.of(link)
        length, drafts = assumed_draft_length(physics), MODES[mode].drafts
        codec = physics.codec
        accepted_bits, rejected_bits = (
            codec.verdict_bits_given(rejected=rejected) for rejected in (False, True)
        )
        constants = _Constants(
            uplink_noise=link.uplink_noise_w_per_hz,
            downlink_noise=link.downlink_noise_w_per_hz,
            link=native.constants,
            shares_band=float(link.interference == "reuse1"),
            activity=ASSUMED_ACTIVITY,
            rate_min=MIN_RATE_BPS,
            draft_bits=physics.codec.draft_bits(float(length)) if drafts else 0.0,
            draft_length=length,
            presence=PRESENCE_WHEN_DRAFTING if drafts else 1.0,
            residual_share=ASSUMED_RESIDUAL_SHARE,
            chunk_tokens=physics.config.batching.prefill_chunk_tokens,
            drafts=float(drafts),
            verdict_bits=accepted_bits if drafts else codec.token_bits(),
            rejection_bits=rejected_bits - accepted_bits if drafts else 0.0,
        )
        library = load_library(_SOURCE)
        library.scratch_floats.restype = ctypes.c_int64
        return cls(physics, native, library, constants)

    def __call__(self, state: NetworkState) -> Observation:
        """Observe B networks.

        Args:
            state: float32, on the CPU.

        Returns:
            Features in the order of `schema()`.
        """
        assert state.gain.dtype == torch.float32, "compiled code reads float32"
        networks, devices, servers = state.gain.shape
        features = schema()
        width = -(-devices // _LANES) * _LANES
        device = torch.empty(len(features.device), networks, devices)
        pair = torch.empty(networks, len(features.pair), servers, width)
        server = torch.empty(len(features.server), networks, servers)
        floats = self.library.scratch_floats(ctypes.c_int64(devices), ctypes.c_int64(servers))
        scratch = torch.empty(floats)
        found = (self.link.uplink, self.link.downlink, *_inputs(state))
        inputs = tuple(tensor.contiguous() for tensor in found)
        self.library.observe(
            pointers(inputs),
            ctypes.byref(self.constants),
            *(ctypes.c_int64(size) for size in (networks, devices, servers)),
            pointers((device, pair, server)),
            ctypes.c_void_p(scratch.data_ptr()),
        )
        return Observation(
            device=device.movedim(0, -1),
            pair=pair[..., :devices].permute(0, 3, 2, 1),
            server=server.movedim(0, -1),
            mask=state.reachable,
            active=state.has_request,
        )


def _inputs(state: NetworkState) -> tuple[Tensor, ...]:
    """List the state's tensors in the order of the struct `Inputs`."""
    return (
        state.gain, state.reachable, state.server, state.phase, state.prompt_tokens,
        state.tokens_so_far, state.kv_tokens, state.upload_bits,
        state.expected_remaining_tokens, state.draft_time_s, state.acceptance, state.age_s,
        state.waiting_requests, state.power_max_w, state.uplink_bandwidth_hz,
        state.downlink_bandwidth_hz, state.downlink_power_w, state.rtt_s, state.forward_fixed_s,
        state.forward_per_row_s, state.forward_per_token_s, state.forward_per_context_s,
        state.foreign_rows, state.foreign_prefill_tokens, state.kv_free_tokens,
    )  # fmt: skip
