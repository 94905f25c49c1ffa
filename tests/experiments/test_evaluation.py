"""Frozen episodes: the same for everybody, every time, in batches of any size."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from experiments.comparison import compare, rule_controller
from experiments.config import TaskConfig
from experiments.evaluation import (
    METRICS,
    EpisodeRows,
    episode_keys,
    evaluate_controller,
    evaluation_row,
    load_bank,
)
from uara.control.rules import RuleController
from uara.errors import UserError
from uara.network import Decision, NetworkState, SlotOutcome
from uara.radio.bank import ChannelBank

# ruff: noqa: D102 -- the names of test doubles say what they do


def play(task: TaskConfig, bank: ChannelBank, rule: str = "max_sinr", **more: int) -> EpisodeRows:
    return evaluate_controller(rule_controller(rule, task), task, bank, **more)


def limited(task: TaskConfig, **world: int) -> TaskConfig:
    return task.model_copy(update={"world": task.world.model_copy(update=world)})


@dataclass
class Witness:
    """A rule that keeps what finished and how many requests were known to each state."""

    inner: RuleController
    name: str = "witness"
    observes: str = "network"
    first_states: list[NetworkState] = field(default_factory=list)
    outcomes: list[SlotOutcome] = field(default_factory=list)

    def reset(self, mask: torch.Tensor, generator: torch.Generator) -> None:
        self.inner.reset(mask, generator)

    def decide(self, state: NetworkState) -> Decision:
        self.first_states.append(state)
        return self.inner.decide(state)

    def observe(self, outcome: SlotOutcome) -> None:
        self.outcomes.append(outcome)


def assert_close(a: EpisodeRows, b: EpisodeRows) -> None:
    """Hold the first episodes of two plays equal, but for the last bits of vectorised logarithms.

    They depend on where in a tensor a number stands.
    """
    count = min(len(a.world), len(b.world))
    assert np.array_equal(a.world[:count], b.world[:count])
    for name in METRICS:
        np.testing.assert_allclose(
            a.metrics[name][:count], b.metrics[name][:count], rtol=1e-5, err_msg=name
        )


def assert_equal(a: EpisodeRows, b: EpisodeRows) -> None:
    assert np.array_equal(a.world, b.world)
    for name in METRICS:
        assert np.array_equal(a.metrics[name], b.metrics[name], equal_nan=True), name


@pytest.mark.parametrize("rule", ["random", "greedy_latency"])
def test_the_same_task_gives_the_same_rows_bit_for_bit(
    task: TaskConfig, bank: ChannelBank, rule: str
) -> None:
    assert_equal(play(task, bank, rule), play(task, bank, rule))


@pytest.mark.parametrize("rule", ["max_sinr", "least_loaded", "greedy_latency"])
def test_results_do_not_depend_on_the_batch(task: TaskConfig, bank: ChannelBank, rule: str) -> None:
    assert_close(play(task, bank, rule, batch=32), play(task, bank, rule, batch=4))


def test_another_seed_gives_other_requests(task: TaskConfig, bank: ChannelBank) -> None:
    a, b = play(task, bank), play(task, bank, seed=5)
    assert not np.array_equal(a.metrics["e2e_latency_s"], b.metrics["e2e_latency_s"])
    assert len(set(episode_keys(1, 200).tolist()) | set(episode_keys(2, 200).tolist())) == 400


def test_fewer_episodes_are_the_first_of_many(task: TaskConfig, bank: ChannelBank) -> None:
    assert_close(play(task, bank, episodes=4), play(task, bank))


def test_evaluation_plays_the_evaluation_worlds_in_turn(
    task: TaskConfig, bank: ChannelBank
) -> None:
    # 2 train, 1 tuning and 1 validation world come first
    assert play(task, bank, episodes=7).world.tolist() == [4, 5, 6, 4, 5, 6, 4]
    assert evaluate_controller(
        rule_controller("max_sinr", task), task, bank, split="tuning", episodes=2
    ).world.tolist() == [2, 2]


def test_every_controller_meets_the_same_requests(task: TaskConfig, bank: ChannelBank) -> None:
    met = []
    for rule in ("random", "max_compute", "greedy_latency"):
        witness = Witness(rule_controller(rule, task))
        rows = evaluate_controller(witness, task, bank)
        finished = torch.stack([outcome.finished for outcome in witness.outcomes])
        tokens = torch.stack([outcome.finished_tokens for outcome in witness.outcomes])
        kinds = torch.stack([outcome.finished_task for outcome in witness.outcomes])
        # per episode and device: the sequence of answer lengths and task types, whenever finished
        met.append(
            [
                (tokens[:, b, m][finished[:, b, m]].tolist(),
                 kinds[:, b, m][finished[:, b, m]].tolist())
                for b in range(6) for m in range(3)
            ]
        )  # fmt: skip
        assert not rows.capped
    assert met[0] == met[1] == met[2]
    assert sum(len(lengths) for lengths, _ in met[0]) > 6


def test_the_latency_is_the_mean_of_finished_latencies(task: TaskConfig, bank: ChannelBank) -> None:
    witness = Witness(rule_controller("least_loaded", task))
    rows = evaluate_controller(witness, task, bank)
    e2e_s = torch.stack([outcome.e2e_s for outcome in witness.outcomes]).double().sum((0, 2))
    ttft_s = torch.stack([outcome.ttft_s for outcome in witness.outcomes]).double().sum((0, 2))
    count = torch.stack([outcome.finished for outcome in witness.outcomes]).sum((0, 2))
    known = (count > 0).numpy()
    assert known.any()
    assert np.isnan(rows.metrics["e2e_latency_s"][~known]).all()
    # Little's law: requests alive over time against latencies request by request
    assert rows.metrics["e2e_latency_s"][known] == pytest.approx(
        (e2e_s / count).numpy()[known], rel=1e-4
    )
    assert rows.metrics["ttft_s"][known] == pytest.approx((ttft_s / count).numpy()[known], rel=1e-5)
    assert (rows.metrics["capped_requests"][known] == 0).all()


def test_requests_that_the_cap_cuts_off_are_counted_with_their_time(
    task: TaskConfig, bank: ChannelBank
) -> None:
    whole = play(task, bank)
    cut = play(limited(task, drain_slots=0), bank)
    assert cut.capped
    assert not whole.capped
    share = cut.metrics["capped_requests"]
    known = np.isfinite(share)
    assert share[known].max() > 0.3
    # never more than the time between an arrival and the cap: 16 slots of half a second
    assert cut.metrics["e2e_latency_s"][known].max() <= 8.0
    # the cap can only take time away
    assert (
        cut.metrics["e2e_latency_s"][known] <= whole.metrics["e2e_latency_s"][known] + 1e-6
    ).all()
    untouched = known & (share == 0)
    assert np.array_equal(
        cut.metrics["e2e_latency_s"][untouched], whole.metrics["e2e_latency_s"][untouched]
    )


def test_a_cut_request_counts_in_what_is_reckoned_per_request(
    task: TaskConfig, bank: ChannelBank
) -> None:
    def total(witness: Witness, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return (
            torch.stack([getattr(o, name) for o in witness.outcomes]).double().sum((0, 2)).numpy()
        )

    whole, cut = (Witness(rule_controller("random", task)) for _ in range(2))
    evaluate_controller(whole, task, bank)
    rows = evaluate_controller(cut, limited(task, drain_slots=0), bank)
    arrived, done = total(whole, "finished"), total(cut, "finished")
    known = arrived > 0
    assert (done[known] < arrived[known]).any()
    assert rows.metrics["capped_requests"][known] == pytest.approx(1 - (done / arrived)[known])
    energy_j = total(cut, "device_energy_j") / arrived
    assert rows.metrics["device_energy_j"][known] == pytest.approx(energy_j[known])


def test_a_split_without_worlds_is_refused(task: TaskConfig, bank: ChannelBank) -> None:
    with pytest.raises(UserError, match=r"no turning worlds|split is 'turning'"):
        evaluate_controller(rule_controller("random", task), task, bank, split="turning")  # type: ignore[arg-type]


def test_a_bank_is_found_by_its_hash(task: TaskConfig, bank: ChannelBank) -> None:
    assert np.array_equal(load_bank(task).gain_db, bank.gain_db)


def test_rows_stand_best_first_with_their_difference_to_greedy(
    task: TaskConfig, bank: ChannelBank
) -> None:
    done: list[tuple[int, int]] = []
    rows = compare(task, bank, ["random", "greedy_latency"], [], progress=lambda *x: done.append(x))
    assert [row["controller"] for row in rows] == ["greedy_latency", "random"]
    greedy, other = rows
    assert greedy["e2e_minus_reference_s"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    gap = other["e2e_latency_s"]["mean"] - greedy["e2e_latency_s"]["mean"]
    assert other["e2e_minus_reference_s"]["mean"] == pytest.approx(gap)
    assert {row["kind"] for row in rows} == {"rule"}
    assert done == [(0, 2), (1, 2), (2, 2)]


def test_without_a_reference_no_difference_is_claimed(task: TaskConfig, bank: ChannelBank) -> None:
    assert "e2e_minus_reference_s" not in evaluation_row(play(task, bank, episodes=3))
