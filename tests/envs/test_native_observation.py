"""Compiled observations: those of torch to rounding, on busy networks, in each mode it knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs import Action, ControlConfig, EnvRecipe, observe, schema
from envs.native_observation import NativeObserver
from uara import native
from uara.errors import UserError
from uara.network import NetworkState
from uara.prediction import Physics, PhysicsConfig


def busy_states(recipe: EnvRecipe) -> list[NetworkState]:
    """States of random play, some with foreign load and servers out of reach."""
    env = replace(recipe, control=ControlConfig(draft_length=3)).batched(6, seed=5)
    env.reset()
    generator = torch.Generator().manual_seed(1)
    states = []
    for slot in range(30):
        env.step(Action(server=torch.randint(3, (6, 5), generator=generator)))
        tag = (torch.arange(3) * (slot % 3)).expand(6, 3).float()
        reachable = torch.rand(6, 5, 3, generator=generator) < 0.6
        reachable[..., slot % 3] = True
        states.append(
            env.state.with_(foreign_rows=tag, foreign_prefill_tokens=100 * tag, reachable=reachable)
        )
    assert any((state.phase == 3).any() for state in states)
    return states


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "server_ar"},
        {"link": {"interference": "reuse1"}},
        {"link": {"interference": "reuse1"}, "mode": "server_ar"},
    ],
    ids=["sd", "server_ar", "reuse1", "reuse1 server_ar"],
)
def test_compiled_code_observes_what_torch_observes(
    recipe: EnvRecipe, options: dict[str, object]
) -> None:
    physics = Physics.of(PhysicsConfig.model_validate(options))
    observer = NativeObserver.of(physics)
    for state in busy_states(recipe):
        ours, theirs = observer(state), observe(state, physics)
        for group in ("device", "pair", "server"):
            torch.testing.assert_close(
                getattr(ours, group), getattr(theirs, group), atol=2e-5, rtol=1e-4, msg=group
            )
        assert torch.equal(ours.mask, theirs.mask)
        assert torch.equal(ours.active, theirs.active)


@pytest.mark.parametrize("interference", ["orthogonal", "reuse1"])
def test_modulation_steps_are_those_of_torch(recipe: EnvRecipe, interference: str) -> None:
    link = {"adaptation": "mcs", "interference": interference}
    physics = Physics.of(PhysicsConfig.model_validate({"link": link}))
    observer = NativeObserver.of(physics)
    off = total = 0
    for state in busy_states(recipe):
        ours, theirs = observer(state).pair, observe(state, physics).pair
        same = torch.isclose(ours, theirs, atol=2e-5, rtol=1e-4)
        off, total = off + int((~same).sum()), total + same.numel()
    # A table has steps: an SINR on the edge of one may fall to either side of it.
    assert off < 2e-3 * total


def test_every_pair_feature_moves(recipe: EnvRecipe) -> None:
    observer = NativeObserver.of(Physics.of(PhysicsConfig()))
    rows = torch.cat([observer(state).pair.flatten(0, 2) for state in busy_states(recipe)])
    assert rows.shape[1] == len(schema().pair)
    assert (rows.std(0) > 0).all()


def test_training_environment_takes_it_by_a_switch(recipe: EnvRecipe) -> None:
    plain, fast = (replace(recipe, native=on).batched(3, seed=2) for on in (False, True))
    torch.testing.assert_close(plain.reset().pair, fast.reset().pair, atol=2e-5, rtol=1e-4)


def test_mode_that_it_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"'device_only'.*leave `native` off"):
        NativeObserver.of(Physics.of(PhysicsConfig(mode="device_only")))


def test_missing_compiler_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "compiler", lambda: None)
    with pytest.raises(UserError, match=r"no C compiler.*install one, or leave `native` off"):
        native.load_library(Path("never-read.c"))


def test_file_that_does_not_compile_is_one_clear_line(tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("int f(void) { return nothing; }\n")
    with pytest.raises(UserError, match=r"could not compile.*nothing") as caught:
        native.load_library(source)
    assert "\n" not in str(caught.value)
