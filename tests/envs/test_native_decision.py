"""Compiled decisions: those of torch, for random, illegal and unbounded choices."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from envs import Action, ControlConfig, EnvRecipe
from envs.action import illegal_server, to_decision
from envs.native_decision import NativeDecider, knows_control
from uara.errors import UserError

ALL_LEARNED = ControlConfig(
    association="learned", bandwidth="learned", power="learned", draft_length="learned"
)


def any_action(draw: torch.Generator) -> Action:
    """Choices of all heads, some of them out of range."""
    shape = (6, 5)
    return Action(
        server=torch.randint(-1, 5, shape, generator=draw),
        bandwidth=torch.rand(shape, generator=draw) * 1.4 - 0.2,
        power=torch.rand(shape, generator=draw) * 1.4 - 0.2,
        draft_length=torch.randint(-1, 12, shape, generator=draw),
    )


def test_compiled_code_decides_what_torch_decides(recipe: EnvRecipe) -> None:
    plain, fast = (
        replace(recipe, control=ALL_LEARNED, native=on).batched(6, seed=5) for on in (False, True)
    )
    physics = plain.world.physics
    decider = NativeDecider.of(ALL_LEARNED, physics.config.max_draft_length)
    draw = torch.Generator().manual_seed(1)
    plain.reset()
    fast.reset()
    replaced = 0
    for _ in range(40):
        action = any_action(draw)
        expected = to_decision(action, plain.state, ALL_LEARNED, physics)
        decision, illegal = decider(action, plain.state)
        for field in fields(expected):
            value = getattr(expected, field.name)
            if value is not None:
                torch.testing.assert_close(
                    getattr(decision, field.name), value, rtol=1e-5, atol=1e-6, msg=field.name
                )
        assert torch.equal(illegal, illegal_server(action, plain.state))
        replaced += int(illegal.sum())
        fast.load_state_dict(plain.state_dict())
        theirs, ours = plain.step(action), fast.step(action)
        torch.testing.assert_close(ours.reward, theirs.reward, rtol=1e-4, atol=1e-6)
        assert torch.equal(ours.illegal, theirs.illegal)
        assert torch.equal(ours.truncated, theirs.truncated)
        for group in ("device", "pair", "server"):
            torch.testing.assert_close(
                getattr(ours.observation, group), getattr(theirs.observation, group),
                atol=5e-5, rtol=1e-4, msg=group,
            )  # fmt: skip
    assert replaced > 0


def test_missing_head_is_refused_by_name(recipe: EnvRecipe) -> None:
    env = replace(recipe, control=ALL_LEARNED, native=True).batched(6, seed=0)
    env.reset()
    action = replace(any_action(torch.Generator()), power=None)
    with pytest.raises(UserError, match="give exactly the learned heads"):
        env.step(action)


def test_only_full_control_is_compiled() -> None:
    assert knows_control(ALL_LEARNED)
    assert not knows_control(ControlConfig())
    assert not knows_control(ALL_LEARNED.model_copy(update={"may_move": False}))
