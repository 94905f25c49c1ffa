"""What a round of each serving mode brings and takes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uara.network import Decision, NetworkState
from uara.prediction import Physics, predict
from uara.serving.modes import CANDIDATES, MODE_INDEX, MODES, RoundParts
from uara.serving.modes.asynchronous import (
    PATHS,
    PATHS_WHILE_SOLVING,
    AsynchronousSpeculation,
    _epoch,
    _epoch_in_torch,
)
from uara.serving.modes.cut import cut_at
from uara.serving.modes.native_epoch import knows
from uara.serving.modes.psd import mean_of_later_s, residual_share_of_steady
from uara.serving.modes.sd import geometric_tokens
from uara.serving.payload import CODECS

ALL_MODES = pytest.mark.parametrize("name", MODES)
ALPHA, GAMMA = torch.tensor([0.7]), torch.tensor([4.0])
# Powers of two: a sum tells which parts are in it.
PARTS = RoundParts(*(torch.tensor([2.0**power]) for power in range(6)), ALPHA, GAMMA)


@ALL_MODES
def test_mode_stands_under_its_own_name(name: str) -> None:
    assert MODES[name].name == name
    assert list(MODES)[MODE_INDEX[name]] == name


@pytest.mark.parametrize(
    ("name", "round_s", "think_s"),
    [
        ("sd", 1 + 2 + 4 + 8 + 16 + 32, 1 + 2 + 16 + 32),
        ("server_ar", 8, 0),
        ("device_only", 1, 0),
    ],
)
def test_round_is_the_sum_of_its_parts(name: str, round_s: float, think_s: float) -> None:
    assert MODES[name].round_time_s(PARTS).item() == round_s
    assert MODES[name].comeback(PARTS).think_s.item() == think_s


def test_only_the_draft_alone_is_lossy() -> None:
    assert [name for name, mode in MODES.items() if not mode.is_lossless] == ["device_only"]
    assert [name for name, mode in MODES.items() if not mode.uses_server] == ["device_only"]
    assert [name for name, mode in MODES.items() if not mode.drafts] == ["server_ar"]
    assert [name for name, mode in MODES.items() if mode.overlaps] == ["psd", "async", "auto"]


@ALL_MODES
def test_tokens_rise_with_acceptance_and_with_length(name: str) -> None:
    alpha = torch.linspace(0, 1, 21)[:, None].expand(-1, 8)
    gamma = torch.arange(1, 9.0)[None]
    tokens = MODES[name].expected_tokens(alpha, gamma.expand(21, -1))
    assert tokens.shape == (21, 8)
    assert (tokens >= 1).all()
    assert (tokens <= gamma + 1 + 1e-5).all()
    assert (tokens.diff(dim=0) >= -1e-5).all()
    assert (tokens.diff(dim=1) >= -1e-5).all()


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode.is_lossless])
def test_nothing_accepted_brings_one_token_a_round(name: str) -> None:
    gamma = torch.arange(9.0)
    tokens = MODES[name].expected_tokens(torch.zeros(9), gamma)
    torch.testing.assert_close(tokens, torch.ones(9))


@pytest.mark.parametrize(("name", "extra"), [("sd", 1), ("psd", 0), ("async", 0)])
def test_everything_accepted_brings_the_draft_and_in_sequence_a_bonus(
    name: str, extra: int
) -> None:
    gamma = torch.arange(1, 9.0)
    tokens = MODES[name].expected_tokens(torch.ones(8), gamma)
    torch.testing.assert_close(tokens, gamma + extra)


@pytest.mark.parametrize("alpha", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("gamma", [1, 4, 7])
def test_parallel_steps_commit_and_test_what_a_walk_through_them_does(
    alpha: float, gamma: int
) -> None:
    draw = random.Random(gamma)
    steps, tokens, fed, rejections, pending = 30_000, 0, 0, 0, False
    for _ in range(steps):
        fed += gamma if pending else 1
        judged = gamma if pending else 1
        accepted = 0
        while accepted < judged and draw.random() < alpha:
            accepted += 1
        pending = accepted == judged
        rejections += not pending
        tokens += accepted + (not pending)
    a, g, codec = torch.tensor(alpha), torch.tensor(float(gamma)), CODECS["id_prob"]
    mode = MODES["psd"]
    assert mode.expected_tokens(a, g).item() == pytest.approx(tokens / steps, rel=0.02)
    assert mode.new_tokens(a, g).item() == pytest.approx(fed / steps, rel=0.02)
    down = [codec.verdict_bits_given(rejected=is_rejected) for is_rejected in (False, True)]
    expected = down[0] + (down[1] - down[0]) * rejections / steps
    assert mode.verdict_bits(codec, a, g).item() == pytest.approx(expected, rel=0.02)


def test_a_parallel_step_is_the_slower_of_its_two_ends() -> None:
    slow, quick = torch.tensor([5.0]), torch.tensor([0.01])
    fast_server = replace(PARTS, wait_s=quick, verify_s=quick, downlink_s=quick, rtt_s=quick)
    mode = MODES["psd"]
    fast_device = replace(PARTS, draft_s=quick, uplink_s=quick)
    # Draft of 1 s, 2 s on the radio; the other way wait 4, pass 8, downlink 16, path 32.
    draft_s = replace(fast_server, draft_s=slow)
    assert mode.round_time_s(draft_s).item() == pytest.approx(5 + 0.75 * 2, rel=0.01)
    assert mode.round_time_s(fast_device).item() == pytest.approx(4 + 8 + 16 + 32, rel=0.01)
    assert mode.comeback(fast_device).think_s.item() == pytest.approx(16 + 32, rel=0.02)


def test_the_mean_of_the_later_of_two_instants() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 200_000, generator=draw)
    first, second = 1.0 + 0.1 * noise[0], 1.05 + 0.2 * noise[1]
    means = (torch.tensor(1.0), torch.tensor(1.05), torch.tensor(0.1**2 + 0.2**2))
    simulated = torch.maximum(first, second).mean().item()
    assert mean_of_later_s(*means).item() == pytest.approx(simulated, rel=1e-3)


def test_whoever_comes_back_like_clockwork_waits_for_the_rest_of_a_pass() -> None:
    think = torch.tensor([0.1, 0.5, 1.4])
    waited = residual_share_of_steady(think, torch.zeros(3))
    torch.testing.assert_close(waited, think.ceil() - think, atol=0.01, rtol=0)
    far = residual_share_of_steady(torch.tensor([7.3]), torch.zeros(1))
    assert far.item() == 0.5


def bare_parts(alpha: float, gamma: int, *, window: int = 1, **seconds: float) -> RoundParts:
    """Take 20 ms per draft token and 80 ms per pass; no link, unless given."""
    given = {"uplink_s": 0.0, "wait_s": 0.0, "verify_s": 0.08, "downlink_s": 0.0, "rtt_s": 0.0}
    each = {name: torch.tensor([value]) for name, value in {**given, **seconds}.items()}
    return RoundParts(
        draft_s=torch.tensor([0.02 * gamma]),
        alpha=torch.tensor([alpha]),
        gamma=torch.tensor([float(gamma)]),
        window=window,
        **each,
    )


@pytest.mark.parametrize(("window", "block_s"), [(1, 0.28), (2, 0.14), (3, 0.28 / 3)])
def test_a_window_of_accepted_drafts_hides_the_delay(window: int, block_s: float) -> None:
    parts = bare_parts(1.0, 4, window=window, rtt_s=0.2)
    assert MODES["async"].round_time_s(parts).item() == pytest.approx(block_s, rel=0.04)


def test_a_rejected_first_token_costs_its_draft_and_its_way_there_and_back() -> None:
    # The token under way is finished first: half of it, 10 ms, on average.
    parts = bare_parts(0.0, 4, rtt_s=0.05)
    assert MODES["async"].round_time_s(parts).item() == pytest.approx(0.08 + 0.05 + 0.01, rel=0.01)


def test_on_a_server_that_never_rests_a_draft_waits_for_the_end_of_the_pass_it_meets() -> None:
    # Back 20 ms after its own pass, in the first quarter of the next: half a pass at any time.
    parts = bare_parts(1.0, 3, rtt_s=0.02, wait_s=0.04)
    assert MODES["async"].round_time_s(parts).item() == pytest.approx(2 * 0.08, rel=0.02)


def test_a_wider_window_drafts_and_sends_more_that_is_thrown_away() -> None:
    narrow, wide = (
        MODES["async"].effort(bare_parts(0.7, 3, window=window, rtt_s=0.1)) for window in (1, 3)
    )
    assert narrow.drafts.item() == 1
    assert wide.drafts.item() > 1.5
    assert wide.draft_s.item() > narrow.draft_s.item() > 3 * 0.02


def cut_parts(alpha: float, gamma: int, budget_s: float, **more: float) -> RoundParts:
    return replace(bare_parts(alpha, gamma, **more), draft_budget=budget_s)


def test_a_budget_below_a_draft_step_leaves_drafts_of_one_token() -> None:
    for alpha in (0.0, 0.6, 0.9):
        cut, single = cut_parts(alpha, 6, 0.001, rtt_s=0.05), bare_parts(alpha, 1, rtt_s=0.05)
        # In a window so wide a draft may go up at any time, but for one held behind all others.
        cut, single = replace(cut, window=8), replace(single, window=8)
        tokens = MODES["async"].round_tokens(cut)
        torch.testing.assert_close(tokens, torch.ones(1), rtol=1e-5, atol=0)
        time_s = MODES["async"].round_time_s(cut)
        alone_s = MODES["async"].round_time_s(single)
        torch.testing.assert_close(time_s, alone_s, rtol=0.01, atol=0)


@pytest.mark.parametrize("window", [1, 3])
def test_an_endless_budget_is_none(window: int) -> None:
    mode, whole = MODES["async"], bare_parts(0.8, 5, window=window, rtt_s=0.05)
    endless = replace(whole, draft_budget=float("inf"))
    torch.testing.assert_close(mode.round_tokens(endless), mode.round_tokens(whole))
    torch.testing.assert_close(mode.round_time_s(endless), mode.round_time_s(whole))
    assert mode.effort(endless).draft_s.item() == pytest.approx(mode.effort(whole).draft_s.item())


def test_nothing_accepted_brings_one_token_a_round_whatever_the_budget() -> None:
    for budget_s in (0.001, 0.05, 9.0):
        tokens = MODES["async"].round_tokens(cut_parts(0.0, 6, budget_s))
        torch.testing.assert_close(tokens, torch.ones(1))


@pytest.mark.parametrize("limit_s", [0.019, 0.021, 0.05, 0.09, 0.13])
def test_the_length_of_a_cut_draft_is_that_of_a_simulated_one(limit_s: float) -> None:
    gamma, alpha = 6, 0.8
    draw = random.Random(1)
    lengths, times_s = [], []
    for _ in range(20_000):
        ended_s, length = 0.0, 0
        while length < gamma and (length == 0 or ended_s < limit_s):
            ended_s += 0.02 * draw.uniform(0.8, 1.2)
            length += 1
        lengths.append(length)
        times_s.append(ended_s)
    law = cut_at(*(torch.tensor(x) for x in (limit_s, 0.02, float(gamma), alpha)))
    seen = torch.tensor(lengths, dtype=torch.float64)
    assert law.drafted.item() == pytest.approx(seen.mean().item(), rel=0.01)
    assert law.survives.item() == pytest.approx((alpha**seen).mean().item(), rel=0.01)
    assert 0.02 * law.drafted.item() == pytest.approx(sum(times_s) / len(times_s), rel=0.01)


def test_auto_takes_the_time_per_token_of_the_best() -> None:
    parts = bare_parts(0.8, 4, rtt_s=0.3)
    tpot_s = {
        mode.name: (
            mode.round_time_s(parts) / mode.expected_tokens(parts.alpha, parts.gamma)
        ).item()
        for mode in CANDIDATES
    }
    assert MODES["auto"].round_time_s(parts).item() == pytest.approx(min(tpot_s.values()))
    assert min(tpot_s, key=lambda name: tpot_s[name]) == "server_ar"
    assert set(tpot_s) == {name for name, mode in MODES.items() if mode.is_lossless} - {"auto"}


@settings(max_examples=60)
@given(
    st.floats(0, 1),
    st.integers(1, 8),
    st.integers(1, 4),
    st.lists(st.floats(0, 0.5), min_size=5, max_size=5),
)
def test_rounds_that_overlap_are_finite_and_not_much_longer_than_in_sequence(
    alpha: float, gamma: int, window: int, seconds: list[float]
) -> None:
    uplink_s, wait_s, verify_s, downlink_s, rtt_s = seconds
    parts = bare_parts(
        alpha, gamma, window=window, uplink_s=uplink_s, wait_s=wait_s / 2,
        verify_s=verify_s + 0.01, downlink_s=downlink_s, rtt_s=rtt_s,
    )  # fmt: skip
    # A pass for a correction, or a voided frame that still leaves, may come on top.
    longest_s = 1.25 * MODES["sd"].round_time_s(parts).item() + parts.verify_s.item() + uplink_s
    for name in ("psd", "async"):
        round_s = MODES[name].round_time_s(parts).item()
        assert 0.02 * 0.5 < round_s < longest_s
        back = MODES[name].comeback(parts)
        effort = MODES[name].effort(parts)
        for value in (*vars(back).values(), *vars(effort).values()):
            assert torch.isfinite(value).all()
        assert effort.drafts.item() >= 1


@pytest.mark.parametrize("alpha", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_speculation_commits_what_a_simulated_round_commits(alpha: float, gamma: int) -> None:
    draw = torch.Generator().manual_seed(gamma)
    rounds = 40_000
    is_accepted = torch.rand(rounds, gamma, generator=draw, dtype=torch.float64) < alpha
    committed = 1.0 + is_accepted.int().cumprod(1).sum(1).double()
    error = 5 * committed.std() / rounds**0.5
    expected = MODES["sd"].expected_tokens(torch.tensor(alpha), torch.tensor(float(gamma)))
    assert abs(expected.item() - committed.mean()) < error


def test_limits_of_the_acceptance() -> None:
    gamma = torch.arange(9.0)
    nothing, everything = torch.zeros(9), torch.ones(9)
    torch.testing.assert_close(geometric_tokens(nothing, gamma), torch.ones(9))
    torch.testing.assert_close(geometric_tokens(everything, gamma), gamma + 1)
    nearly = geometric_tokens(torch.full((9,), 1 - 2e-5), gamma)
    torch.testing.assert_close(nearly, gamma + 1, rtol=2e-3, atol=0)
    alpha = torch.linspace(0, 1, 11)
    torch.testing.assert_close(geometric_tokens(alpha, torch.zeros(11)), torch.ones(11))


@ALL_MODES
@pytest.mark.parametrize("horizon", ["slot", "request"])
def test_no_draft_is_plain_server_decoding_in_every_mode(
    name: str, horizon: str, make_state: Callable[..., NetworkState], physics: Physics
) -> None:
    state = make_state(8, 4, 3, seed=11)
    server = torch.randint(3, (8, 4), generator=torch.Generator().manual_seed(0))

    def tpot_s(mode: str, length: int) -> torch.Tensor:
        decision = Decision(
            server=server,
            bandwidth_hz=torch.full((8, 4), 1e5),
            power_w=state.power_max_w,
            draft_length=torch.full((8, 4), length),
            mode=torch.full((8, 4), MODE_INDEX[mode]),
        )
        return predict(state, decision, physics, horizon).tpot_s  # type: ignore[arg-type]

    assert torch.equal(tpot_s(name, 0), tpot_s("server_ar", 0))
    assert torch.equal(tpot_s("server_ar", 5), tpot_s("server_ar", 0))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_compiled_epochs_are_those_of_torch(window: int) -> None:
    draw = torch.Generator().manual_seed(window)

    def between(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=draw)

    gamma = torch.randint(0, 9, (100, 41), generator=draw).float()
    parts = RoundParts(
        draft_s=gamma * between(0.01, 0.04, 100, 41),
        uplink_s=10 ** between(-3, 0.5, 100, 41),
        wait_s=between(0, 0.2, 100, 41),
        verify_s=between(0.1, 0.5, 100, 41),
        downlink_s=10 ** between(-4, -1, 100, 41),
        rtt_s=between(0, 0.1, 100, 1),
        alpha=between(0.2, 0.98, 100, 41),
        gamma=gamma,
        window=window,
    )
    mode = MODES["async"]
    assert isinstance(mode, AsynchronousSpeculation)
    assert knows(parts, PATHS)
    assert not knows(replace(parts, alpha=parts.alpha.double()), PATHS)
    for paths in (PATHS, PATHS_WHILE_SOLVING):
        here, there = _epoch(parts, paths), _epoch_in_torch(parts, paths)
        for name in ("time_s", "passes", "new_tokens"):
            one, other = getattr(here, name), getattr(there, name)
            apart = (one / other - 1).abs()
            # Where the uplink is full, rounding decides whether a drafter rests: a window above 1.
            assert (apart > 1e-5).float().mean() <= (0 if window == 1 else 2e-3)
            assert apart.max() < 2e-3
    effort, by_torch = mode.effort(parts), mode.effort_in_torch(parts)
    torch.testing.assert_close(effort.draft_s, by_torch.draft_s, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(effort.drafts, by_torch.drafts, rtol=1e-5, atol=1e-6)
