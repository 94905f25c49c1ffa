"""One slot of every device: how long it uploads, reads, decodes, and how far it gets.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uara.network import Decision, NetworkState
from uara.prediction import Prediction
from uara.serving.energy import EnergyConfig, airtime_energy_j, paper1_energy_j
from uara.serving.transfer import kv_transfer_s, moving_kv_tokens
from uara.world.holding import Holding
from uara.world.progress import Progress


@dataclass(frozen=True)
class Played:
    """What the devices did in a slot, (B, M) each."""

    upload_s: Tensor  # asked for
    time_up: Tensor  # spent
    prefill_tokens: Tensor  # read
    time_prefill: Tensor
    time_decode: Tensor
    rounds: Tensor
    tokens: Tensor  # committed
    is_finished: Tensor  # bool
    busy_s: Tensor  # all of it together
    ttft_s: Tensor  # since the arrival; inf before the first token
    decode_age_s: Tensor  # age at which decoding began or went on
    kv_moving_tokens: Tensor | None  # on their way at the start of the slot; None: no transfers
    kv_moved_tokens: Tensor | None

    def cut_short(self, dies: Tensor, done_share: Tensor) -> Played:
        """Undo what a device did not live to do: (B, M) bool and the share that it did."""
        return replace(
            self,
            is_finished=self.is_finished & ~dies,
            tokens=self.tokens * done_share,
            rounds=self.rounds * done_share,
        )


def play(
    state: NetworkState,
    plan: Prediction,
    decision: Decision,
    progress: Progress,
    output_tokens: Tensor,
    slot_s: float,
    holding: Holding | None,
) -> Played:
    """Play a slot with the rates of its start: upload, KV transfer, prefill, then decoding.

    Args:
        state: the truth that the plan was made of.
        plan: of the slot.
        decision: of the slot.
        progress: of the requests.
        output_tokens: (B, M) length of the answers.
        slot_s: length of the slot.
        holding: requests that wait; None: nobody does.
    """
    active = progress.active.float()
    upload_s = plan.upload_s
    if holding is not None:
        upload_s = torch.where(plan.is_device_only, 0.0, progress.upload_bits / plan.uplink_bps)
    time_up = upload_s.clamp(max=slot_s) * active
    if holding is not None:
        time_up = time_up * holding.sends
    left = slot_s * active - time_up
    if holding is not None:
        left = left * holding.is_served
    moving = moved = time_move = None
    prefill_s = plan.prefill_s
    if state.kv_arriving_tokens is not None:
        transfer_s = torch.where(plan.is_device_only, 0.0, kv_transfer_s(state, decision.server))
        time_move = torch.minimum(transfer_s, left)
        moving = moving_kv_tokens(state, decision.server)
        done_share = torch.where(transfer_s > 0, time_move / transfer_s.clamp_min(1e-30), 1.0)
        moved = moving * done_share * (left > 0)
        left = left - time_move
        prefill_s = plan.prefill_tokens / plan.prefill_tokens_per_s
    time_prefill = torch.minimum(prefill_s, left)
    left = left - time_prefill
    output_left = output_tokens - progress.tokens
    decode_s = output_left * plan.tpot_s
    time_decode = torch.minimum(decode_s, left)
    is_finished = progress.active & (decode_s <= left)
    tokens = torch.where(is_finished, output_left, time_decode / plan.tpot_s) * active

    decode_age_s, busy_s = state.age_s + time_up + time_prefill, time_up + time_prefill
    if time_move is not None:
        decode_age_s, busy_s = decode_age_s + time_move, busy_s + time_move
    begins = progress.active & torch.isinf(progress.ttft_s) & (left > 0)
    return Played(
        upload_s=upload_s,
        time_up=time_up,
        prefill_tokens=time_prefill * plan.prefill_tokens_per_s,
        time_prefill=time_prefill,
        time_decode=time_decode,
        rounds=time_decode / plan.round_s,
        tokens=tokens,
        is_finished=is_finished,
        busy_s=busy_s + time_decode,
        ttft_s=torch.where(begins, decode_age_s + plan.round_s, progress.ttft_s),
        decode_age_s=decode_age_s,
        kv_moving_tokens=moving,
        kv_moved_tokens=moved,
    )


def device_energy_j(
    state: NetworkState,
    decision: Decision,
    plan: Prediction,
    played: Played,
    config: EnergyConfig,
    amplifier_efficiency: float,
    flop_per_token: Tensor,
    slot_s: float,
) -> Tensor:
    """Compute joules of drafting and transmitting in a slot, (B, M).

    Args:
        state: powers and bands.
        decision: of the slot.
        plan: of the slot.
        played: what was done.
        config: how joules are reckoned.
        amplifier_efficiency: radiated over electrical power.
        flop_per_token: (B, M) of the draft models.
        slot_s: length of the slot.
    """
    rounds = played.rounds
    airtime_s, draft_s = played.time_up + rounds * plan.draft_uplink_s, rounds * plan.draft_s
    if config.form == "airtime":
        return airtime_energy_j(
            decision.power_w, airtime_s, amplifier_efficiency, draft_s, state.draft_power_w
        )
    return paper1_energy_j(
        decision.bandwidth_hz / state.uplink_bandwidth_hz.gather(1, decision.server),
        decision.power_w,
        (airtime_s > 0) * slot_s,
        draft_s / state.draft_time_s,
        flop_per_token,
        config,
    )
