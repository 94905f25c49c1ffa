"""The world: B networks that step through slots of requests, mobility, serving and handover.

Shape legend: B networks, M devices, E servers, R requests of a device, T slots.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from uara.errors import UserError
from uara.network import Decision, NetworkState, Phase, SlotOutcome
from uara.prediction import Physics, Prediction, predict
from uara.radio.bank import ChannelBank
from uara.serving.acceptance import AcceptanceTable
from uara.serving.batching import sum_by_server
from uara.serving.energy import server_energy_j
from uara.world.acceptance import (
    AcceptanceRates,
    PositionalAcceptance,
    TraceAcceptance,
    Traces,
    positional_rates,
)
from uara.world.batteries import Drain, drain, draw_battery_j
from uara.world.carry import carry_work
from uara.world.channel import Channel, ChannelReplay, look_up
from uara.world.config import (
    MACHINE_TIMES,
    WorldConfig,
    believed_constants,
    check_memory,
    network_constants,
    phone_constants,
    reachable,
)
from uara.world.holding import Holding, held_tokens, hold_back
from uara.world.native_requests import NativeRequests
from uara.world.native_slot import NativeSlot, knows_world
from uara.world.outages import draw_outages, outages_at, reachable_in_outage
from uara.world.progress import Progress
from uara.world.requests import AnswerLengths, RequestTable, block_tokens, draw_requests
from uara.world.slot import Played, device_energy_j, play


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
            UserError: if the bank has other sizes, another slot or fewer slots than the config, or
                a request could never be admitted to a server.
        """
        self.config = config
        self.physics = physics
        self.bank = bank
        self.channel: Channel = ChannelReplay(config, bank)
        self.num_networks = num_networks
        self.num_devices = bank.gain_db.shape[2]
        self.num_servers = len(config.servers)
        rule, tasks = physics.codec.rule, config.requests.tasks
        rates = [acceptance.of(rule, task.name) for task in tasks]
        self.acceptance_mean = torch.tensor([rate.mean for rate in rates])
        self.acceptance_std = torch.tensor([rate.std for rate in rates])
        process = config.requests.acceptance
        self._traces = (
            Traces.load(Path(process.path), tuple(task.name for task in tasks))
            if isinstance(process, TraceAcceptance)
            else None
        )
        self._factors = process.factors if isinstance(process, PositionalAcceptance) else None
        self._block_tokens = block_tokens(config.requests, self._traces)
        self.lengths = AnswerLengths.of(config.requests)
        sizes = (num_networks, self.num_devices)
        self._constants = network_constants(config, *sizes, physics.config.link)
        self._believed = self._constants
        if config.believed is not None:
            self._believed = believed_constants(config, *sizes, physics.config.link)
        self._capacity = self._constants["kv_capacity_tokens"]
        check_memory(config, self._capacity)
        phones = phone_constants(config, num_networks, self.num_devices)
        self._battery_j, self._draft_flop = phones["battery_j"], phones["draft_flop_per_token"]
        self.world = torch.zeros(num_networks, dtype=torch.long)
        self._native_requests: NativeRequests | None = None
        none = torch.zeros(num_networks, dtype=torch.int64)
        self.requests = self._draw(none)
        self.arrivals, self.waiting_s = self._count_by_slot(self.requests)
        self.outages = self._draw_outages(none)
        self.progress = Progress.empty(
            num_networks,
            self.num_devices,
            batteries=config.batteries is not None,
            admission=config.memory.admission,
            transfer=config.memory.handover == "transfer",
            conversations=config.requests.conversations is not None,
        )
        self._current: dict[str, Tensor] | None = None
        self._known: NetworkState | None = None
        self._native: NativeSlot | None = None

    def compile(self) -> bool:
        """Play slots and draw requests with compiled code where it knows this world; tell whether.

        Raises:
            UserError: if there is no C compiler.
        """
        sizes = (self.num_devices, self.config.horizon_slots * self.config.slot_s)
        rates = (self.acceptance_mean, self.acceptance_std)
        self._native_requests = NativeRequests.of(self.config.requests, *sizes, *rates)
        if knows_world(self.config, self.physics):
            given = (self._constants, self.lengths, self.acceptance_mean)
            self._native = NativeSlot.of(self.config, self.physics, *given)
        return self._native is not None

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
        for name, values in self.requests.tensors().items():
            values[rows] = getattr(table, name)
        self.arrivals[rows], self.waiting_s[rows] = self._count_by_slot(table)
        for values, fresh in zip(self.outages, self._draw_outages(episode[rows]), strict=True):
            values[rows] = fresh
        self.progress.clear(rows)
        batteries, charge = self.config.batteries, self.progress.battery_j
        if batteries is not None and charge is not None:
            charge[rows] = draw_battery_j(episode[rows], self._battery_j[rows], batteries)
        self._forget()

    def state_dict(self) -> dict[str, Tensor]:
        """Copy everything that changes: worlds, requests, outages and progress."""
        state = {"world": self.world}
        state |= {f"requests.{k}": v for k, v in self.requests.tensors().items()}
        state |= {f"outages.{k}": v for k, v in enumerate(self.outages)}
        state |= {f"progress.{k}": v for k, v in self.progress.tensors().items()}
        return {name: tensor.clone() for name, tensor in state.items()}

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

        def part(name: str) -> dict[str, Tensor]:
            start = f"{name}."
            return {
                k.removeprefix(start): v.clone() for k, v in state.items() if k.startswith(start)
            }

        self.world = state["world"].clone()
        self.requests = RequestTable(**part("requests"))
        self.outages = tuple(values for _, values in sorted(part("outages").items()))
        self.progress = Progress(**part("progress"))
        self.arrivals, self.waiting_s = self._count_by_slot(self.requests)
        self._forget()

    def time_s(self) -> Tensor:
        """Return the time since the start of each episode, (B,)."""
        return self.progress.slot * self.config.slot_s

    def gain(self, *, true: bool) -> Tensor:
        """Return the gains of the slot, or those that controllers know, (B, M, E)."""
        look = self.channel.true_gain if true else self.channel.known_gain
        return look(self.world, self.progress.slot)

    def position_m(self) -> Tensor:
        """Return the devices' positions, (B, M, 2)."""
        return self.channel.position_m(self.world, self.progress.slot)

    def state(self, *, true: bool = False) -> NetworkState:
        """Describe the networks at the start of the slot.

        Args:
            true: the request's own acceptance, this slot's gain and the true machines instead of
                the running estimate, the filtered gain of `csi_delay_slots` ago and the believed
                machines; for the world's own step.
        """
        if self._known is None:
            self._known = self._known_state()
        if not true:
            return self._known
        state = self._true_state(self._rates(None))
        reach = reachable(state.gain, self.config.reach_gain_db)
        if state.is_down is not None:
            reach = reachable_in_outage(reach, state.is_down)
        return state.with_(reachable=reach)

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
        return self._describe(
            phase=phase * now.active,
            task=task,
            age_s=(self.time_s()[:, None] - request["arrival_s"]) * active,
            waiting_requests=now.arrived - now.finished - active,
            prompt_tokens=request["prompt_tokens"],
            expected_remaining_tokens=self.lengths.expected_remaining_tokens(now.tokens, task),
            acceptance=(prior * mean + now.accepted) / (prior + now.tested),
            kv_free_tokens=self._capacity - held_tokens(now, self._claim_tokens, self.num_servers),
        )

    def _describe(self, **worked_out: Tensor) -> NetworkState:
        """Add to what was worked out of the progress whatever else controllers know."""
        now = self.progress
        reach = self.channel.known_reachable(self.world, now.slot)
        down = soon = None
        if self.config.outages is not None:
            down, soon = self._outages_now()
            reach = reachable_in_outage(reach, down)
        return NetworkState(
            time_s=self.time_s(),
            gain=self.gain(true=False),
            reachable=reach,
            upload_bits=now.upload_bits,
            tokens_so_far=now.tokens,
            server=now.server,
            kv_tokens=now.kv_tokens,
            position_m=self.position_m(),
            **worked_out,
            **{k: v for k, v in self._believed.items() if k != "kv_capacity_tokens"},
            battery_j=now.battery_j,
            is_down=down,
            outage_in_s=soon,
            kv_arriving_tokens=now.kv_arriving_tokens,
        )

    def _true_state(self, rates: AcceptanceRates) -> NetworkState:
        """Describe the truth; `reachable` stays what is known, which a prediction does not read."""
        state = self.state().with_(gain=self.gain(true=True), acceptance=rates.equivalent)
        if self._believed is self._constants:
            return state
        return state.with_(**{name: self._constants[name] for name in MACHINE_TIMES})

    def step(self, decision: Decision) -> SlotOutcome:
        """Play one slot of every network.

        Args:
            decision: servers of devices without a request may be anything in range.
        """
        if self._native is not None and decision.mode is None:
            return self._step_native(self._native, decision)
        now, request, slot_s = self.progress, self._request(), self.config.slot_s
        rates = self._rates(decision)
        state = self._true_state(rates)
        holding = self._hold_back(state, decision)
        seen = state if holding is None else holding.state
        plan = predict(seen, decision, self.physics)
        played = play(seen, plan, decision, now, request["output_tokens"], slot_s, holding)
        efficiency, flop = self.physics.config.amplifier_efficiency, self._draft_flop
        energy_j = device_energy_j(
            state, decision, plan, played, self.config.energy, efficiency, flop, slot_s
        )
        drained = self._drain(energy_j)
        uplink_bits = played.time_up * plan.uplink_bps + played.rounds * plan.draft_bits
        downlink_bits = played.rounds * plan.verdict_bits
        if drained is not None:
            energy_j, share = drained.spent_j, drained.done_share
            played = played.cut_short(drained.dies, share)
            uplink_bits, downlink_bits = uplink_bits * share, downlink_bits * share
        is_finished = played.is_finished
        finished = is_finished.float()
        e2e_s = (played.decode_age_s + played.time_decode) * finished
        work_s = played.prefill_tokens * state.forward_per_token_s.gather(1, decision.server)
        outcome = SlotOutcome(
            alive_s=self._alive_s(is_finished, played.busy_s),
            tokens=played.tokens,
            device_energy_j=energy_j,
            server_energy_j=server_energy_j(
                work_s, decision.server, plan.server_busy, state.server_power_w, slot_s
            ),
            uplink_bits=uplink_bits,
            downlink_bits=downlink_bits,
            handover=plan.handover if holding is None else plan.handover | holding.loses_cache,
            finished=is_finished,
            e2e_s=e2e_s,
            ttft_s=torch.where(is_finished, torch.minimum(played.ttft_s, e2e_s), 0.0),
            finished_tokens=request["output_tokens"] * finished,
            finished_task=request["task"] * is_finished,
            drained=torch.zeros(self.num_networks, dtype=torch.bool),
            battery_share=None if drained is None else drained.share_of_left,
            held_back=None if holding is None else holding.held_back,
            kv_moved_tokens=played.kv_moved_tokens,
        )
        failed, freed = self._advance(decision, plan, played, rates, holding, drained)
        no_more = now.slot >= self.config.horizon_slots
        ended = no_more & (now.arrived <= now.finished).all(1)
        if failed is not None and self.config.batteries is not None:
            penalty_s = failed.sum(1) * self.config.batteries.failure_s
            outcome = replace(outcome, alive_s=outcome.alive_s + penalty_s, failed=failed)
        return replace(outcome, drained=ended, kv_freed_tokens=freed)

    def _step_native(self, native: NativeSlot, decision: Decision) -> SlotOutcome:
        """Play one slot with compiled code, which also describes the networks after it."""
        now, arrivals = self.progress, (self.arrivals, self.waiting_s)
        gain = self.channel.true_rows(self.world, now.slot)
        slot = native(now, self._request(), decision, gain, self.requests, arrivals)
        self.progress, self._current = slot.progress, slot.request
        self._known = self._describe(**slot.known)
        return slot.outcome

    def offered_work_s(self, decision: Decision) -> Tensor:
        """Compute the prefill and marginal token work of the coming slot, (B, E) seconds.

        Drafts that are void by the time of their pass are part of it.

        Load is judged by it and not by busy time: a server that starts a pass whenever something
        waits is always busy.
        """
        state, slot_s = self._true_state(self._rates(decision)), self.config.slot_s
        plan = predict(state, decision, self.physics)
        left = torch.where(state.has_request, slot_s - plan.upload_s, 0.0).clamp_min(0)
        prefill_s = torch.minimum(plan.prefill_s, left)
        rounds = (left - prefill_s) / plan.round_s
        tokens = prefill_s * plan.prefill_tokens_per_s + rounds * plan.new_tokens
        work_s = tokens * state.forward_per_token_s.gather(1, decision.server)
        return sum_by_server(work_s, decision.server, self.num_servers)

    def _hold_back(self, state: NetworkState, decision: Decision) -> Holding | None:
        """Find who has to wait in this slot; None where nothing can hold a request back."""
        if not self.config.memory.admission and self.config.outages is None:
            return None
        return hold_back(
            state,
            decision,
            self.physics,
            self.progress,
            self._claim_tokens(),
            self._capacity,
            self.config.slot_s,
        )

    def _claim_tokens(self) -> Tensor:
        """Compute what the current requests may grow to, (B, M) tokens."""
        request = self._request()
        return request["prompt_tokens"] + self.lengths.high[request["task"]]

    def _drain(self, energy_j: Tensor) -> Drain | None:
        """Take the slot's joules (B, M) from the batteries; None where there are none."""
        batteries, battery_j = self.config.batteries, self.progress.battery_j
        if batteries is None or battery_j is None:
            return None
        return drain(battery_j, energy_j, batteries.idle_power_w * self.config.slot_s)

    def _rates(self, decision: Decision | None) -> AcceptanceRates:
        """Find the acceptance of the slot; without a decision that of the first draft position."""
        rate = self._request()["acceptance"]
        if self.requests.block_rate is not None:
            now = self.progress
            block = (now.tokens / self._block_tokens).long()
            rate = self.requests.rate_in_block(now.finished, block) * now.active
        if self._factors is None:
            return AcceptanceRates(rate, rate)
        length = (
            torch.ones_like(self.progress.server) if decision is None else decision.draft_length
        )
        return positional_rates(rate, length, self._factors)

    def _advance(
        self,
        decision: Decision,
        plan: Prediction,
        played: Played,
        rates: AcceptanceRates,
        holding: Holding | None,
        drained: Drain | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Carry the slot's work into the progress and admit the next requests.

        Returns:
            failed requests (B, M) and KV memory that servers got back (B, E), where there are such.
        """
        now, prompt_tokens = self.progress, self._request()["prompt_tokens"]
        goes_on, freed = carry_work(
            now, prompt_tokens, decision, plan, played, rates, holding, drained
        )
        now.finished = now.finished + played.is_finished
        now.arrived = now.arrived + self._arrivals_now()
        failed = None if drained is None else now.drain(drained.spent_j)
        now.slot = now.slot + 1
        starts = ~goes_on & (now.arrived > now.finished)
        now.active = goes_on | starts
        self._forget()
        request = self._request()
        new_tokens = request["prompt_tokens"]
        if self.requests.history_tokens is not None:
            new_tokens = new_tokens - request["history_tokens"]
            dropped, at = now.take_cache(starts, request["history_tokens"])
            if freed is not None:
                freed = freed + sum_by_server(dropped, at.clamp_min(0), self.num_servers)
        bits = self.physics.codec.prompt_bits(new_tokens) + request["attachment_bits"]
        now.upload_bits = torch.where(starts, bits, now.upload_bits)
        if self.config.outages is not None:
            lost = now.lose_caches(self._outages_now()[0])
            freed = None if freed is None else freed + lost
        return failed, freed

    def _arrivals_now(self) -> Tensor:
        """Count the arrivals of the current slot, (B, M)."""
        slot = self.progress.slot
        index = slot.clamp(max=self.config.horizon_slots - 1)
        counts = look_up(self.arrivals, torch.arange(self.num_networks), index)
        return counts * (slot < self.config.horizon_slots)[:, None]

    def _alive_s(self, is_finished: Tensor, finish_s: Tensor) -> Tensor:
        """Integrate the number of requests waiting or alive over the slot, (B,)."""
        now, slot_s = self.progress, self.config.slot_s
        present = (now.arrived - now.finished).sum(1) * slot_s
        gone = ((slot_s - finish_s) * is_finished).sum(1)
        index = now.slot.clamp(max=self.config.horizon_slots - 1)
        new = self.waiting_s[torch.arange(self.num_networks), index]
        return present - gone + torch.where(now.slot < self.config.horizon_slots, new, 0.0)

    def _outages_now(self) -> tuple[Tensor, Tensor]:
        """Find which servers are out (B, E) and when the next announced outage begins (B, E)."""
        outages = self.config.outages
        assert outages is not None, "this world has no outages"
        start_s, end_s = self.outages
        return outages_at(self.time_s(), start_s, end_s, self.config.slot_s, outages.notice_s)

    def _draw_outages(self, episode: Tensor) -> tuple[Tensor, ...]:
        """Draw starts and ends (K, E, N) of outages for episode keys (K,); () without outages."""
        if self.config.outages is None:
            return ()
        horizon_s = (self.config.horizon_slots + self.config.drain_slots) * self.config.slot_s
        return draw_outages(episode, self.num_servers, horizon_s, self.config.outages)

    def _request(self) -> dict[str, Tensor]:
        """Look up the current request of each device, (B, M) each; zeros where there is none."""
        if self._current is None:
            self._current = self.requests.current(self.progress.finished, self.progress.active)
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
        if self._native_requests is not None:
            return self._native_requests(episode)
        horizon_s = self.config.horizon_slots * self.config.slot_s
        rates = (self.acceptance_mean, self.acceptance_std)
        return draw_requests(
            episode, self.num_devices, horizon_s, self.config.requests, *rates, self._traces
        )
