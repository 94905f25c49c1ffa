"""Rules that choose a server for each device, by name, and what may be set about them."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.control.allocation import Allocator
from uara.control.exhaustive import exhaustive
from uara.control.greedy import best_response, greedy_latency
from uara.control.local_search import tma, tma_moves
from uara.control.matching import Quota, gs_quota, hungarian
from uara.control.scores import (
    AssociationRule,
    best_in_reach,
    bias_cre,
    keep_or,
    least_loaded,
    max_compute,
    max_compute_share,
    max_gain,
    max_rate_share,
    max_sinr,
    random,
    strongest_first,
)
from uara.control.server_cost import server_cost
from uara.network import NetworkState

__all__ = [
    "ASSOCIATION_RULES",
    "AssociationConfig",
    "AssociationRule",
    "association_rules",
    "best_in_reach",
    "keep_or",
    "sticky",
]


class AssociationConfig(BaseModel):
    """What may be set about association rules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bias_db: tuple[float, ...] = Field(
        (), description="bias_cre: dB per server, in order; empty: the next one alone"
    )
    speed_bias_db: float = Field(
        3.0, description="bias_cre: dB per doubling of a server's speed over the slowest one's"
    )
    quota: Quota = Field(
        "equal",
        description="gs_quota, hungarian: places per server; equal, or in proportion to speed",
    )
    sweeps: int = Field(2, gt=0, description="greedy_latency: times through all requests")
    swaps: bool | None = Field(
        None,
        description="greedy_latency: whether pairs may change places; None: where that is cheap",
    )
    rounds: int = Field(50, gt=0, description="local searches and best_response: at most")
    margin_s: float = Field(
        1.0, ge=0, description="sticky_*: seconds of predicted total that a move has to gain"
    )


def sticky(rule: AssociationRule, margin_s: float, *, afresh: bool) -> AssociationRule:
    """Make a rule that follows another for new requests, and for running ones where it pays.

    A running request moves to the server that the other rule wants where that lowers the predicted
    total, the move's prefill counted, by more than the margin; one after the other, the strongest
    first.

    Args:
        rule: the other one.
        margin_s: that a move has to gain.
        afresh: ask the rule as if every request were new, since it keeps running ones.
    """

    def choose(state: NetworkState, allocator: Allocator, generator: torch.Generator) -> Tensor:
        asked = state.with_(server=torch.full_like(state.server, -1)) if afresh else state
        wanted = rule(asked, allocator, generator)
        kept = keep_or(state, wanted)
        servers = torch.arange(state.num_servers)
        allowed = (servers == wanted.unsqueeze(-1)) | (servers == kept.unsqueeze(-1))
        server, _ = server_cost(state, allocator).relocate(
            kept, state.has_request, strongest_first(state), allowed, margin_s=margin_s
        )
        return server

    return choose


def association_rules(config: AssociationConfig) -> dict[str, AssociationRule]:
    """Set the rules up, by name."""
    greedy = partial(greedy_latency, sweeps=config.sweeps, swaps=config.swaps)
    return {
        "random": random,
        "max_sinr": max_sinr,
        "max_compute": max_compute,
        "least_loaded": least_loaded,
        "greedy_latency": greedy,
        "max_gain": max_gain,
        "bias_cre": partial(bias_cre, bias_db=config.bias_db, speed_bias_db=config.speed_bias_db),
        "max_compute_share": max_compute_share,
        "max_rate_share": max_rate_share,
        "gs_quota": partial(gs_quota, quota=config.quota),
        "hungarian": partial(hungarian, quota=config.quota),
        "tma": partial(tma, rounds=config.rounds),
        "tma_moves": partial(tma_moves, rounds=config.rounds),
        "best_response": partial(best_response, rounds=config.rounds),
        "exhaustive": exhaustive,
        "sticky_max_gain": sticky(max_gain, config.margin_s, afresh=True),
        "sticky_max_rate_share": sticky(max_rate_share, config.margin_s, afresh=True),
        "sticky_greedy_latency": sticky(greedy, config.margin_s, afresh=False),
    }


ASSOCIATION_RULES = association_rules(AssociationConfig())
