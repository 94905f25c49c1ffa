"""KV caches on their way between servers, and the time that a prediction gives them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from uara.network import Decision, NetworkState, Phase
from uara.prediction import Physics, predict
from uara.serving.modes import MODE_INDEX
from uara.serving.transfer import kv_transfer_s, moving_kv_tokens


@pytest.fixture
def state(make_state: Callable[..., NetworkState]) -> NetworkState:
    """Four devices at server 0 of 2: decoding, decoding, idle, and one whose cache is coming."""
    decoding = int(Phase.DECODING)
    made = make_state(
        1, 4, 2, server=0, upload_bits=0.0, prompt_tokens=1000.0, tokens_so_far=0.0,
        phase=[[decoding, decoding, int(Phase.IDLE), int(Phase.PREFILLING)]],
        kv_tokens=[[1000.0, 1000.0, 0.0, 300.0]],
    )  # fmt: skip
    return made.with_(
        kv_arriving_tokens=torch.tensor([[0.0, 0.0, 0.0, 700.0]]),
        kv_transfer_s=torch.tensor([[1e-3, 2e-3]]),
    )


def decide(state: NetworkState, server: list[int], mode: str = "sd") -> Decision:
    like = torch.zeros_like(state.server)
    return Decision(
        torch.tensor([server]), like + 2e5, state.power_max_w, like + 4, like + MODE_INDEX[mode]
    )


def test_what_lies_elsewhere_moves_and_what_is_coming_goes_on(state: NetworkState) -> None:
    server = torch.tensor([[0, 1, 1, 0]])
    assert moving_kv_tokens(state, server).tolist() == [[0, 1000, 0, 700]]
    assert kv_transfer_s(state, server)[0].tolist() == pytest.approx([0, 2, 0, 0.7])
    # a request that moves again takes along what has come and what has not
    assert moving_kv_tokens(state, torch.tensor([[0, 1, 1, 1]]))[0, 3].item() == 1000


def test_prediction_waits_for_the_cache_and_reads_nothing(
    state: NetworkState, physics: Physics
) -> None:
    plan = predict(state, decide(state, [0, 1, 1, 0]), physics)
    with_request = [0, 1, 3]
    assert plan.prefill_s[0, with_request].tolist() == pytest.approx([0, 2, 0.7])
    assert plan.prefill_tokens[0, with_request].tolist() == [0, 0, 0]
    assert plan.handover.tolist() == [[False, True, False, False]]
    # without transfers the same move costs a prefill
    plain = state.with_(kv_arriving_tokens=None, kv_transfer_s=None)  # type: ignore[arg-type]
    assert predict(plain, decide(state, [0, 1, 1, 0]), physics).prefill_tokens[0, 1].item() == 1000


def test_device_alone_waits_for_no_cache(state: NetworkState, physics: Physics) -> None:
    plan = predict(state, decide(state, [1, 1, 1, 1], "device_only"), physics)
    assert (plan.prefill_s[0, [0, 1, 3]] == 0).all()
