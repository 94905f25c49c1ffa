"""Times of this machine: a known law comes back from its passes, and the file is a profile."""

# ruff: noqa: D102 -- the names of test doubles say what they do

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from experiments.pair.machine import (
    MachineTimesConfig,
    fit_forward,
    make_profile,
    pass_sizes,
    time_forwards,
)
from uara.decoding.kv import Feed, Floats
from uara.decoding.models import ModelPair
from uara.errors import UserError
from uara.serving.hardware import get_phone, get_rack

Uara = Callable[..., tuple[int, str, str]]
QUICK = MachineTimesConfig(rows=(1, 3), new_tokens=(1, 5), context_tokens=(10, 60), repeats=3)
LAW = (4e-3, 5e-4, 2e-4, 3e-6)  # seconds: fixed, per row, per new token, per cached token


@dataclass
class Length:
    """A cache that is its length."""

    length: int = 0

    def roll_back(self, length: int) -> None:
        self.length = length


@dataclass
class LawfulModel:
    """Passes that take as long as a law says, and longer now and then."""

    law: Sequence[float]
    now_s: float = 0.0
    passes: int = 0
    vocab_size: int = 7
    sizes: set[tuple[int, int, int]] = field(default_factory=set)

    def new_cache(self) -> Length:
        return Length()

    def forward(self, feeds: Sequence[Feed]) -> list[Floats]:
        rows, new = len(feeds), sum(len(feed.tokens) for feed in feeds)
        cached = sum(feed.cache.length for feed in feeds)
        fixed_s, row_s, token_s, context_s = self.law
        self.now_s += fixed_s + rows * row_s + new * token_s + cached * context_s
        self.now_s += 0.05 * (self.passes % 3 == 0)  # somebody else's work
        self.passes += 1
        self.sizes.add((rows, new, cached))
        for feed in feeds:
            cast(Length, feed.cache).length += len(feed.tokens)
        return []


@pytest.mark.parametrize("law", [LAW, (1e-3, 0.0, 4e-5, 0.0), (0.0, 1e-3, 2e-3, 1e-7)])
def test_the_law_that_passes_follow_comes_back(law: Sequence[float]) -> None:
    model = LawfulModel(law)
    sizes = pass_sizes(QUICK, 65)
    seconds = time_forwards(model, sizes, QUICK.repeats, lambda: model.now_s)
    fit = fit_forward(sizes, seconds)
    found = (
        fit.forward.fixed_s,
        fit.forward.per_row_s,
        fit.forward.per_token_s,
        fit.forward.per_context_s,
    )
    assert found == pytest.approx(law, rel=1e-6, abs=1e-11)
    assert fit.relative_residual < 1e-8
    assert (fit.sizes, len(sizes)) == (8, 8)
    # Contexts are read before the clock starts and rolled back behind each pass.
    assert (3, 15, 180) in model.sizes
    assert (3, 15, 195) not in model.sizes


def test_the_residual_is_what_no_law_explains() -> None:
    sizes = pass_sizes(QUICK, 65)
    seconds = np.full(len(sizes), 0.01)
    # Off by 10 % in a pattern that is no sum of rows, tokens and context.
    sign = np.array([1, -1, -1, 1, -1, 1, 1, -1])
    fit = fit_forward(sizes, list(seconds * (1 + 0.1 * sign)))
    assert fit.relative_residual == pytest.approx(0.1, rel=0.1)
    assert fit.residual_s == pytest.approx(1e-3, rel=0.1)


def test_no_coefficient_is_negative() -> None:
    sizes = pass_sizes(QUICK, 65)
    seconds = [0.01 - 1e-5 * size.context_tokens for size in sizes]
    forward = fit_forward(sizes, seconds).forward
    assert forward.per_context_s == 0
    assert min(forward.fixed_s, forward.per_row_s, forward.per_token_s) >= 0


@pytest.fixture
def pair() -> ModelPair:
    """Models of which nothing but the weights is looked at."""
    draft, target = torch.nn.Linear(10, 10), torch.nn.Linear(100, 100)
    return ModelPair(cast(Any, draft), cast(Any, target), cast(Any, None), "linear")


def test_the_file_is_a_rack_and_a_phone(pair: ModelPair, tmp_path: Path) -> None:
    sizes = pass_sizes(QUICK, 65)
    fixed_s, row_s, token_s, context_s = LAW
    seconds = [
        fixed_s + s.rows * (row_s + s.new_tokens * token_s + s.context_tokens * context_s)
        for s in sizes
    ]
    fit = fit_forward(sizes, seconds)
    config = MachineTimesConfig(memory_gb=1.0, draft_context_tokens=100, server_power_w=12.0)
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(make_profile(pair, config, fit, fit, 2000)))
    rack, phone = get_rack(f"{path}:measured"), get_phone(f"{path}:measured")
    assert rack.forward(2, 10, 1000) == pytest.approx(4e-3 + 1e-3 + 2e-3 + 3e-3)
    assert rack.kv_capacity_tokens == int((1e9 - 4 * 10_100) / 2000)
    assert (rack.kv_bytes_per_token, rack.power_w) == (2000, 12)
    assert phone.draft_time_s == pytest.approx(4e-3 + 5e-4 + 2e-4 + 3e-4)
    assert phone.draft_flop_per_token == 2 * 110
    small = config.model_copy(update={"memory_gb": 1e-5})
    with pytest.raises(UserError, match=r"memory_gb is 1e-05 but the target needs 4\.04e-05 GB"):
        make_profile(pair, small, fit, fit, 2000)


def test_this_machine_is_measured_and_no_file_is_replaced_unasked(
    uara: Uara, project: Path
) -> None:
    words = ("pair", "calibrate", "--times-only", "rows=[1,2]", "new_tokens=[1,2]",
             "context_tokens=[4,64]", "repeats=1")  # fmt: skip
    status, out, err = uara(*words)
    assert status == 0, err
    assert "machine.json" in out
    written = (project / "machine.json").read_text()
    fits = json.loads(written)["fits"]
    assert set(fits) == {"target", "draft"}
    assert all(fit["sizes"] == 8 for fit in fits.values())
    # Two tensors a layer, 4 bytes a number: the shape of the shipped target.
    assert get_rack(f"{project}/machine.json:measured").kv_bytes_per_token % 8 == 0
    assert get_phone(f"{project}/machine.json:measured").draft_time_s > 0
    status, _, err = uara(*words)
    assert status == 2
    assert "machine.json exists" in err
    assert (project / "machine.json").read_text() == written
    assert uara(*words, "--overwrite", "--machine", project / "machine.json")[0] == 0
