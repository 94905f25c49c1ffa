"""Is a scenario worth learning on? Modes, spreads, loads; what radio and compute each decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from experiments.config import TaskConfig
from experiments.evaluation import EpisodeRows, View, evaluate_controller
from experiments.latency_parts import TimeUse, measure_time_use
from uara.control.allocation import AllocationConfig
from uara.control.rules import RuleController
from uara.network import Controller, Decision, NetworkState, SlotOutcome
from uara.prediction import Physics
from uara.radio.bank import ChannelBank, Progress, Split
from uara.serving.modes import MODES

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
        """Reset the rules for the rest."""
        self._rules.reset(mask, generator)

    def decide(self, state: NetworkState) -> Decision:
        """Choose the server for everybody."""
        return self._rules.complete(state, torch.full_like(state.server, self._server))

    def observe(self, outcome: SlotOutcome) -> None:
        """Let the rules for the rest learn from it."""
        self._rules.observe(outcome)


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


@dataclass(frozen=True)
class ModeFigures:
    """What a serving mode brings under greedy_latency, means over requests."""

    mode: str
    e2e_s: float
    ttft_s: float
    tpot_s: float
    is_lossless: bool


@dataclass(frozen=True)
class Diagnosis:
    """Everything that the diagnosis measured."""

    findings: list[Finding]
    modes: list[ModeFigures]
    spread: dict[str, float]  # mean E2E latency in seconds of each simple rule and of greedy
    time_use: TimeUse
    verdict: str


class _Player:
    """Plays controllers on the tuning worlds of one task and its variants."""

    def __init__(
        self,
        task: TaskConfig,
        bank: ChannelBank,
        split: Split,
        episodes: int,
        progress: Progress | None,
        modes: tuple[str, ...],
    ) -> None:
        self.task, self.bank, self.split, self.episodes = task, bank, split, episodes
        self.modes = modes
        # Modes; simple rules; one rule per server; four ways to blind or weaken greedy.
        self._plays = len(modes) + len(SIMPLE) + len(task.world.servers) + 4
        self._done = 0
        self._progress = progress

    def rows(
        self, controller: Controller, task: TaskConfig | None = None, view: View | None = None
    ) -> EpisodeRows:
        """Play a controller."""
        rows = evaluate_controller(
            controller, task or self.task, self.bank,
            split=self.split, episodes=self.episodes, view=view,
        )  # fmt: skip
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._plays)
        return rows

    def rule(self, name: str, task: TaskConfig | None = None, view: View | None = None) -> float:
        """Return the mean E2E latency of a rule in seconds."""
        where = task or self.task
        controller = RuleController(name, where.allocation, Physics.of(where.physics))
        return self.rows(controller, where, view).interval("e2e_latency_s").mean


def diagnose(
    task: TaskConfig,
    bank: ChannelBank,
    *,
    split: Split = "tuning",
    episodes: int = 128,
    modes: Sequence[str] = tuple(MODES),
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure the rules that make a scenario worth learning on.

    Args:
        task: the scenario.
        bank: its bank.
        split: worlds to play; never the evaluation worlds when a scenario is being chosen.
        episodes: per figure.
        modes: serving modes to play; `server_ar` and the task's own are always among them. Rule 6
            needs `auto` and what it may choose.
        progress: called with (controllers played, controllers in all).
    """
    asked = {"server_ar", task.physics.mode, *modes}
    played = tuple(name for name in MODES if name in asked)
    player = _Player(task, bank, split, episodes, progress, played)
    by_mode = _by_mode(player)
    greedy = next(row.e2e_s for row in by_mode if row.mode == task.physics.mode)
    spread = {name: player.rule(name) for name in SIMPLE} | {"greedy_latency": greedy}
    time_use = measure_time_use(
        RuleController("greedy_latency", task.allocation, Physics.of(task.physics)),
        task, bank, split=split, episodes=episodes,
    )  # fmt: skip
    findings = [
        *_mode_findings(by_mode, greedy),
        *_spread_findings(player, spread),
        *_cause_findings(player, greedy),
        *_loads(task, time_use),
    ]
    return Diagnosis(findings, by_mode, spread, time_use, verdict(findings))


def _by_mode(player: _Player) -> list[ModeFigures]:
    """Play greedy_latency in the serving modes that are asked for."""
    figures = []
    for name in player.modes:
        mode = MODES[name]
        task = player.task.model_copy(
            update={"physics": player.task.physics.model_copy(update={"mode": name})}
        )
        physics = Physics.of(task.physics)
        rows = player.rows(RuleController("greedy_latency", task.allocation, physics), task)
        e2e, ttft, tpot = (
            rows.interval(metric).mean for metric in ("e2e_latency_s", "ttft_s", "tpot_s")
        )
        figures.append(ModeFigures(name, e2e, ttft, tpot, mode.is_lossless))
    return figures


