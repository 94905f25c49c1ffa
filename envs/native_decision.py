"""Decisions of `envs.action` made by compiled code, where all four choices are learned.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from envs.action import WEIGHT_SPAN, Action, ControlConfig, check_heads
from uara.native import load_library, pointers
from uara.network import Decision, NetworkState

_SOURCE = Path(__file__).with_name("decide.c")


def knows_control(control: ControlConfig) -> bool:
    """Tell whether every choice is the learner's, also that of a running request's server."""
    return control.may_move and len(control.learned) == len(fields(Action))


@dataclass(frozen=True)
class NativeDecider:
    """Completes actions to decisions as `to_decision` and counts as `illegal_server`."""

    library: ctypes.CDLL
    control: ControlConfig
    max_draft_length: int

    @classmethod
    def of(cls, control: ControlConfig, max_draft_length: int) -> NativeDecider:
        """Compile.

        Args:
            control: `knows_control` must hold.
            max_draft_length: longer drafts are cut.

        Raises:
            UserError: if there is no C compiler.
        """
        return cls(load_library(_SOURCE), control, max_draft_length)

    def __call__(self, action: Action, state: NetworkState) -> tuple[Decision, Tensor]:
        """Decide.

        Args:
            action: all four heads.
            state: what is known; float32, on the CPU.

        Returns:
            the decision, and which choices of a server were illegal, (B, M) bool.

        Raises:
            UserError: if the action's heads are not those that the control config learns.
        """
        check_heads(action, self.control)
        server, length = action.server, action.draft_length
        bandwidth, power = action.bandwidth, action.power
        assert server is not None, "a learned server is missing"
        assert bandwidth is not None, "a learned bandwidth is missing"
        assert power is not None, "a learned power is missing"
        assert length is not None, "a learned draft length is missing"
        found = (
            server.long(), bandwidth.float(), power.float(), length.long(), state.gain,
            state.reachable, state.phase, state.power_max_w, state.uplink_bandwidth_hz,
        )  # fmt: skip
        decision = Decision(
            server=torch.empty(server.shape, dtype=torch.long),
            bandwidth_hz=torch.empty(server.shape),
            power_w=torch.empty(server.shape),
            draft_length=torch.empty(server.shape, dtype=torch.long),
        )
        illegal = torch.empty(server.shape, dtype=torch.bool)
        scratch = torch.empty(state.num_servers)
        inputs = tuple(tensor.contiguous() for tensor in found)
        outputs = (
            decision.server, decision.bandwidth_hz, decision.power_w, decision.draft_length, illegal
        )  # fmt: skip
        self.library.decide(
            pointers(inputs),
            *(ctypes.c_int64(size) for size in state.gain.shape),
            ctypes.c_float(WEIGHT_SPAN),
            ctypes.c_int64(self.max_draft_length),
            pointers(outputs),
            ctypes.c_void_p(scratch.data_ptr()),
        )
        return decision, illegal
