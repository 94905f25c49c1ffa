"""Draft lengths in closed form, learned lengths, and modes, against searches by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.draft_length import argmin, best_length, log_threshold
from uara.control.ucb import UcbConfig, UcbDraftLength
from uara.network import Decision, NetworkState, Phase, SlotOutcome
from uara.prediction import Physics, predict
from uara.serving.modes import MODE_INDEX

MakeState = Callable[..., NetworkState]
LOSSLESS = ("sd", "server_ar", "psd", "async")


def length_for(fixed_s: float, per_token_s: float, acceptance: float, longest: int = 64) -> int:
    values = (torch.tensor([[value]]).double() for value in (fixed_s, per_token_s, acceptance))
    return int(best_length(*values, longest).item())


def searched(fixed_s: float, per_token_s: float, acceptance: float, longest: int = 64) -> float:
    """Find the least time per token over all lengths, term by term."""
    return min(
        (fixed_s + g * per_token_s) / sum(acceptance**k for k in range(g + 1))
        for g in range(1, longest + 1)
    )


@given(st.floats(0, 5), st.floats(0.001, 0.2), st.floats(0.05, 0.98), st.integers(1, 30))
def test_closed_form_is_as_good_as_a_search(
    fixed_s: float, per_token_s: float, acceptance: float, longest: int
) -> None:
    g = length_for(fixed_s, per_token_s, acceptance, longest)
    assert 1 <= g <= longest
    tpot_s = (fixed_s + g * per_token_s) / sum(acceptance**k for k in range(g + 1))
    assert tpot_s <= searched(fixed_s, per_token_s, acceptance, longest) * (1 + 1e-9)


def test_lengths_of_a_known_grid_of_delays() -> None:
    # Drafting 20 ms per token, verifying 30 ms, acceptance 0.8.
    lengths = [length_for(0.03 + delay, 0.02, 0.8) for delay in (0, 0.02, 0.05, 0.1, 0.2, 0.4)]
    assert lengths == [1, 2, 3, 5, 6, 8]


def test_length_grows_with_the_logarithm_of_the_delay() -> None:
    lengths = [length_for(10.0**k, 0.02, 0.9, 10**4) for k in range(1, 7)]
    steps = [b - a for a, b in itertools.pairwise(lengths)]
    # Ten times the delay adds ln 10 / -ln a tokens, and a little for the growing logarithm.
    assert steps[-1] == pytest.approx(math.log(10) / -math.log(0.9), abs=1.5)


def test_one_token_below_the_critical_delay() -> None:
    critical = (1 + 0.7 - 0.49) / 0.49 * 0.02
    assert length_for(0.999 * critical, 0.02, 0.7) == 1
    assert length_for(1.001 * critical, 0.02, 0.7) == 2


def test_log_threshold_comes_close_to_the_search(make_state: MakeState, physics: Physics) -> None:
    state = make_state(60, 1, 1, seed=6, fresh=True, foreign_rows=0)
    decision = Decision(
        torch.zeros_like(state.phase), torch.full_like(state.age_s, 2e5), state.power_max_w,
        torch.full_like(state.phase, 4),
    )  # fmt: skip
    found = [rule(state, decision, physics) for rule in (log_threshold, argmin)]
    tpot_s = [
        predict(state, replace(decision, draft_length=length), physics, "request").tpot_s
        for length in found
    ]
    drafts = found[1] > 0  # the closed form never leaves decoding to the server
    assert drafts.sum() > 30
    assert (tpot_s[0] / tpot_s[1])[drafts].max() < 1.01


# The bandit.


def outcome_of(state: NetworkState, tokens: torch.Tensor, finished: torch.Tensor) -> SlotOutcome:
    per_device, nothing = torch.zeros_like(state.age_s), torch.zeros_like(finished)
    return SlotOutcome(
        alive_s=state.time_s, tokens=tokens, device_energy_j=per_device,
        server_energy_j=per_device, uplink_bits=per_device, downlink_bits=per_device,
        handover=nothing, finished=finished, e2e_s=per_device, ttft_s=per_device,
        finished_tokens=per_device, finished_task=state.task, drained=nothing[:, 0],
    )  # fmt: skip


def play(
    bandit: UcbDraftLength, state: NetworkState, rates: torch.Tensor, slots: int, *, spoil: bool
) -> torch.Tensor:
    """Let lengths bring tokens at their rates; return how often each was chosen, (B, M, G)."""
    chosen = torch.zeros(*state.phase.shape, rates.shape[-1])
    for slot in range(slots):
        length = bandit.choose(state.with_(time_s=torch.full_like(state.time_s, 0.5 * slot)))
        chosen.scatter_add_(-1, length[..., None], torch.ones_like(chosen[..., :1]))
        tokens = 0.5 * rates.expand_as(chosen).gather(-1, length[..., None])[..., 0]
        # Slots that end a request tell nothing: here they would praise the worst length.
        finished = torch.full_like(state.has_request, spoil and slot % 2 == 1)
        tokens = torch.where(finished, 100.0 * (length == 0), tokens)
        bandit.observe(outcome_of(state, tokens, finished))
    return chosen


@pytest.mark.parametrize("spoil", [False, True])
def test_bandit_finds_the_length_of_most_tokens_per_second(
    make_state: MakeState, spoil: bool
) -> None:
    state = make_state(2, 2, 1, phase=Phase.DECODING)
    best = torch.tensor([[1, 2], [3, 0]])
    rates = 4 + 4 * torch.nn.functional.one_hot(best, 4).float()
    chosen = play(UcbDraftLength(3, UcbConfig()), state, rates, 200, spoil=spoil)
    assert torch.equal(chosen.argmax(-1), best)
    assert (chosen.amax(-1) > 140).all() or spoil
    assert (chosen >= 1).all()


def test_bandit_forgets_the_networks_of_the_mask_alone(make_state: MakeState) -> None:
    state = make_state(2, 1, 1, phase=Phase.DECODING)
    bandit = UcbDraftLength(3, UcbConfig())
    play(bandit, state, torch.tensor([1.0, 1.0, 9.0, 1.0]), 60, spoil=False)
    bandit.reset(torch.tensor([True, False]))
    length = bandit.choose(state.with_(time_s=torch.tensor([0.0, 30.0])))
    assert length.tolist() == [[0], [2]]  # the first tries all again, from 0 on


def test_bandit_learns_nothing_from_devices_that_do_not_decode(make_state: MakeState) -> None:
    state = make_state(1, 1, 1, phase=Phase.UPLOADING)
    chosen = play(UcbDraftLength(3, UcbConfig()), state, torch.ones(4), 20, spoil=False)
    assert chosen.flatten().tolist() == [20, 0, 0, 0]


# Modes.


def test_best_mode_and_length_is_the_best_pair_of_a_device_alone(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(24, 1, 1, seed=5, fresh=True)
    state = state.with_(rtt_s=torch.linspace(0, 0.3, 24)[:, None])
    here = torch.zeros_like(state.phase)
    allocator = Allocator(AllocationConfig(mode="best_mode"), physics)
    found = allocator(state, here)
    assert found.mode is not None
    tpot_s = []
    for name in LOSSLESS:
        for g in range(1, 9):
            mode, length = torch.full_like(here, MODE_INDEX[name]), torch.full_like(here, g)
            tried = replace(found, mode=mode, draft_length=length)
            tpot_s.append(predict(state, tried, physics, "request").tpot_s)
    best = torch.stack(tpot_s).amin(0)
    torch.testing.assert_close(predict(state, found, physics, "request").tpot_s, best)
    assert len(found.mode.unique()) > 1


def test_best_mode_at_a_given_length(make_state: MakeState, physics: Physics) -> None:
    state = make_state(20, 3, 2, seed=4)
    server = state.gain.argmax(-1)
    found = Allocator(AllocationConfig(mode="best_mode", draft_length=4), physics)(state, server)
    auto = replace(found, mode=torch.full_like(server, MODE_INDEX["auto"]))
    assert found.mode is not None
    assert torch.equal(found.mode, predict(state, auto, physics, "request").mode)


@pytest.mark.parametrize("name", ["server_ar", "device_only", "psd"])
def test_named_mode_serves_everybody(make_state: MakeState, physics: Physics, name: str) -> None:
    state = make_state(3, 3, 2, seed=4)
    config = AllocationConfig.model_validate({"mode": name, "draft_length": 3})
    decision = Allocator(config, physics)(state, state.gain.argmax(-1))
    assert (predict(state, decision, physics).mode == MODE_INDEX[name]).all()