def _mode_findings(modes: list[ModeFigures], own: float) -> list[Finding]:
    """Hold speculation against plain decoding, and the choice of a mode against the best one."""
    by_name = {row.mode: row for row in modes}
    plain = by_name["server_ar"].e2e_s
    rest = [row.e2e_s for row in modes if row.is_lossless and row.mode != "auto"]
    pays = _finding("server_ar over the task's mode", plain, own, 20, "1: speculation pays")
    if "auto" not in by_name:
        return [pays]
    words = "6: the mode is a choice, where it is one"
    auto = by_name["auto"].e2e_s
    return [pays, _finding("best single mode over auto", min(rest), auto, 3, words)]


def _spread_findings(player: _Player, spread: dict[str, float]) -> list[Finding]:
    """Compare simple rules with each other, with greedy and with one server for all."""
    task, greedy = player.task, spread["greedy_latency"]
    best, worst = min(SIMPLE, key=lambda n: spread[n]), max(SIMPLE, key=lambda n: spread[n])
    physics = Physics.of(task.physics)
    ones = [
        player.rows(OneServer(j, task.allocation, physics)).interval("e2e_latency_s").mean
        for j in range(len(task.world.servers))
    ]
    return [
        _finding(f"{worst} over {best}", spread[worst], spread[best], 15, "2: simple rules differ"),
        _finding(f"{best} over greedy", spread[best], greedy, 5, "2: greedy leads"),
        _finding("best one-server rule", min(ones), greedy, 3, "2: no single server"),
    ]


def _cause_findings(player: _Player, greedy: float) -> list[Finding]:
    """Blind greedy to radio and to compute, weaken the phones, and split bands the other way."""
    task = player.task
    power_dbm = task.world.power_max_dbm - 10
    quiet = task.model_copy(
        update={"world": task.world.model_copy(update={"power_max_dbm": power_dbm})}
    )
    own = task.allocation.bandwidth
    other = "equal" if own == "square_root" else "square_root"
    split_rule = task.model_copy(
        update={"allocation": task.allocation.model_copy(update={"bandwidth": other})}
    )
    blind_radio = player.rule("greedy_latency", view=equal_gains)
    blind_compute = player.rule("greedy_latency", view=equal_servers)
    splitting = player.rule("greedy_latency", split_rule)
    weak = player.rule("greedy_latency", quiet)
    return [
        _finding("greedy with equal gains", blind_radio, greedy, 5, "3: radio decides"),
        _finding("greedy with equal servers", blind_compute, greedy, 5, "3: compute decides"),
        _finding("10 dB less power", weak, greedy, 5, "3: power matters"),
        _finding(f"{other} over {own} split", splitting, greedy, 3, "4: the split matters"),
    ]


def _finding(name: str, value: float, base: float, least: float, words: str) -> Finding:
    """Express a figure as an excess over a base and hold it against its rule."""
    percent = 100 * (value / base - 1)
    return Finding(name, percent, f"at least {least:g} % (rule {words})", percent >= least)


def _loads(task: TaskConfig, time_use: TimeUse) -> list[Finding]:
    """Hold the offered prefill and marginal token work of each server against its limits."""
    findings = []
    for j, name in enumerate(task.world.servers):
        load = 100 * float(time_use.server_load[:, j].mean())
        holds = 1 <= load <= 80
        findings.append(Finding(f"load of {name} ({j})", load, "1 to 80 % (rule 5)", holds))
    return findings


def verdict(findings: list[Finding]) -> str:
    """Say in one sentence what is and is not worth learning in the scenario."""
    subjects = {
        "association": ("rule 2", "rule 3: radio", "rule 3: compute"),
        "transmit power": ("rule 3: power",),
        "the split of bandwidth": ("rule 4",),
        "the serving mode": ("rule 6",),
    }
    worth: list[str] = []
    idle: list[str] = []
    for subject, rules in subjects.items():
        own = [f for f in findings if any(rule in f.rule for rule in rules)]
        if own:
            (worth if all(f.holds for f in own) else idle).append(subject)
    overloaded = [f.name for f in findings if "rule 5" in f.rule and not f.holds]
    parts = [f"Worth learning here: {', '.join(worth) or 'nothing'}"]
    if idle:
        parts.append(f"not worth it: {', '.join(idle)}")
    if any("rule 1" in f.rule and not f.holds for f in findings):
        parts.append("speculation does not pay, so draft lengths are no question")
    if overloaded:
        parts.append(f"outside its range: {', '.join(overloaded)}")
    parts.append("whether foresight pays (rule 7) is what --foresight measures")
    return "; ".join(parts) + "."
