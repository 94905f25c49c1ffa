"""How long forward passes of a pair take on this machine: measured, fitted, written as a profile.

Shape legend: S measured sizes of a pass.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import nnls

from uara.decoding.kv import Feed, KeyValueCache, SequenceModel, TransformerModel
from uara.decoding.models import ModelPair
from uara.errors import UserError
from uara.serving.machine import BATTERY_WH, ForwardTime
from uara.serving.profiles import FORMAT_VERSION, PACKAGE_POWER_W

NAME = "measured"
Clock = Callable[[], float]
Count = Annotated[int, Field(gt=0)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]


class MachineTimesConfig(BaseModel):
    """Which passes are timed, and what a clock cannot tell of a machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: Counts = Field((1, 2, 4, 8), description="sequences of a pass")
    new_tokens: Counts = Field((1, 4, 9), description="tokens fed into each sequence")
    context_tokens: Counts = Field((16, 128, 384), description="cached tokens of each sequence")
    repeats: int = Field(5, gt=0, description="timings of each size, of which the least counts")
    draft_context_tokens: int = Field(
        256, ge=0, description="context at which the time of a draft token is taken"
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="memory for the target and its KV caches; null: this machine's physical memory",
    )
    server_power_w: float = Field(65.0, ge=0, description="drawn while serving; not measured")
    draft_power_w: float = Field(
        PACKAGE_POWER_W, ge=0, description="drawn while drafting; not measured"
    )
    battery_wh: float = Field(BATTERY_WH, gt=0, description="battery of the phone; not measured")


@dataclass(frozen=True)
class PassSize:
    """What a timed forward pass carries; all sequences alike."""

    rows: int
    new_tokens: int  # of each sequence
    context_tokens: int  # of each sequence


@dataclass(frozen=True)
class ForwardFit:
    """A linear law of the time of a pass and how far the measurements lie from it."""

    forward: ForwardTime
    residual_s: float  # root mean square
    relative_residual: float  # root mean square of measured over fitted, minus 1
    sizes: int

    def as_json(self) -> dict[str, float | int]:
        """Return coefficients and residuals as one row."""
        return {
            **asdict(self.forward),
            "residual_s": self.residual_s,
            "relative_residual": self.relative_residual,
            "sizes": self.sizes,
        }


def pass_sizes(config: MachineTimesConfig, context_tokens: int) -> list[PassSize]:
    """List all combinations of rows, new tokens and context.

    Args:
        config: sizes.
        context_tokens: longest text that the models take.

    Raises:
        UserError: if a sequence would be longer than that, or too few sizes are left to tell four
            coefficients apart.
    """
    longest = max(config.new_tokens) + max(config.context_tokens)
    if longest > context_tokens:
        raise UserError(
            f"new_tokens and context_tokens add up to {longest} tokens, allowed: {context_tokens}, "
            "the context of the pair; shorten one of them"
        )
    sizes = [
        PassSize(rows, new, context)
        for rows in config.rows
        for new in config.new_tokens
        for context in config.context_tokens
    ]
    if np.linalg.matrix_rank(_columns(sizes)) < 4:
        raise UserError(
            f"{len(sizes)} sizes of passes do not tell four coefficients apart; give two values or "
            "more of each of rows, new_tokens and context_tokens"
        )
    return sizes


def _columns(sizes: Sequence[PassSize]) -> NDArray[np.float64]:
    """Write each size as what its pass holds in all: 1, rows, new tokens, cached tokens, (S, 4)."""
    return np.array(
        [[1, s.rows, s.rows * s.new_tokens, s.rows * s.context_tokens] for s in sizes], np.float64
    )


def fit_forward(sizes: Sequence[PassSize], seconds: Sequence[float]) -> ForwardFit:
    """Fit a non-negative linear law by least squares of relative errors.

    Absolute errors would leave the short passes, those of a single sequence, to chance.

    Args:
        sizes: S.
        seconds: S.
    """
    columns, measured = _columns(sizes), np.array(seconds)
    relative = columns / measured[:, None]
    # Columns of like size, so that the solver's tolerance means the same for all.
    scale = np.linalg.norm(relative, axis=0)
    solution, _ = nnls(relative / scale, np.ones(len(sizes)))
    solution = solution / scale
    fitted = columns @ solution
    return ForwardFit(
        forward=ForwardTime(*map(float, solution)),
        residual_s=float(np.sqrt(np.mean((measured - fitted) ** 2))),
        relative_residual=float(np.sqrt(np.mean((measured / fitted - 1) ** 2))),
        sizes=len(sizes),
    )


