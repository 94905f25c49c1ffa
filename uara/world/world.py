"""The world: B networks that step through slots of requests, mobility, serving and handover.

Shape legend: B networks, M devices, E servers, R requests of a device, T slots.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from uara.errors import UserError
from uara.network import Decision, NetworkState, Phase, SlotOutcome
from uara.prediction import Physics, Prediction, predict
from uara.radio.bank import ChannelBank
from uara.radio.replay import filtered_gain, walk
from uara.serving.acceptance import AcceptanceTable
from uara.serving.batching import sum_by_server
from uara.world.config import WorldConfig, network_constants, reachable
from uara.world.requests import AnswerLengths, RequestTable, draw_requests


@dataclass
class _Progress:
    """What changes from slot to slot, one row per network."""

    slot: Tensor  # (B,) long
    finished: Tensor  # (B, M) long, requests done so far; also the index of the current one
    arrived: Tensor  # (B, M) requests that have arrived
    active: Tensor  # (B, M) bool, a request is being served
    upload_bits: Tensor  # (B, M)
    kv_tokens: Tensor  # (B, M)
    tokens: Tensor  # (B, M) committed of the current answer
    server: Tensor  # (B, M) long
    accepted: Tensor  # (B, M) draft tokens of the current request
    tested: Tensor  # (B, M)
    ttft_s: Tensor  # (B, M) of the current request; inf until its first token


class World:
    """Steps B networks at once; a network is one world of the bank and one request table."""

    def __init__(
        self,
        config: WorldConfig,
        physics: Physics,
        bank: ChannelBank,
        acceptance: AcceptanceTable,
        num_networks: int,
    ) -> None:
        """Set up the constants of the networks; `reset` must follow.

        Raises:
            UserError: if the bank has other sizes, another slot or fewer slots than the config.
        """
        _check_bank(config, bank)
        self.config = config
        self.physics = physics
        self.bank = bank
        self.num_networks = num_networks
        self.num_devices = bank.gain_db.shape[2]
        self.num_servers = len(config.servers)
        gain = bank.gain()
        self.walk = torch.from_numpy(walk(gain.shape[1]))
        self.gain_bank = torch.from_numpy(gain)  # (world, slot, M, E)
        self.known_gain = filtered_gain(gain, config.slot_s, config.gain_filter_s)
        self.position_bank = torch.from_numpy(bank.position_m)
        rule = physics.codec.rule
        rates = [acceptance.of(rule, task.name) for task in config.requests.tasks]
        self.acceptance_mean = torch.tensor([rate.mean for rate in rates])
        self.acceptance_std = torch.tensor([rate.std for rate in rates])
        self.lengths = AnswerLengths.of(config.requests)
        self._constants = network_constants(config, num_networks, self.num_devices)
        shape = (num_networks, self.num_devices)
        self.world = torch.zeros(num_networks, dtype=torch.long)
        self.requests = self._draw(torch.zeros(num_networks, dtype=torch.int64))
        self.arrivals, self.waiting_s = self.requests.count_by_slot(
            config.horizon_slots, config.slot_s
        )
        self.progress = _Progress(
            slot=torch.zeros(num_networks, dtype=torch.long),
            finished=torch.zeros(shape, dtype=torch.long),
            arrived=torch.zeros(shape),
            active=torch.zeros(shape, dtype=torch.bool),
            upload_bits=torch.zeros(shape),
            kv_tokens=torch.zeros(shape),
            tokens=torch.zeros(shape),
            server=torch.full(shape, -1),
            accepted=torch.zeros(shape),
            tested=torch.zeros(shape),
            ttft_s=torch.full(shape, torch.inf),
        )
        self._current: dict[str, Tensor] | None = None

    def reset(self, mask: Tensor, world: Tensor, episode: Tensor) -> None:
        """Start new episodes in some networks; the others go on untouched.

        Args:
            mask: (B,) bool.
            world: (B,) long, world of the bank; read where the mask is set.
            episode: (B,) int64 key of requests; read where the mask is set.
        """
        rows = mask.nonzero().squeeze(1)
        if rows.numel() == 0:
            return
        self.world = torch.where(mask, world, self.world)
        table = self._draw(episode[rows])
        for field in fields(RequestTable):
            getattr(self.requests, field.name)[rows] = getattr(table, field.name)
        arrivals, waiting_s = table.count_by_slot(self.config.horizon_slots, self.config.slot_s)
        self.arrivals[rows] = arrivals
        self.waiting_s[rows] = waiting_s
        for field in fields(_Progress):
            empty = {"server": -1, "ttft_s": torch.inf}.get(field.name, 0)
            # A copy: states handed out earlier share these tensors.
            values = getattr(self.progress, field.name).clone()
            values[rows] = empty
            setattr(self.progress, field.name, values)
        self._current = None

    def state_dict(self) -> dict[str, Tensor]:
        """Copy everything that changes: worlds, requests and progress."""
        state = {"world": self.world.clone()}
        for f in fields(RequestTable):
            state[f"requests.{f.name}"] = getattr(self.requests, f.name).clone()
        for f in fields(_Progress):
            state[f"progress.{f.name}"] = getattr(self.progress, f.name).clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go back to a saved state; the world must have been made of the same configuration.

        Raises:
            UserError: if the state belongs to another number of networks, devices or requests.
        """
        own = self.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in own.items()}:
            raise UserError(
                "the saved world has other tensors than this one "
                f"({self.num_networks} networks, {self.num_devices} devices); "
                "load it with the configuration that it was saved with"
            )
        self.world = state["world"].clone()
        self.requests = RequestTable(
            **{f.name: state[f"requests.{f.name}"].clone() for f in fields(RequestTable)}
        )
        self.progress = _Progress(
            **{f.name: state[f"progress.{f.name}"].clone() for f in fields(_Progress)}
        )
        self.arrivals, self.waiting_s = self.requests.count_by_slot(
            self.config.horizon_slots, self.config.slot_s
        )
        self._current = None

    def time_s(self) -> Tensor:
        """Return the time since the start of each episode, (B,)."""
        return self.progress.slot * self.config.slot_s

    def gain(self, *, true: bool) -> Tensor:
        """Return the gains of the slot, or those that controllers know, (B, M, E)."""
        if true:
            return self.gain_bank[self.world, self._bank_slot()]
        seen = (self.progress.slot - self.config.csi_delay_slots).clamp_min(0)
        return self.known_gain[self.world, seen % len(self.walk)]

    def position_m(self) -> Tensor:
        """Return the devices' positions, (B, M, 2)."""
        return self.position_bank[self.world, self._bank_slot()]

    def state(self, *, true: bool = False) -> NetworkState:
        """Describe the networks at the start of the slot.

        Args:
            true: the request's own acceptance and this slot's gain instead of the running
                estimate and the filtered gain of `csi_delay_slots` ago; for the world's own step.
        """
        now, request = self.progress, self._request()
        age_s = torch.where(now.active, self.time_s()[:, None] - request["arrival_s"], 0.0)
        task = request["task"]
        prior = self.config.acceptance_prior_tokens
        estimate = (prior * self.acceptance_mean[task] + now.accepted) / (prior + now.tested)
        remaining = self.lengths.expected_remaining_tokens(now.tokens, task)
        gain = self.gain(true=true)
        context = request["prompt_tokens"] + now.tokens
        phase = torch.where(
            now.upload_bits > 0,
            int(Phase.UPLOADING),
            torch.where(now.kv_tokens < context, int(Phase.PREFILLING), int(Phase.DECODING)),
        )
        server = torch.where(now.active, now.server, -1)
        held = sum_by_server(
            torch.where(now.active, now.kv_tokens, 0.0), server.clamp_min(0), self.num_servers
        )
        return NetworkState(
            time_s=self.time_s(),
            gain=gain,
            reachable=reachable(gain, self.config.reach_gain_db),
            phase=torch.where(now.active, phase, int(Phase.IDLE)),
            task=task,
            age_s=age_s.float(),
            waiting_requests=now.arrived - now.finished - now.active.float(),
            prompt_tokens=request["prompt_tokens"],
            upload_bits=now.upload_bits,
            tokens_so_far=now.tokens,
            expected_remaining_tokens=remaining,
            acceptance=request["acceptance"] if true else estimate,
            server=server,
            kv_tokens=now.kv_tokens,
            position_m=self.position_m(),
            kv_free_tokens=self._constants["kv_capacity_tokens"] - held,
            **{k: v for k, v in self._constants.items() if k != "kv_capacity_tokens"},
        )

    def step(self, decision: Decision) -> SlotOutcome:
        """Play one slot of every network.

        Args:
            decision: servers of devices without a request may be anything in range.
        """
        now, request, slot_s = self.progress, self._request(), self.config.slot_s
        state = self.state(true=True)
        plan = predict(state, decision, self.physics)
        active = now.active

        time_up = torch.where(active, plan.upload_s.clamp(max=slot_s), 0.0)
        left = torch.where(active, slot_s - time_up, 0.0)
        time_prefill = torch.minimum(plan.prefill_s, left)
        left = left - time_prefill
        output_left = request["output_tokens"] - now.tokens
        time_decode = torch.minimum(output_left * plan.tpot_s, left)
        is_finished = active & (output_left * plan.tpot_s <= left)
        tokens = torch.where(is_finished, output_left, time_decode / plan.tpot_s)
        tokens = torch.where(active, tokens, 0.0)

        start_s = self.time_s()[:, None]
        decode_start_s = start_s + time_up + time_prefill
        begins = active & torch.isinf(now.ttft_s) & (left > 0)
        ttft_s = torch.where(
            begins, decode_start_s + plan.round_s - request["arrival_s"].float(), now.ttft_s
        )
        e2e_s = torch.where(
            is_finished, decode_start_s + time_decode - request["arrival_s"].float(), 0.0
        )
        outcome = SlotOutcome(
            alive_s=self._alive_s(is_finished, time_up + time_prefill + time_decode),
            tokens=tokens,
            device_energy_j=self._device_energy_j(state, decision, plan, time_up, time_decode),
            server_energy_j=self._server_energy_j(state, decision, plan, time_prefill),
            uplink_bits=time_up * plan.uplink_bps + time_decode / plan.round_s * plan.draft_bits,
            downlink_bits=time_decode / plan.round_s * plan.verdict_bits,
            handover=plan.handover,
            finished=is_finished,
            e2e_s=e2e_s,
            ttft_s=torch.where(is_finished, torch.minimum(ttft_s, e2e_s), 0.0),
            finished_tokens=torch.where(is_finished, request["output_tokens"], 0.0),
            finished_task=torch.where(is_finished, request["task"], 0),
            drained=torch.zeros(self.num_networks, dtype=torch.bool),
        )
        self._advance(decision, plan, outcome, time_up, time_prefill, tokens, ttft_s)
        no_more = now.slot >= self.config.horizon_slots
        drained = no_more & (now.arrived <= now.finished).all(1)
        return SlotOutcome(**{**outcome.__dict__, "drained": drained})

    def offered_work_s(self, decision: Decision) -> Tensor:
        """Compute the prefill and marginal token work of the coming slot, (B, E) seconds.

        Load is judged by it and not by busy time: a server that starts a pass whenever something
        waits is always busy.
        """
        state, slot_s = self.state(true=True), self.config.slot_s
        plan = predict(state, decision, self.physics)
        left = torch.where(state.has_request, slot_s - plan.upload_s, 0.0).clamp_min(0)
        prefill_s = torch.minimum(plan.prefill_s, left)
        rounds = (left - prefill_s) / plan.round_s
        new_tokens = torch.where(plan.draft_bits > 0, decision.draft_length + 1.0, 1.0)
        tokens = prefill_s * plan.prefill_tokens_per_s + rounds * new_tokens
        work_s = tokens * state.forward_per_token_s.gather(1, decision.server)
        return sum_by_server(work_s, decision.server, self.num_servers)

    def _advance(
        self,
        decision: Decision,
        plan: Prediction,
        outcome: SlotOutcome,
        time_up: Tensor,
        time_prefill: Tensor,
        tokens: Tensor,
        ttft_s: Tensor,
    ) -> None:
        """Carry the slot's work into the progress and admit the next requests."""
        now, active = self.progress, self.progress.active
        request = self._request()
        sent = torch.where(time_up >= plan.upload_s, torch.inf, time_up * plan.uplink_bps)
        upload_bits = torch.where(
            plan.is_device_only, now.upload_bits, (now.upload_bits - sent).clamp_min(0)
        )
        done_prefill = time_prefill * plan.prefill_tokens_per_s
        is_prefilled = done_prefill >= plan.prefill_tokens * (1 - 1e-6)
        context = request["prompt_tokens"] + (now.tokens + tokens)
        kv_start = request["prompt_tokens"] + now.tokens - plan.prefill_tokens
        kv = torch.where(is_prefilled & (upload_bits <= 0), context, kv_start + done_prefill)
        kv = torch.where(plan.is_device_only, now.kv_tokens, kv)
        drafted = plan.draft_bits > 0
        rounds = torch.where(drafted, tokens / plan.tokens_per_round, 0.0)
        # Of a round's tokens all but the correction or bonus were accepted drafts.
        accepted = rounds * (plan.tokens_per_round - 1)
        tested = accepted / request["acceptance"].clamp_min(1e-6)

        goes_on = active & ~outcome.finished
        now.upload_bits = torch.where(goes_on, upload_bits, 0.0)
        now.kv_tokens = torch.where(goes_on, kv, 0.0)
        now.tokens = torch.where(goes_on, now.tokens + tokens, 0.0)
        now.server = torch.where(plan.is_device_only, now.server, decision.server)
        now.server = torch.where(goes_on, now.server, -1)
        now.accepted = torch.where(goes_on, now.accepted + accepted, 0.0)
        now.tested = torch.where(goes_on, now.tested + tested, 0.0)
        now.ttft_s = torch.where(goes_on, ttft_s, torch.inf)
        now.finished = now.finished + outcome.finished.long()
        now.arrived = now.arrived + self._arrivals_now()
        now.slot = now.slot + 1
        self._current = None
        starts = ~goes_on & (now.arrived > now.finished)
        now.active = goes_on | starts
        request = self._request()
        bits = self.physics.codec.prompt_bits(request["prompt_tokens"]) + request["attachment_bits"]
        now.upload_bits = torch.where(starts, bits, now.upload_bits)

    def _arrivals_now(self) -> Tensor:
        """Count the arrivals of the current slot, (B, M)."""
        slot = self.progress.slot
        index = slot.clamp(max=self.config.horizon_slots - 1)
        counts = self.arrivals[torch.arange(self.num_networks), :, index]
        return torch.where((slot < self.config.horizon_slots)[:, None], counts, 0.0)

    def _alive_s(self, is_finished: Tensor, finish_s: Tensor) -> Tensor:
        """Integrate the number of requests waiting or alive over the slot, (B,)."""
        now, slot_s = self.progress, self.config.slot_s
        present = (now.arrived - now.finished).sum(1) * slot_s
        gone = torch.where(is_finished, slot_s - finish_s, 0.0).sum(1)
        index = now.slot.clamp(max=self.config.horizon_slots - 1)
        new = self.waiting_s[torch.arange(self.num_networks), index]
        return present - gone + torch.where(now.slot < self.config.horizon_slots, new, 0.0)

    def _device_energy_j(
        self,
        state: NetworkState,
        decision: Decision,
        plan: Prediction,
        time_up: Tensor,
        time_decode: Tensor,
    ) -> Tensor:
        """Compute joules of drafting and transmitting, (B, M)."""
        rounds = time_decode / plan.round_s
        radio_s = time_up + rounds * plan.draft_uplink_s
        radio_w = decision.power_w / self.physics.config.amplifier_efficiency
        return radio_s * radio_w + rounds * plan.draft_s * state.draft_power_w

    def _server_energy_j(
        self, state: NetworkState, decision: Decision, plan: Prediction, time_prefill: Tensor
    ) -> Tensor:
        """Compute joules of the servers, (B, E): time in decoding and prefill at full power."""
        work_s = (
            time_prefill
            * plan.prefill_tokens_per_s
            * state.forward_per_token_s.gather(1, decision.server)
        )
        prefill_s = sum_by_server(work_s, decision.server, self.num_servers)
        busy_s = (plan.server_busy * self.config.slot_s + prefill_s).clamp(max=self.config.slot_s)
        return busy_s * state.server_power_w

    def _request(self) -> dict[str, Tensor]:
        """Look up the current request of each device, (B, M) each; zeros where there is none."""
        if self._current is None:
            table = self.requests
            last = table.task.shape[2] - 1
            index = self.progress.finished.clamp(max=last).unsqueeze(-1)
            active = self.progress.active
            self._current = {
                field.name: getattr(table, field.name).gather(2, index).squeeze(-1) * active
                for field in fields(RequestTable)
                if field.name != "arrival_s"
            }
            # The table ends with infinity, which a product would turn into nan.
            arrival_s = table.arrival_s.gather(2, index).squeeze(-1)
            self._current["arrival_s"] = torch.where(active, arrival_s, 0.0)
        return self._current

    def _draw(self, episode: Tensor) -> RequestTable:
        """Draw request tables for episode keys (K,)."""
        return draw_requests(
            episode,
            self.num_devices,
            self.config.horizon_slots * self.config.slot_s,
            self.config.requests,
            self.acceptance_mean,
            self.acceptance_std,
        )

    def _bank_slot(self) -> Tensor:
        """Map the current slot to the bank, (B,)."""
        return self.walk[self.progress.slot % len(self.walk)]


def _check_bank(config: WorldConfig, bank: ChannelBank) -> None:
    """Refuse a bank that cannot carry the configuration."""
    _, slots, _, servers = bank.gain_db.shape
    if servers != len(config.servers):
        raise UserError(
            f"the bank has {servers} servers but the config names {len(config.servers)}; "
            "build a bank for this config with `uara channels build`"
        )
    if config.horizon_slots > slots:
        raise UserError(
            f"horizon_slots is {config.horizon_slots} but the bank has {slots} slots per world; "
            "shorten the horizon or build a longer bank"
        )
