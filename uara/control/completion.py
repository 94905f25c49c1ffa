"""The fair myopic controller: least predicted completion time, with what a change of server costs.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.allocation import AllocationConfig
from uara.control.charges import Charges
from uara.control.estimates.acceptance import AcceptanceEstimate, AcceptanceEstimateConfig
from uara.control.estimates.experience import Estimator, Experience
from uara.control.estimates.heading import Heading, HeadingConfig
from uara.control.estimates.lengths import LengthEstimate, LengthEstimateConfig
from uara.control.estimates.profile import ProfileEstimate, ProfileEstimateConfig
from uara.control.estimates.trend import GainTrend, GainTrendConfig
from uara.control.placement import Placement
from uara.control.rules import RuleController
from uara.network import Decision, NetworkState, SlotOutcome
from uara.prediction import Physics


class CompletionConfig(BaseModel):
    """How own time, harm to others and changes are weighed, and what is estimated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    harm_weight: float = Field(
        1.0, ge=0, description="weight of the completion time that others lose; 0: selfish"
    )
    switching_margin_s: float = Field(
        1.0, ge=0, description="what a running request must gain by a change of server"
    )
    sweeps: int = Field(1, ge=0, description="rounds in which running requests are offered a move")
    count_kv: bool = Field(
        True,
        description="credit the KV cache that the turn before has left at a server; off shows what "
        "that knowledge is worth",
    )
    count_handover: bool = Field(
        True,
        description="count the prefill or transfer that a change of server costs; off shows what "
        "that knowledge is worth",
    )
    read_calendar: bool = Field(
        True, description="count what announced outages would destroy before an answer is finished"
    )
    wait_for_memory: bool = Field(
        False,
        description="count the wait for KV memory; for worlds in which servers admit requests",
    )
    seconds_per_joule: float = Field(
        0.0, ge=0, description="price of the device's transmit energy, where servers differ in it"
    )
    acceptance: AcceptanceEstimateConfig | None = Field(
        None, description="estimate acceptance over requests; null: trust the given one"
    )
    lengths: LengthEstimateConfig | None = Field(
        None, description="estimate how answers differ from their law; null: trust the law"
    )
    profile: ProfileEstimateConfig | None = Field(
        None, description="estimate how servers differ from their profile; null: trust it"
    )
    trend: GainTrendConfig | None = Field(
        None, description="carry old gains on by their trend; null: take them as they are"
    )
    heading: HeadingConfig | None = Field(
        None, description="look ahead along each device's heading; null: gains of where it is"
    )


def make_estimators(config: CompletionConfig, physics: Physics) -> list[Estimator]:
    """Make the estimators that a configuration asks for, in the order in which they correct."""
    estimators: list[Estimator] = []
    if config.trend is not None:
        estimators.append(GainTrend(config.trend))
    if config.heading is not None:
        estimators.append(Heading(config.heading))
    if config.acceptance is not None:
        estimators.append(AcceptanceEstimate(config.acceptance, physics))
    if config.lengths is not None:
        estimators.append(LengthEstimate(config.lengths))
    if config.profile is not None:
        estimators.append(ProfileEstimate(config.profile, physics))
    return estimators


