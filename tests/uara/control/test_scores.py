"""Rules by radio, speed and load, against cases that are worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES, AssociationConfig, association_rules
from uara.errors import UserError
from uara.network import NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig
from uara.radio.link import LinkConfig

MakeState = Callable[..., NetworkState]


def choose(rule: str, state: NetworkState, physics: Physics, **config: object) -> list[list[int]]:
    rules = association_rules(AssociationConfig(**config))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    return rules[rule](state, Allocator(AllocationConfig(), physics), generator).tolist()


def test_max_sinr_is_max_gain_where_servers_have_bands_of_their_own(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(20, 6, 3, seed=2)
    assert choose("max_sinr", state, physics) == choose("max_gain", state, physics)


def test_max_sinr_avoids_a_strong_server_that_others_disturb(
    make_state: MakeState, physics: Physics
) -> None:
    # Device 1 transmits to server 1 and is loud at server 0, the strongest one of device 0.
    state = make_state(
        1, 2, 2, phase=[[Phase.UPLOADING, Phase.DECODING]], server=[[-1, 1]], reachable=True,
        gain=[[[1.0e-9, 0.9e-9], [1e-8, 1e-8]]],
    )  # fmt: skip
    shared = Physics.of(PhysicsConfig(link=LinkConfig(interference="reuse1")))
    assert choose("max_gain", state, shared) == [[0, 1]]
    assert choose("max_sinr", state, shared) == [[1, 1]]
    # A device without a request is silent.
    silent = state.with_(phase=torch.tensor([[int(Phase.UPLOADING), int(Phase.IDLE)]]))
    assert choose("max_sinr", silent, shared)[0][0] == 0


def test_bias_widens_the_cell_of_a_server(make_state: MakeState, physics: Physics) -> None:
    # 7 dB between the servers, the second one twice as fast.
    state = make_state(
        1, 1, 2, fresh=True, reachable=True, gain=[[[5e-10, 1e-10]]], forward_fixed_s=[[0.2, 0.1]],
    )  # fmt: skip
    none = {"bias_db": (), "speed_bias_db": 0.0}
    assert choose("bias_cre", state, physics, **none) == [[0]]
    assert choose("bias_cre", state, physics, speed_bias_db=6.9) == [[0]]
    assert choose("bias_cre", state, physics, speed_bias_db=7.1) == [[1]]
    assert choose("bias_cre", state, physics, **(none | {"bias_db": (0.0, 7.1)})) == [[1]]


def test_biases_must_be_one_per_server(make_state: MakeState, physics: Physics) -> None:
    with pytest.raises(UserError, match="bias_db has 3 entries but there are 2 servers"):
        choose("bias_cre", make_state(1, 1, 2), physics, bias_db=(0.0, 1.0, 2.0))


def test_max_compute_share_divides_speed_by_requests(
    make_state: MakeState, physics: Physics
) -> None:
    # Shares of the fast server: 3, 3/2, 1; of the slow one 1.4: fast, fast, slow.
    state = make_state(1, 3, 2, fresh=True, reachable=True, forward_fixed_s=[[1 / 3, 1 / 1.4]])
    assert sorted(choose("max_compute_share", state, physics)[0]) == [0, 0, 1]


def test_max_compute_share_lets_any_device_be_the_first(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(3000, 3, 2, fresh=True, reachable=True, forward_fixed_s=[0.1, 0.11])
    server = torch.tensor(choose("max_compute_share", state, physics))
    # Two take the fast server's and one the slow one's; who, is drawn uniformly.
    assert (server.sum(1) == 1).all()
    assert stats.chisquare(server.sum(0).tolist()).pvalue > 1e-3


def test_max_rate_share_takes_the_best_rate_in_an_equal_share(
    make_state: MakeState, physics: Physics
) -> None:
    draw = torch.Generator().manual_seed(3)
    gain = 10 ** (-12 + 3 * torch.rand(20, 5, 3, generator=draw))
    band_hz = 1e6 * (0.5 + torch.rand(20, 3, generator=draw))
    state = make_state(
        20, 5, 3, fresh=True, reachable=True, gain=gain, uplink_bandwidth_hz=band_hz,
        power_max_w=0.2,
    )  # fmt: skip
    link = physics.config.link
    noise, gap = 10 ** ((-174 + link.uplink_noise_figure_db - 30) / 10), 10**0.3
    for network, found in enumerate(choose("max_rate_share", state, physics)):
        users, expected = [0, 0, 0], [0] * 5
        gains = gain[network].tolist()
        for device in sorted(range(5), key=lambda i: -max(gains[i])):
            rates = []
            for server in range(3):
                hertz = band_hz[network, server].item() / (users[server] + 1)
                snr = gains[device][server] * 0.2 / (noise * hertz * gap)
                rates.append(hertz * min(math.log2(1 + snr), link.spectral_efficiency_max))
            expected[device] = rates.index(max(rates))
            users[expected[device]] += 1
        assert found == expected


@pytest.mark.parametrize("rule", ["max_compute_share", "max_rate_share"])
def test_running_requests_count_and_stay(
    rule: str, make_state: MakeState, physics: Physics
) -> None:
    # Three run on server 0, which is otherwise as good as server 1.
    state = make_state(
        1, 4, 2, phase=[[Phase.DECODING] * 3 + [Phase.UPLOADING]], server=[[0, 0, 0, -1]],
        reachable=True, gain=1e-10, forward_fixed_s=0.1, uplink_bandwidth_hz=1e6,
    )  # fmt: skip
    assert choose(rule, state, physics) == [[0, 0, 0, 1]]


def test_every_rule_has_a_name_and_a_sentence() -> None:
    assert len(ASSOCIATION_RULES) == 18
    assert association_rules(AssociationConfig()).keys() == ASSOCIATION_RULES.keys()
