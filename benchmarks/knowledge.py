"""What pieces of knowledge are worth to the fair myopic controller, on the tuning worlds.

`python -m benchmarks.knowledge [CASE ...] [--episodes N]` prints, for each variant of a case, its
mean E2E latency and the paired difference to the case's first variant in per cent.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch

from experiments.comparison import rule_controller
from experiments.config import PROJECT, TaskConfig, load_task
from experiments.evaluation import EpisodeRows, difference, evaluate_controller, load_bank

TASK = PROJECT / "experiments" / "tasks" / "quickstart.yaml"
NAME = "completion_greedy"


@dataclass(frozen=True)
class Case:
    """A scenario, the controller's variants in it (the first is the reference), and other rules."""

    overrides: tuple[str, ...]
    variants: dict[str, dict[str, Any]]
    rules: tuple[str, ...] = field(default=())


TRUST: dict[str, Any] = {}
FAIR = {"switching_margin_s": 2}
CASES = {
    "conversations": Case(
        (
            *("bank.train=0", "bank.validation=0", "bank.evaluation=0", "bank.tuning=8"),
            *("bank.fading=large_scale", "bank.num_slots=240", "world.horizon_slots=240"),
            *("bank.speed_min_m_s=3", "bank.speed_max_m_s=20", "bank.indoor_share=0"),
            *("bank.inter_site_distance_m=400", "world.bandwidth_hz=4e6"),
            "world.requests.conversations={continues: 0.85, max_context_tokens: 16000}",
            "world.requests.arrivals_per_s=0.03",
            "world.requests.tasks=[{name: summarise, weight: 1, prompt_tokens_min: 1000, "
            "prompt_tokens_mean: 3000, prompt_tokens_max: 8000, output_tokens_min: 32, "
            "output_tokens_mean: 96, output_tokens_max: 256}]",
        ),
        {
            "fair": FAIR,
            "blind to caches": FAIR | {"count_kv": False},
            "handover not counted": FAIR | {"count_handover": False},
            "and without a margin": {"switching_margin_s": 0, "count_handover": False},
            "heading": FAIR | {"heading": {}},
            "trend": FAIR | {"trend": {}},
        },
        ("greedy_latency", "random", "max_sinr", "max_compute", "least_loaded"),
    ),
    "hidden-acceptance": Case(
        ("world.acceptance_prior_tokens=1e6", "world.requests.acceptance_drift=0.3"),
        {"trusts": TRUST, "estimates": {"acceptance": {}}},
    ),
    "drifting-acceptance": Case(
        ("world.requests.acceptance_drift=0.3",),
        {"trusts": TRUST, "estimates": {"acceptance": {}}},
    ),
    "drifting-lengths": Case(
        ("world.requests.output_drift=1.0",), {"trusts": TRUST, "estimates": {"lengths": {}}}
    ),
    "wrong-profile": Case(
        ("world.believed={forward_factor: [1.4, 0.7, 0.7]}",),
        {"trusts": TRUST, "estimates": {"profile": {}}},
    ),
    "old-gains": Case(
        ("world.csi_delay_slots=4", "world.gain_filter_s=0"),
        {
            "trusts": TRUST,
            "trend as a filter": {"trend": {"level_gain": 0.3, "slope_gain": 0.01, "ahead_s": 2.0}},
            "heading": {"heading": {"ahead_s": 4.0}},
        },
    ),
    "outages": Case(
        ("world.outages={every_s: 40, duration_s: 10, notice_s: 20}",),
        {"reads the calendar": TRUST, "does not": {"read_calendar": False}},
    ),
    "full-memory": Case(
        (
            "world.memory={admission: true, capacity_tokens: [13000, 13000, 13000]}",
            "world.requests.arrivals_per_s=0.1",
        ),
        {"does not wait": TRUST, "waits": {"wait_for_memory": True}},
    ),
}


def with_options(task: TaskConfig, options: dict[str, Any]) -> TaskConfig:
    """Return the task with options of the controller."""
    own = type(task.controllers.completion_greedy).model_validate(options)
    controllers = task.controllers.model_copy(update={NAME: own})
    return task.model_copy(update={"controllers": controllers})


def play(case: Case, episodes: int) -> dict[str, EpisodeRows]:
    """Play the variants of a case and its rules, by their labels."""
    task = load_task(TASK, list(case.overrides))
    bank = load_bank(task)
    contenders = [(label, NAME, with_options(task, o)) for label, o in case.variants.items()]
    contenders += [(rule, rule, task) for rule in case.rules]
    return {
        label: evaluate_controller(
            rule_controller(name, own), own, bank, split="tuning", episodes=episodes
        )
        for label, name, own in contenders
    }


def main() -> None:
    """Print the table of each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--episodes", type=int, default=64)
    asked = parser.parse_args()
    unknown = sorted(set(asked.cases) - set(CASES))
    if unknown:
        parser.error(f"unknown cases {', '.join(unknown)}; allowed: {', '.join(CASES)}")
    torch.set_num_threads(1)
    for name in asked.cases or CASES:
        played = play(CASES[name], asked.episodes)
        reference = next(iter(played.values()))
        mean = reference.interval("e2e_latency_s").mean
        for label, rows in played.items():
            apart = difference(rows, reference)
            shown = f"{100 * apart.mean / mean:+.1f} %"
            shown += f" [{100 * apart.low / mean:+.1f}, {100 * apart.high / mean:+.1f}]"
            e2e_s, moves = (rows.interval(m).mean for m in ("e2e_latency_s", "handovers"))
            print(f"{name:20} {label:22} {e2e_s:7.2f} s {shown:24} {moves:.2f} handovers")


if __name__ == "__main__":
    main()
