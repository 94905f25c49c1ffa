"""Rules that choose a server for each device, by name."""

from __future__ import annotations

from uara.control.greedy import best_response, greedy_latency
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
)

__all__ = ["ASSOCIATION_RULES", "AssociationRule", "best_in_reach", "keep_or"]

ASSOCIATION_RULES: dict[str, AssociationRule] = {
    "random": random,
    "max_sinr": max_sinr,
    "max_compute": max_compute,
    "least_loaded": least_loaded,
    "greedy_latency": greedy_latency,
    "max_gain": max_gain,
    "bias_cre": bias_cre,
    "max_compute_share": max_compute_share,
    "max_rate_share": max_rate_share,
    "best_response": best_response,
}