def time_forwards(
    model: SequenceModel, sizes: Sequence[PassSize], repeats: int, clock: Clock
) -> list[float]:
    """Time forward passes, S seconds; the least of several, since other work only adds.

    Args:
        model: whose passes are timed.
        sizes: S.
        repeats: timings of each.
        clock: seconds.
    """
    return [_time_forward(model, size, repeats, clock) for size in sizes]


def _time_forward(model: SequenceModel, size: PassSize, repeats: int, clock: Clock) -> float:
    context = [token % model.vocab_size for token in range(size.context_tokens)]
    new = [token % model.vocab_size for token in range(size.new_tokens)]
    caches = [model.new_cache() for _ in range(size.rows)]
    last = len(context) - 1  # one row of logits is enough
    model.forward([Feed(cache, context, last) for cache in caches])
    feeds = [Feed(cache, new) for cache in caches]
    least_s = float("inf")
    for repeat in range(repeats + 1):
        start_s = clock()
        model.forward(feeds)
        if repeat > 0:  # the first one warms up
            least_s = min(least_s, clock() - start_s)
        for cache in caches:
            cache.roll_back(len(context))
    return least_s


def _kv_bytes_per_token(model: TransformerModel) -> int:
    """Measure the KV cache of one token."""
    cache = model.new_cache()
    assert isinstance(cache, KeyValueCache), "a transformer has key-value caches"
    model.forward([Feed(cache, [0])])
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in layer)


def calibrate_machine(
    pair: ModelPair, config: MachineTimesConfig, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """Measure this machine as a server of the target and as a phone with the draft.

    Args:
        pair: both models.
        config: sizes of passes, and powers and memory.
        clock: seconds.

    Returns:
        the content of a profile file (see `uara.serving.profiles`) and, under `fits`, both laws
        with their residuals.

    Raises:
        UserError: if the sizes do not fit the pair, or the memory does not hold the target.
    """
    sizes = pass_sizes(config, pair.context_tokens)
    target = TransformerModel(pair.target, pair.vocab_size)
    draft = TransformerModel(pair.draft, pair.vocab_size)
    of_target, of_draft = (
        fit_forward(sizes, time_forwards(model, sizes, config.repeats, clock))
        for model in (target, draft)
    )
    return make_profile(pair, config, of_target, of_draft, _kv_bytes_per_token(target))


def make_profile(
    pair: ModelPair,
    config: MachineTimesConfig,
    of_target: ForwardFit,
    of_draft: ForwardFit,
    kv_bytes: int,
) -> dict[str, Any]:
    """Write two fits as a profile file of one rack and one phone, both named `measured`.

    Raises:
        UserError: if the memory does not hold the target.
    """
    weights = sum(part.numel() * part.element_size() for part in pair.target.parameters())
    memory = config.memory_gb * 1e9 if config.memory_gb is not None else _physical_bytes()
    if memory < weights + kv_bytes:
        raise UserError(
            f"memory_gb is {memory / 1e9:.3g} but the target needs {weights / 1e9:.3g} GB and room "
            "for KV caches; give more"
        )
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    source = f"`uara pair calibrate` with {pair.name} on {machine}; powers are given, not measured"
    return {
        "format_version": FORMAT_VERSION,
        "racks": {
            NAME: {
                **asdict(of_target.forward),
                "kv_capacity_tokens": int((memory - weights) / kv_bytes),
                "kv_bytes_per_token": kv_bytes,
                "power_w": config.server_power_w,
                "source": source,
            }
        },
        "phones": {
            NAME: {
                "draft_time_s": of_draft.forward(1, 1, config.draft_context_tokens),
                "draft_power_w": config.draft_power_w,
                "battery_wh": config.battery_wh,
                "draft_flop_per_token": 2 * sum(p.numel() for p in pair.draft.parameters()),
                "source": source,
            }
        },
        "fits": {"target": of_target.as_json(), "draft": of_draft.as_json()},
    }


def _physical_bytes() -> float:
    if not hasattr(os, "sysconf"):
        raise UserError("this system does not tell its memory; give memory_gb")
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file unasked.

    Raises:
        UserError: if the file exists and may not be overwritten.
    """
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists; allowed: a new file: give another --machine, or --overwrite"
        )