class CompletionGreedy:
    """Places each new request where it is done soonest, own time and others' loss together.

    New requests are placed one after the other, in the order of their best gain; then running ones
    are offered a move in the same order. The predicted completion time of a request at a server has
    the upload of what is left, the queue, the prefill of what is not cached there or the transfer
    of the cache, and the decoding of the tokens still expected at the load of that server. Between
    slots it remembers whom it has placed, and what its estimators have learned.
    """

    name = "completion_greedy"
    observes = "network"

    def __init__(
        self,
        allocation: AllocationConfig,
        physics: Physics,
        config: CompletionConfig | None = None,
    ) -> None:
        """Take over options; the defaults where there are none."""
        self.config = CompletionConfig() if config is None else config
        self._rest = RuleController("max_gain", allocation, physics)  # asked for no server
        self.allocator = self._rest.allocator
        self.estimators = make_estimators(self.config, physics)
        self._fresh = torch.ones(0, dtype=torch.bool)
        self._placed: Tensor | None = None  # (B, M) bool, the running request was placed here
        self._last: tuple[NetworkState, NetworkState, Decision] | None = None
        self._outcome: SlotOutcome | None = None

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Forget the networks in `mask` (B,) bool; nothing is drawn."""
        self._rest.reset(mask, generator)
        if self._fresh.shape != mask.shape:
            self._fresh, self._last = torch.ones_like(mask), None
        self._fresh = self._fresh | mask

    def decide(self, state: NetworkState) -> Decision:
        """Estimate, place, allocate."""
        seen = self._estimate(state)
        is_new = self._new_requests(state)
        view = self._blinded(seen, is_new)
        charges = Charges.of(
            view,
            self.allocator,
            seconds_per_joule=self.config.seconds_per_joule,
            read_calendar=self.config.read_calendar,
            wait_for_memory=self.config.wait_for_memory,
        )
        placement = Placement.of(view, self.allocator, charges, self.config.harm_weight)
        server = placement.insert(state.server.clamp_min(0), is_new)
        # The first of the new ones did not know of those behind them, and nothing holds them yet.
        server = placement.offer(server, is_new, 0.0)
        for _ in range(self.config.sweeps):
            running = state.has_request & ~is_new
            server = placement.offer(server, running, self.config.switching_margin_s)
        decision = self._rest.complete(seen, server)
        self._placed = state.has_request
        self._last, self._outcome = (state, seen, decision), None
        self._fresh = torch.zeros_like(self._fresh)
        return decision

    def observe(self, outcome: SlotOutcome) -> None:
        """Keep what the slot brought until its end is seen."""
        self._rest.observe(outcome)
        self._outcome = outcome
        assert self._placed is not None, "an outcome follows a decision"
        failed = outcome.failed
        ended = outcome.finished if failed is None else outcome.finished | (failed > 0)
        self._placed = self._placed & ~ended

    def _new_requests(self, state: NetworkState) -> Tensor:
        """Find the requests that have no server yet or lost it, (B, M) bool."""
        at = state.server.clamp_min(0)
        in_reach = state.reachable.gather(2, at.unsqueeze(-1)).squeeze(-1) & (state.server >= 0)
        known = torch.zeros_like(in_reach)
        if self._placed is not None and self._placed.shape == known.shape:
            known = self._placed & ~self._fresh[:, None]
        return state.has_request & ~(known & in_reach)

    def _estimate(self, state: NetworkState) -> NetworkState:
        """Let the estimators learn from the last slot and correct the state."""
        if self._fresh.shape != (state.num_networks,):
            self._fresh, self._last = torch.ones(state.num_networks, dtype=torch.bool), None
        # Where all networks begin anew, they may be others of other sizes.
        lasts = not bool(self._fresh.all())
        if lasts and self._last is not None and self._outcome is not None:
            past = Experience(*self._last, self._outcome, state, ~self._fresh)
            for estimator in self.estimators:
                estimator.learn(past)
        for estimator in self.estimators:
            estimator.begin(state, self._fresh)
            state = estimator.correct(state)
        return state

    def _blinded(self, state: NetworkState, is_new: Tensor) -> NetworkState:
        """Take away the knowledge that is switched off."""
        if not self.config.count_kv:
            state = state.with_(
                server=torch.where(is_new, -1, state.server),
                kv_tokens=torch.where(is_new, 0.0, state.kv_tokens),
            )
        if not self.config.count_handover:
            # As if caches followed their requests in no time.
            state = state.with_(
                kv_arriving_tokens=torch.zeros_like(state.kv_tokens),
                kv_transfer_s=torch.zeros_like(state.rtt_s),
            )
        return state
