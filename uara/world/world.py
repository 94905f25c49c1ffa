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
        self.known_reachable = reachable(self.known_gain, config.reach_gain_db)
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
        self.arrivals, self.waiting_s = self._count_by_slot(self.requests)
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
        self._known: NetworkState | None = None

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
        self.arrivals[rows], self.waiting_s[rows] = self._count_by_slot(table)
        for field in fields(_Progress):
            empty = {"server": -1, "ttft_s": torch.inf}.get(field.name, 0)
            # A copy: states handed out earlier share these tensors.
            values = getattr(self.progress, field.name).clone()
            values[rows] = empty
            setattr(self.progress, field.name, values)
        self._forget()

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
        self.arrivals, self.waiting_s = self._count_by_slot(self.requests)
        self._forget()

    def time_s(self) -> Tensor:
        """Return the time since the start of each episode, (B,)."""
        return self.progress.slot * self.config.slot_s

    def gain(self, *, true: bool) -> Tensor:
        """Return the gains of the slot, or those that controllers know, (B, M, E)."""
        if true:
            return _look_up(self.gain_bank, self.world, self._bank_slot())
        return _look_up(self.known_gain, self.world, self._known_slot())

    def position_m(self) -> Tensor:
        """Return the devices' positions, (B, M, 2)."""
        return _look_up(self.position_bank, self.world, self._bank_slot())

    def state(self, *, true: bool = False) -> NetworkState:
        """Describe the networks at the start of the slot.

        Args:
            true: the request's own acceptance and this slot's gain instead of the running
                estimate and the filtered gain of `csi_delay_slots` ago; for the world's own step.
        """
        if self._known is None:
            self._known = self._known_state()
        if not true:
            return self._known
        state = self._true_state()
        return state.with_(reachable=reachable(state.gain, self.config.reach_gain_db))

    def _known_state(self) -> NetworkState:
        """Describe what controllers know."""
        now, request = self.progress, self._request()
        active = now.active.float()
        task = request["task"]
        prior = self.config.acceptance_prior_tokens
        mean = self.acceptance_mean.take(task)
        context = request["prompt_tokens"] + now.tokens
        # UPLOADING, PREFILLING and DECODING follow each other; IDLE is 0.
        is_sent = now.upload_bits <= 0
        phase = int(Phase.UPLOADING) + is_sent.long() + (is_sent & (now.kv_tokens >= context))
        # Progress of a device without a request is zero and its server -1.
        held = sum_by_server(now.kv_tokens, now.server.clamp_min(0), self.num_servers)
        return NetworkState(
            time_s=self.time_s(),
            gain=self.gain(true=False),
            reachable=_look_up(self.known_reachable, self.world, self._known_slot()),
            phase=phase * now.active,
            task=task,
            age_s=(self.time_s()[:, None] - request["arrival_s"]) * active,
            waiting_requests=now.arrived - now.finished - active,
            prompt_tokens=request["prompt_tokens"],
            upload_bits=now.upload_bits,
            tokens_so_far=now.tokens,
            expected_remaining_tokens=self.lengths.expected_remaining_tokens(now.tokens, task),
            acceptance=(prior * mean + now.accepted) / (prior + now.tested),
            server=now.server,
            kv_tokens=now.kv_tokens,
            position_m=self.position_m(),
            kv_free_tokens=self._constants["kv_capacity_tokens"] - held,
            **{k: v for k, v in self._constants.items() if k != "kv_capacity_tokens"},
        )

    def _true_state(self) -> NetworkState:
        """Describe the truth; `reachable` stays what is known, which a prediction does not read."""
        return self.state().with_(
            gain=self.gain(true=True), acceptance=self._request()["acceptance"]
        )

    def step(self, decision: Decision) -> SlotOutcome:
        """Play one slot of every network.

        Args:
            decision: servers of devices without a request may be anything in range.
        """
        now, request, slot_s = self.progress, self._request(), self.config.slot_s
        state = self._true_state()
        plan = predict(state, decision, self.physics)
        active = now.active.float()

        time_up = plan.upload_s.clamp(max=slot_s) * active
        left = slot_s * active - time_up
        time_prefill = torch.minimum(plan.prefill_s, left)
        left = left - time_prefill
        output_left = request["output_tokens"] - now.tokens
        decode_s = output_left * plan.tpot_s
        time_decode = torch.minimum(decode_s, left)
        is_finished = now.active & (decode_s <= left)
        finished = is_finished.float()
        tokens = torch.where(is_finished, output_left, time_decode / plan.tpot_s) * active

        decode_age_s = state.age_s + time_up + time_prefill
        begins = now.active & torch.isinf(now.ttft_s) & (left > 0)
        ttft_s = torch.where(begins, decode_age_s + plan.round_s, now.ttft_s)
        e2e_s = (decode_age_s + time_decode) * finished
        rounds = time_decode / plan.round_s
        outcome = SlotOutcome(
            alive_s=self._alive_s(is_finished, time_up + time_prefill + time_decode),
            tokens=tokens,
            device_energy_j=self._device_energy_j(state, decision, plan, time_up, rounds),
            server_energy_j=self._server_energy_j(state, decision, plan, time_prefill),
            uplink_bits=time_up * plan.uplink_bps + rounds * plan.draft_bits,
            downlink_bits=rounds * plan.verdict_bits,
            handover=plan.handover,
            finished=is_finished,
            e2e_s=e2e_s,
            ttft_s=torch.where(is_finished, torch.minimum(ttft_s, e2e_s), 0.0),
            finished_tokens=request["output_tokens"] * finished,
            finished_task=request["task"] * is_finished,
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
        state, slot_s = self._true_state(), self.config.slot_s
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
        now, request = self.progress, self._request()
        is_sent = time_up >= plan.upload_s
        upload_bits = (now.upload_bits - time_up * plan.uplink_bps).clamp_min(0)
        upload_bits = upload_bits.masked_fill(is_sent, 0)
        done_prefill = time_prefill * plan.prefill_tokens_per_s
        is_prefilled = done_prefill >= plan.prefill_tokens * (1 - 1e-6)
        context = request["prompt_tokens"] + (now.tokens + tokens)
        kv_start = request["prompt_tokens"] + now.tokens - plan.prefill_tokens
        kv = torch.where(is_prefilled & (upload_bits <= 0), context, kv_start + done_prefill)
        drafted = (plan.draft_bits > 0).to(tokens.dtype)
        rounds = tokens / plan.tokens_per_round * drafted
        # Of a round's tokens all but the correction or bonus were accepted drafts.
        accepted = rounds * (plan.tokens_per_round - 1)
        tested = accepted / request["acceptance"].clamp_min(1e-6)

        # What a device decodes by itself leaves prompt, cache and server alone.
        by_itself = plan.is_device_only
        upload_bits = torch.where(by_itself, now.upload_bits, upload_bits)
        kv = torch.where(by_itself, now.kv_tokens, kv)
        server = torch.where(by_itself, now.server, decision.server)
        goes_on = now.active & ~outcome.finished
        keep = goes_on.to(tokens.dtype)
        now.kv_tokens = kv * keep
        now.tokens = (now.tokens + tokens) * keep
        now.server = server.masked_fill(~goes_on, -1)
        now.accepted = (now.accepted + accepted) * keep
        now.tested = (now.tested + tested) * keep
        now.ttft_s = ttft_s.masked_fill(~goes_on, torch.inf)
        now.finished = now.finished + outcome.finished
        now.arrived = now.arrived + self._arrivals_now()
        now.slot = now.slot + 1
        starts = ~goes_on & (now.arrived > now.finished)
        now.active = goes_on | starts
        self._forget()
        request = self._request()
        bits = self.physics.codec.prompt_bits(request["prompt_tokens"]) + request["attachment_bits"]
        now.upload_bits = torch.where(starts, bits, upload_bits * keep)

    def _arrivals_now(self) -> Tensor:
        """Count the arrivals of the current slot, (B, M)."""
        slot = self.progress.slot
        index = slot.clamp(max=self.config.horizon_slots - 1)
        counts = _look_up(self.arrivals, torch.arange(self.num_networks), index)
        return counts * (slot < self.config.horizon_slots)[:, None]

    def _alive_s(self, is_finished: Tensor, finish_s: Tensor) -> Tensor:
        """Integrate the number of requests waiting or alive over the slot, (B,)."""
        now, slot_s = self.progress, self.config.slot_s
        present = (now.arrived - now.finished).sum(1) * slot_s
        gone = ((slot_s - finish_s) * is_finished).sum(1)
        index = now.slot.clamp(max=self.config.horizon_slots - 1)
        new = self.waiting_s[torch.arange(self.num_networks), index]
        return present - gone + torch.where(now.slot < self.config.horizon_slots, new, 0.0)

    def _device_energy_j(
        self,
        state: NetworkState,
        decision: Decision,
        plan: Prediction,
        time_up: Tensor,
        rounds: Tensor,
    ) -> Tensor:
        """Compute joules of drafting and transmitting, (B, M)."""
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
            table, now = self.requests, self.progress
            length = table.task.shape[2]
            first = torch.arange(now.active.numel()).view(now.active.shape) * length
            index = first + now.finished.clamp(max=length - 1)
            self._current = {
                field.name: getattr(table, field.name).take(index) * now.active
                for field in fields(RequestTable)
                if field.name != "arrival_s"
            }
            # The table ends with infinity, which a product would turn into nan.
            arrival_s = table.arrival_s.take(index).float()
            self._current["arrival_s"] = arrival_s.masked_fill(~now.active, 0)
        return self._current

    def _forget(self) -> None:
        """Drop what was worked out for a slot that is over."""
        self._current = None
        self._known = None

    def _count_by_slot(self, table: RequestTable) -> tuple[Tensor, Tensor]:
        """Count arrivals (B, T, M) and waiting seconds (B, T); a slot's counts lie side by side."""
        arrivals, waiting_s = table.count_by_slot(self.config.horizon_slots, self.config.slot_s)
        return arrivals.transpose(1, 2).contiguous(), waiting_s

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

    def _known_slot(self) -> Tensor:
        """Find the slot of the walk whose gains are known by now, (B,)."""
        seen = (self.progress.slot - self.config.csi_delay_slots).clamp_min(0)
        return seen % len(self.walk)


def _look_up(table: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Take table[first, second] by one index, which is faster; both are (B,) long."""
    return table.flatten(0, 1).index_select(0, first * table.shape[1] + second)


def _check_bank(config: WorldConfig, bank: ChannelBank) -> None:
    """Refuse a bank that cannot carry the configuration."""
    _, slots, _, servers = bank.gain_db.shape
    if servers != len(config.servers):
        raise UserError(
            f"the bank has {servers} servers but the config names {len(config.servers)}; "
            "build a bank for this config with `uara channels build`"
        )
    if config.slot_s != bank.config.slot_s:
        raise UserError(
            f"slot_s is {config.slot_s} but the bank's slots last {bank.config.slot_s}; "
            "make them equal or build a bank for this config with `uara channels build`"
        )
    if config.horizon_slots > slots:
        raise UserError(
            f"horizon_slots is {config.horizon_slots} but the bank has {slots} slots per world; "
            "shorten the horizon or build a longer bank"
        )
