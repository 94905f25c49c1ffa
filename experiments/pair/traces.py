"""Acceptance along texts that the target writes, replayed for any draft length, and its models.

Shape legend: L tokens of a text. Position 0 is drawn when the prompt is read; verified tokens begin
at position 1. Given the text, a tested token x passes with probability min(1, q(x) / p(x))
under maximal coupling, independently of the others: P(x comes out and was accepted) = min(p, q).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import betaln
from scipy.stats import beta
from torch import Tensor

from experiments.pair.acceptance import PHOTO_STANDS_FOR, sample_continuations
from experiments.pair.corpus import TEXT_TASKS
from uara.decoding.models import ModelPair, Prompt
from uara.errors import UserError
from uara.world.acceptance import TRACE_FORMAT_VERSION

Floats = NDArray[np.float64]
MAX_DRAFT_LENGTH = 8
_BATCH = 16
_LEVELS = 32


@dataclass(frozen=True)
class Trace:
    """What drafts would have met along one text.

    Attributes:
        prompt: name of the prompt.
        task: task type.
        rate: (L,) chance that a drafted token is accepted, given that this token comes out.
    """

    prompt: str
    task: str
    rate: Floats


@torch.no_grad()
def measure_traces(
    pair: ModelPair,
    prompts: Sequence[Prompt],
    temperature: float,
    *,
    max_tokens: int = 64,
    seed: int = 0,
) -> list[Trace]:
    """Let the target write, and let the draft follow: two passes, no speculation.

    Args:
        pair: draft and target.
        prompts: of any tasks.
        temperature: of both; 0 takes the likeliest tokens.
        max_tokens: of each text; no end token stops it before.
        seed: of the texts.

    Raises:
        UserError: if a prompt and its text do not fit the pair's context.
    """
    generator = torch.Generator().manual_seed(seed)
    traces: list[Trace] = []
    encoded = [pair.encode(prompt.text) for prompt in prompts]
    if max(map(len, encoded)) + max_tokens > pair.context_tokens:
        raise UserError(
            f"a prompt of {max(map(len, encoded))} tokens and {max_tokens} more exceed the pair's "
            f"context of {pair.context_tokens}; shorten the prompts or max_tokens"
        )
    for start in range(0, len(prompts), _BATCH):
        part, batch = prompts[start : start + _BATCH], encoded[start : start + _BATCH]
        texts = sample_continuations(
            pair.target,
            batch,
            max_tokens=max_tokens,
            temperature=temperature,
            end_token_id=None,
            generator=generator,
        )
        for prompt, head, text in zip(part, batch, texts, strict=True):
            rate = follow(pair, head, text, temperature)
            traces.append(Trace(prompt.id, prompt.task, rate))
    return traces


@torch.no_grad()
def follow(
    pair: ModelPair, prompt: Sequence[int], text: Sequence[int], temperature: float
) -> Floats:
    """Compute the chance of acceptance at each token of a text, (L,)."""
    ids = torch.tensor([[*prompt, *text]])
    here = slice(len(prompt) - 1, len(prompt) + len(text) - 1)
    own = torch.tensor(text)[:, None]
    target, draft = (
        model(input_ids=ids, use_cache=False).logits[0, here, : pair.vocab_size].double()
        for model in (pair.target, pair.draft)
    )
    if temperature == 0:
        return np.asarray((draft.argmax(-1) == own[:, 0]).double().numpy(), np.float64)

    def law_of(logits: Tensor) -> Tensor:
        return torch.softmax(logits / temperature, -1).gather(-1, own)[:, 0]

    ratio = law_of(draft) / law_of(target).clamp_min(1e-300)
    return np.asarray(ratio.clamp_max(1.0).numpy(), np.float64)


def verifications(rate: Floats, draft_length: int) -> float:
    """Compute how many verifications a text takes on average, exactly.

    From position s a round drafts g = min(gamma, L - s - 1) tokens and commits k + 1, with k
    accepted: a renewal along the text, solved from its end.
    """
    length = len(rate)
    expected = np.zeros(length + 1)
    for start in range(length - 1, 0, -1):
        drafts = min(draft_length, length - start - 1)
        passed, total = 1.0, 1.0
        for k in range(drafts):
            chance = rate[start + k]
            total += passed * (1 - chance) * expected[start + k + 1]
            passed *= chance
        expected[start] = total + passed * expected[start + drafts + 1]
    return float(expected[1])


def block_efficiency(traces: Sequence[Trace], draft_length: int) -> float:
    """Compute tau, committed tokens per verification, by replay of traces."""
    rounds = sum(verifications(trace.rate, draft_length) for trace in traces)
    return sum(len(trace.rate) - 1 for trace in traces) / rounds


# Models of acceptance: each gives texts like those that it was fitted to


@dataclass(frozen=True)
class Constant:
    """Every token passes with one probability."""

    alpha: float

    @classmethod
    def fit(cls, traces: Sequence[Trace]) -> Constant:
        """Pool all tokens."""
        return cls(float(np.concatenate([trace.rate[1:] for trace in traces]).mean()))

    def tau(self, draft_length: int, length: int) -> float:
        """Compute tau for texts of `length` tokens."""
        return (length - 1) / verifications(np.full(length, self.alpha), draft_length)


@dataclass(frozen=True)
class BetaGeometric:
    """Each text has a probability of its own, drawn from a beta law."""

    a: float
    b: float

    @classmethod
    def fit(cls, traces: Sequence[Trace]) -> BetaGeometric:
        """Maximise the likelihood of expected accepted counts per text."""
        passed = np.array([trace.rate[1:].sum() for trace in traces])
        failed = np.array([len(trace.rate) - 1 for trace in traces]) - passed

        def loss(logs: Floats) -> float:
            a, b = np.exp(logs)
            return -float((betaln(a + passed, b + failed) - betaln(a, b)).sum())

        found = minimize(loss, np.log([7.0, 3.0]), method="Nelder-Mead")
        a, b = np.exp(found.x)
        return cls(float(a), float(b))

    def tau(self, draft_length: int, length: int) -> float:
        """Compute tau for texts of `length` tokens, over quantiles of the law."""
        levels = beta.ppf((np.arange(_LEVELS) + 0.5) / _LEVELS, self.a, self.b)
        rounds = [verifications(np.full(length, level), draft_length) for level in levels]
        return (length - 1) / float(np.mean(rounds))


@dataclass(frozen=True)
class TwoState:
    """Easy and hard stretches: whether a token passes depends on whether the one before would.

    Attributes:
        after_pass: probability of passing behind a token that would pass.
        after_fail: and behind one that would not.
    """

    after_pass: float
    after_fail: float

    @classmethod
    def fit(cls, traces: Sequence[Trace]) -> TwoState:
        """Take the mean rates behind either, weighted by their chances."""
        before = np.concatenate([trace.rate[:-1] for trace in traces])
        after = np.concatenate([trace.rate[1:] for trace in traces])
        return cls(
            float((before * after).sum() / max(before.sum(), 1e-12)),
            float(((1 - before) * after).sum() / max((1 - before).sum(), 1e-12)),
        )

    def tau(self, draft_length: int, length: int) -> float:
        """Compute tau for texts of `length` tokens by dynamic programming over both states."""
        chance = np.array([self.after_fail, self.after_pass])
        share = self.after_fail / max(1 - self.after_pass + self.after_fail, 1e-12)
        step = np.array([[1 - c, c] for c in chance])
        expected = np.zeros((length + 1, 2))
        for start in range(length - 1, 0, -1):
            drafts = min(draft_length, length - start - 1)
            for state in (0, 1):
                passed, total, last = 1.0, 1.0, state
                for k in range(drafts):
                    total += passed * step[last, 0] * expected[start + k + 1, 0]
                    passed *= step[last, 1]
                    last = 1
                # The token behind the drafts is not tested, but has a state.
                behind = step[last] @ expected[start + drafts + 1]
                expected[start, state] = total + passed * behind
        return (length - 1) / float(expected[1] @ np.array([1 - share, share]))


@dataclass(frozen=True)
class Replay:
    """The traces themselves."""

    traces: tuple[Trace, ...]

    @classmethod
    def fit(cls, traces: Sequence[Trace]) -> Replay:
        """Keep them."""
        return cls(tuple(traces))

    def tau(self, draft_length: int, length: int) -> float:
        """Compute tau for the beginnings of the traces."""
        cut = [Trace(trace.prompt, trace.task, trace.rate[:length]) for trace in self.traces]
        return block_efficiency(cut, draft_length)


Model = Constant | BetaGeometric | TwoState | Replay
MODELS: dict[str, Callable[[Sequence[Trace]], Model]] = {
    "constant": Constant.fit,
    "beta_geometric": BetaGeometric.fit,
    "two_state": TwoState.fit,
    "replay": Replay.fit,
}


def bootstrap_mean(
    traces: Sequence[Trace], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Compute accepted over tested tokens with a 95 % interval that resamples whole prompts."""
    passed = np.array([trace.rate[1:].sum() for trace in traces])
    tested = np.array([len(trace.rate) - 1 for trace in traces])
    chosen = np.random.default_rng(seed).integers(0, len(traces), (resamples, len(traces)))
    ratios = passed[chosen].sum(1) / tested[chosen].sum(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(passed.sum() / tested.sum()), float(low), float(high)


def hazard_by_position(traces: Sequence[Trace]) -> list[float]:
    """Compute the chance of acceptance at each position of a draft, given all before it passed.

    Drafts are begun at every position of the texts with equal weight.
    """
    reached, passed = np.zeros(MAX_DRAFT_LENGTH), np.zeros(MAX_DRAFT_LENGTH)
    for trace in traces:
        for start in range(1, len(trace.rate) - MAX_DRAFT_LENGTH + 1):
            survival = 1.0
            for k in range(MAX_DRAFT_LENGTH):
                reached[k] += survival
                survival *= trace.rate[start + k]
                passed[k] += survival
    return [float(p / r) if r else float("nan") for p, r in zip(passed, reached, strict=True)]


def lag_one(traces: Sequence[Trace]) -> float:
    """Compute the correlation of neighbouring rates, pooled over texts."""
    before = np.concatenate([trace.rate[1:-1] for trace in traces])
    after = np.concatenate([trace.rate[2:] for trace in traces])
    return float(np.corrcoef(before, after)[0, 1])


def split(traces: Sequence[Trace]) -> tuple[list[Trace], list[Trace]]:
    """Split traces by prompt into halves for fitting and for holding out, in turn."""
    return list(traces[::2]), list(traces[1::2])


def summary(traces: Sequence[Trace]) -> dict[str, Any]:
    """Compare the models per task: fitted on one half of the prompts, judged on the other.

    Returns:
        per task: acceptance with its interval, hazards by position, correlation of neighbours, and
        for each model the error of tau(gamma) on held-out prompts, relative, gamma from 1.
    """
    found: dict[str, Any] = {}
    for task in sorted({trace.task for trace in traces}):
        own = [trace for trace in traces if trace.task == task]
        fitted, held_out = split(own)
        length = min(len(trace.rate) for trace in own)
        truth = Replay.fit(held_out)
        mean, low, high = bootstrap_mean(own)
        found[task] = {
            "prompts": len(own),
            "acceptance": mean,
            "acceptance_95": [low, high],
            "hazard": hazard_by_position(own),
            "lag_one": lag_one(own),
            "tau": [Replay.fit(own).tau(g, length) for g in range(1, MAX_DRAFT_LENGTH + 1)],
            "held_out_tau_error": {
                name: [
                    model.tau(g, length) / truth.tau(g, length) - 1
                    for g in range(1, MAX_DRAFT_LENGTH + 1)
                ]
                for name, fit in MODELS.items()
                for model in [fit(fitted)]
            },
        }
    return found


def trace_file(pair: str, traces: Sequence[Trace], temperature: float) -> dict[str, Any]:
    """Make the content of a trace file, which worlds read (`requests.acceptance.kind: trace`)."""
    by_task: dict[str, list[list[float]]] = {
        task: [trace.rate.round(4).tolist() for trace in traces if trace.task == task]
        for task in TEXT_TASKS
    }
    by_task["photo"] = by_task[PHOTO_STANDS_FOR]
    return {
        "format_version": TRACE_FORMAT_VERSION,
        "block_tokens": 1,
        "pair": pair,
        "temperature": temperature,
        "rule": "greedy" if temperature == 0 else "maxc",
        "traces": {task: rows for task, rows in by_task.items() if rows},
    }
