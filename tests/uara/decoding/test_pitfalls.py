"""Pitfalls of parallel speculation that no other file of tests has: each is named after its number.

P1, P3 to P8, P10, P12, P13 and P15 are in `test_parallel_machines` and `test_parallel_kernel`, P2,
P3, P9, P10 and P13 of branches in `test_branches`.
"""

from __future__ import annotations

from typing import Any

import pytest

from experiments.picospec import CONFIG, Setting, load, measure
from tests.uara.decoding.test_parallel_kernel import run, streams
from tests.uara.decoding.test_parallel_machines import block, part, ready_server
from uara.decoding import parallel_device
from uara.decoding.evolve import evolve
from uara.decoding.nodes import StalledRunError
from uara.decoding.overlap import Overlap
from uara.decoding.protocol import NO_TOKEN, RuleCode
from uara.decoding.rules import Outcome


def test_p3_a_branch_that_is_never_acknowledged_is_seen_by_the_watchdog(
    monkeypatch: pytest.MonkeyPatch, table_model: Any, fixed_plan: Any
) -> None:
    # Mutant: a branch taken up leaves a block in the window for which no verdict can come.
    take = parallel_device._take_branch

    def unacknowledged(state: Any, token: int) -> Any:
        chain, effects = take(state, token)
        return evolve(chain, flying=(10**9,) if chain.tail else ()), effects

    monkeypatch.setattr(parallel_device, "_take_branch", unacknowledged)
    plan, overlap = fixed_plan.of(draft_length=3, devices=10), Overlap(1, guesses=3)
    with pytest.raises(StalledRunError, match="nothing was committed"):
        run(table_model, plan, RuleCode.FULL, count=2, max_new=60, watchdog_s=5.0, overlap=overlap)


def test_p9_a_forward_judges_only_what_was_in_it() -> None:
    server = ready_server()
    server.receive(block(3, 3, 4))
    server.receive(block(5, 5, 6))  # while a forward reads the block before
    server.verdicts = [Outcome(0, 7)]
    server.finish(Outcome(1, None))
    assert server.told == [(0, 3, 2, NO_TOKEN), (0, 5, 0, 7)]
    running = server.state.batcher.running
    assert running is not None
    assert [work.epoch for work in running.works] == [1], "the correction is of the new epoch"
    server.receive(part(6, 2, epoch=1))
    assert server.session.tokens == (2,), "it waits for the row that the forward will bring"
    server.verdicts = [Outcome(1, None)]
    server.finish(None)
    assert server.session.position == 7


@pytest.mark.parametrize(("window", "length"), [(1, 30), (3, 1), (8, 7)])
def test_p11_no_block_or_window_makes_both_ends_wait(
    window: int, length: int, table_model: Any, fixed_plan: Any
) -> None:
    plan = fixed_plan.of(draft_length=length, devices=10)
    kernel = run(
        table_model,
        plan,
        RuleCode.ID_PROB,
        count=2,
        max_new=17,
        rtt_s=0.3,
        watchdog_s=4.0,
        overlap=Overlap(window, guesses=2),
    )
    assert [len(stream) for stream in streams(kernel)] == [17, 17]


@pytest.mark.slow
def test_p14_only_times_that_scatter_show_what_a_round_trip_costs() -> None:
    config = load(CONFIG).model_copy(update={"tokens": 800, "session_tokens": 400})
    exact = config.model_copy(update={"draft_sd": 0.0, "forward_sd": 0.0, "path_mean_s": 0.0})
    cell = config.cells[3]
    speeds = [
        [measure(c, cell, Setting(Overlap(2), 6, rtt)).tokens_per_s for rtt in (0.044, 0.0485)]
        for c in (exact, config)
    ]
    # Exact times are rounded up to whole draft steps: these round trips fall on one stair.
    loss = [1 - longer / shorter for shorter, longer in speeds]
    print(f"lost by 4.5 ms more: {loss[0]:.4f} exact, {loss[1]:.4f} scattered")
    assert abs(loss[0]) < 0.3 * loss[1]
