"""Is a scenario worth learning on? Modes, spreads, loads; what radio and compute each decide."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from experiments.config import TaskConfig
from experiments.evaluation import EpisodeRows, View, evaluate_controller, make_world
from experiments.statistics import mean_interval
from uara.control.allocation import AllocationConfig
from uara.control.rules import RuleController
from uara.network import Decision, NetworkState
from uara.prediction import Physics
from uara.radio.bank import ChannelBank, Split

SIMPLE = ("random", "max_sinr", "max_compute", "least_loaded")


@dataclass(frozen=True)
class Finding:
    """One figure of the diagnosis, the rule it is held against, and the verdict in words."""

    name: str
    percent: float
    rule: str
    holds: bool


class OneServer:
    """Sends everybody to one server: the rule that a meaningful scenario must punish."""

    observes = "network"

    def __init__(self, server: int, allocation: AllocationConfig, physics: Physics) -> None:
        """Name the server; bandwidth, power and draft length as the other rules have them."""
        self._rules = RuleController("max_sinr", allocation, physics)
        self.name = f"all_to_{server}"
        self._server = server

    def reset(self, mask: torch.Tensor, generator: torch.Generator) -> None:
        """Remember nothing."""

    def decide(self, state: NetworkState) -> Decision:
        """Choose the server for everybody."""
        return self._rules.allocator(state, torch.full_like(state.server, self._server))

    def observe(self, outcome: object) -> None:
        """Ignore the outcome."""


def equal_gains(state: NetworkState) -> NetworkState:
    """Blind a controller to geometry: every gain becomes its device's mean in dB, all in reach."""
    mean = state.gain.log().mean(-1, keepdim=True).exp()
    everywhere = torch.ones_like(state.reachable)
    return state.with_(gain=mean.expand_as(state.gain).contiguous(), reachable=everywhere)


def equal_servers(state: NetworkState) -> NetworkState:
    """Blind a controller to the racks: every server becomes the mean server."""
    names = ("forward_fixed_s", "forward_per_row_s", "forward_per_token_s", "forward_per_context_s")
    means = {n: getattr(state, n).mean(-1, keepdim=True).expand_as(state.rtt_s) for n in names}
    return state.with_(**{name: mean.contiguous() for name, mean in means.items()})


def diagnose(
    task: TaskConfig, bank: ChannelBank, *, split: Split = "tuning", episodes: int = 128
) -> list[Finding]:
    """Measure the rules that make a scenario worth learning on.

    Args:
        task: the scenario.
        bank: its bank.
        split: worlds to play; never the evaluation worlds when a scenario is being chosen.
        episodes: per figure.
    """

    def play(
        name: str, task: TaskConfig = task, view: View | None = None, server: int | None = None
    ) -> EpisodeRows:
        physics = Physics.of(task.physics)
        controller = (
            RuleController(name, task.allocation, physics)
            if server is None
            else OneServer(server, task.allocation, physics)
        )
        return evaluate_controller(
            controller, task, bank, split=split, episodes=episodes, view=view
        )

    def mean(rows: EpisodeRows) -> float:
        return rows.interval("e2e_latency_s").mean

    greedy = mean(play("greedy_latency"))
    simple = {name: mean(play(name)) for name in SIMPLE}
    best, worst = min(simple, key=lambda n: simple[n]), max(simple, key=lambda n: simple[n])
    no_draft = task.model_copy(
        update={"physics": task.physics.model_copy(update={"mode": "server_ar"})}
    )
    quiet = task.model_copy(
        update={
            "world": task.world.model_copy(update={"power_max_dbm": task.world.power_max_dbm - 10})
        }
    )
    other = "equal" if task.allocation.bandwidth == "square_root" else "square_root"
    split_rule = task.model_copy(
        update={"allocation": task.allocation.model_copy(update={"bandwidth": other})}
    )
    ones = [mean(play("", server=j)) for j in range(len(task.world.servers))]

    blind_radio = play("greedy_latency", view=equal_gains)
    blind_compute = play("greedy_latency", view=equal_servers)
    figures: list[tuple[str, float, float, float, str]] = [
        ("server_ar over sd", mean(play("greedy_latency", no_draft)), greedy, 20, "1: SD pays"),
        (f"{worst} over {best}", simple[worst], simple[best], 15, "2: simple rules differ"),
        (f"{best} over greedy", simple[best], greedy, 5, "2: greedy leads"),
        ("best one-server rule", min(ones), greedy, 3, "2: no single server"),
        ("greedy with equal gains", mean(blind_radio), greedy, 5, "3: radio decides"),
        ("greedy with equal servers", mean(blind_compute), greedy, 5, "3: compute decides"),
        ("10 dB less power", mean(play("greedy_latency", quiet)), greedy, 5, "3: power matters"),
        (
            f"{other} over {task.allocation.bandwidth} split",
            mean(play("greedy_latency", split_rule)),
            greedy,
            3,
            "4: the split matters",
        ),
    ]
    findings = [_finding(*figure) for figure in figures]
    return findings + _loads(task, bank, split, episodes)


def _finding(name: str, value: float, base: float, least: float, words: str) -> Finding:
    """Express a figure as an excess over a base and hold it against its rule."""
    percent = 100 * (value / base - 1)
    return Finding(name, percent, f"at least {least:g} % (rule {words})", percent >= least)


def _loads(task: TaskConfig, bank: ChannelBank, split: Split, episodes: int) -> list[Finding]:
    """Measure the offered prefill and marginal token work of each server under greedy."""
    world = make_world(task, bank, episodes)
    everyone = torch.ones(episodes, dtype=torch.bool)
    available = torch.from_numpy(bank.worlds(split))
    world.reset(
        everyone, available[torch.arange(episodes) % len(available)], torch.arange(episodes)
    )
    controller = RuleController("greedy_latency", task.allocation, Physics.of(task.physics))
    controller.reset(everyone, torch.Generator().manual_seed(0))
    work = torch.zeros(episodes, len(task.world.servers))
    for _ in range(task.world.horizon_slots):
        state = world.state()
        decision = controller.decide(state)
        work += world.offered_work_s(decision)
        world.step(decision)
    share = work / (task.world.horizon_slots * task.world.slot_s)
    findings = []
    for j, name in enumerate(task.world.servers):
        load = 100 * mean_interval(share[:, j].numpy(), range(episodes)).mean
        holds = 1 <= load <= 80
        findings.append(Finding(f"load of {name} ({j})", load, "1 to 80 % (rule 5)", holds))
    return findings
