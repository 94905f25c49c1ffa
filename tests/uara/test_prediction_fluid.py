"""Servers that their devices divide: shares that decide, and shares of the least sum of passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from tests.uara.decisions import decide, physics_of, random_decision
from uara.network import NetworkState, Phase
from uara.prediction import Physics, PhysicsConfig, Prediction, predict

MakeState = Callable[..., NetworkState]


@pytest.mark.parametrize("mode", ["sd", "server_ar", "psd", "async", "device_only"])
@pytest.mark.parametrize("phase", [Phase.UPLOADING, Phase.PREFILLING, Phase.DECODING])
def test_one_device_alone_on_a_fluid_server_is_served_as_without_waiting(
    make_state: MakeState, mode: str, phase: Phase
) -> None:
    state = make_state(
        3, 1, 1, seed=6, phase=phase, prompt_tokens=1000, tokens_so_far=0, server=0,
        kv_tokens=1000 * (phase == Phase.DECODING), upload_bits=1e6 * (phase == Phase.UPLOADING),
    )  # fmt: skip
    batched, fluid = (
        predict(state, decide(state, 4), physics_of(mode=mode, service=service))
        for service in ("batched", "fluid")
    )
    assert (batched.wait_s == 0).all()
    # The next prefill would ride on decoding passes here and share the server there.
    later = {"prefill_tokens_per_s"} if phase == Phase.DECODING else set()
    for name in {field.name for field in fields(Prediction)} - later:
        here, there = getattr(fluid, name), getattr(batched, name)
        torch.testing.assert_close(here, there, rtol=1e-5, atol=2e-6, msg=name)


def decoding_crowd(make_state: MakeState, seed: int) -> NetworkState:
    state = make_state(3, 5, 2, seed=seed, phase=Phase.DECODING, upload_bits=0)
    context = 400 + 700 * torch.arange(15.0).view(3, 5)
    return state.with_(
        prompt_tokens=context, tokens_so_far=torch.zeros(3, 5), kv_tokens=context,
        server=torch.randint(2, (3, 5), generator=torch.Generator().manual_seed(seed)),
        # Contexts that matter, so that passes differ.
        forward_per_context_s=torch.full((3, 2), 1e-4),
    )  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
def test_undecided_shares_are_the_least_sum_of_passes(make_state: MakeState, seed: int) -> None:
    state = decoding_crowd(make_state, seed)
    decision = replace(decide(state, 3), server=state.server)
    plan = predict(state, decision, physics_of(service="fluid"))
    for b in range(3):
        for e in range(2):
            own = (state.server[b] == e).nonzero().squeeze(1)
            if not len(own):
                continue
            at = (b, e)
            alone_s = (
                state.forward_fixed_s[at] + state.forward_per_row_s[at]
                + 4 * state.forward_per_token_s[at]
                + state.prompt_tokens[b, own] * state.forward_per_context_s[at]
            ).double().numpy()  # fmt: skip
            best = minimize(
                lambda z, f=alone_s: (f / z).sum(),
                np.full(len(own), 1 / len(own)),
                bounds=[(1e-3, 1)] * len(own),
                constraints={"type": "eq", "fun": lambda z: z.sum() - 1},
            )
            share = alone_s / plan.verify_s[b, own].double().numpy()
            assert share.sum() == pytest.approx(1, rel=1e-5)
            assert plan.verify_s[b, own].sum().item() == pytest.approx(best.fun, rel=1e-3)


def test_decided_shares_hold_and_are_cut_to_the_server(make_state: MakeState) -> None:
    state = decoding_crowd(make_state, 3).with_(server=torch.zeros(3, 5, dtype=torch.long))
    physics, decision = physics_of(service="fluid"), decide(state, 3)

    def verify_s(*shares: float) -> torch.Tensor:
        share = torch.tensor([shares]).expand(3, -1)
        return predict(state, replace(decision, compute_share=share), physics).verify_s

    alone_s = verify_s(0.2, 0.2, 0.2, 0.2, 0.2) * 0.2
    given = torch.tensor([0.1, 0.1, 0.3, 0.25, 0.05])
    torch.testing.assert_close(verify_s(*given.tolist()), alone_s / given)
    torch.testing.assert_close(verify_s(*(2.5 * given).tolist()), alone_s / (given / 0.8))


def test_batched_service_knows_no_shares(make_state: MakeState, physics: Physics) -> None:
    state = make_state(4, 5, 2, seed=7)
    decision = random_decision(state, physics, 7)
    shared = replace(decision, compute_share=torch.full((4, 5), 0.1))
    here, there = (predict(state, d, physics) for d in (decision, shared))
    for field in fields(Prediction):
        assert torch.equal(getattr(here, field.name), getattr(there, field.name)), field.name


def test_batched_service_leaves_the_stored_hashes_alone() -> None:
    assert "service" not in PhysicsConfig().model_dump()
    assert PhysicsConfig(service="fluid").model_dump()["service"] == "fluid"
