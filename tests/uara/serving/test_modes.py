"""What a round of each serving mode brings and takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from uara.network import Decision, NetworkState
from uara.prediction import Physics, predict
from uara.serving.modes import MODE_INDEX, MODES, RoundParts
from uara.serving.modes.sd import geometric_tokens

ALL_MODES = pytest.mark.parametrize("name", MODES)
# Powers of two: a sum tells which parts are in it.
PARTS = RoundParts(*(torch.tensor([2.0**power]) for power in range(6)))


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
    assert MODES[name].think_time_s(PARTS).item() == think_s


def test_only_the_draft_alone_is_lossy() -> None:
    assert [name for name, mode in MODES.items() if not mode.is_lossless] == ["device_only"]
    assert [name for name, mode in MODES.items() if not mode.uses_server] == ["device_only"]
    assert [name for name, mode in MODES.items() if not mode.drafts] == ["server_ar"]


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
