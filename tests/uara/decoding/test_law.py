"""The joint law of several tokens through the whole runtime, against enumeration of the target.

A chi-square test that never rejects proves nothing: the same test must reject runs with a defect.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.exactness_trials import fit
from uara.decoding import contract, rules
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Draws, Purpose, derive_seed
from uara.decoding.row import Floats
from uara.decoding.rules import GREEDY, Sampling, truncate
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile
from uara.decoding.verifier import Contract
from uara.serving.hardware import ForwardTime

VOCAB = 4
TOKENS = 3
DEVICES = 10
TEXT = (2, 1)
SAMPLED = (RuleCode.ID_PROB, RuleCode.TOPK, RuleCode.FULL, RuleCode.GUMBEL)


def run_many(code: RuleCode, count: int, table_model: Any, planner: Any) -> list[list[int]]:
    """Let `count` requests draw their first tokens; two more leave room for whole blocks."""
    sampling = Sampling(temperature=0.8)
    settings = KernelSettings(
        0.4, Contract(code, sampling, 2, 1), lambda sid: derive_seed(11, int(code), sid)
    )
    requests = [Request(sid, sid % DEVICES, 0.0, TEXT, 2, TOKENS + 2) for sid in range(count)]
    kernel = VirtualKernel(
        table_model(VOCAB, 1),
        table_model(VOCAB, 0),
        [DeviceProfile(0.02 + 0.003 * i) for i in range(DEVICES)],
        [ServerProfile(ForwardTime(0.03, 0.002, 0.001, 0.0), 9999, 0.01)] * 2,
        requests,
        planner,
        settings,
    )
    recorder = kernel.run()
    refusals = {record.refusal for record in recorder.requests.values()} - {""}
    if refusals:
        raise ValueError(", ".join(sorted(refusals)))
    return [recorder.requests[sid].tokens[:TOKENS] for sid in range(count)]


def target_law(table_model: Any) -> dict[tuple[int, ...], float]:
    """Multiply the target's conditional laws along every sequence."""
    logits = table_model(VOCAB, 0).logits / 0.8
    law = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    result = {}
    for tokens in itertools.product(range(VOCAB), repeat=TOKENS):
        before, last, probability = *TEXT, 1.0
        for token in tokens:
            probability *= law[before, last, token]
            before, last = last, token
        result[tokens] = float(probability)
    return result


def p_value(answers: Sequence[Sequence[int]], law: dict[tuple[int, ...], float]) -> float:
    """Test answers against a law by chi-square, with rare cells merged."""
    return fit([tuple(answer) for answer in answers], law).p_value


@pytest.mark.parametrize("code", SAMPLED)
def test_three_tokens_have_the_targets_joint_law(
    code: RuleCode, table_model: Any, random_plans: Any
) -> None:
    plans = random_plans(num_servers=2, max_draft_length=4)
    answers = run_many(code, 1200, table_model, plans)
    assert p_value(answers, target_law(table_model)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("code", RuleCode)
def test_three_tokens_have_the_targets_joint_law_in_many_runs(
    code: RuleCode, table_model: Any, random_plans: Any
) -> None:
    plans = random_plans(num_servers=2, max_draft_length=4)
    answers = run_many(code, 20_000, table_model, plans)
    assert p_value(answers, target_law(table_model)) > 1e-3


def invert_ratio(target: float, draft: float) -> float:
    return min(1.0, draft / target) if target else 0.0


def residual_of_truncated_target(
    target: Floats, draft: Floats, sent: Floats | None = None
) -> Floats:
    row = np.maximum(truncate(target, 1) - draft, 0)
    return row if row.any() else target


def argmax_pick(
    self: Draws, purpose: Purpose, position: int, weights: Floats, index: int = 0
) -> int:
    if purpose is Purpose.DRAFT:
        return int(np.argmax(weights))
    return PICK(self, purpose, position, weights, index)


def one_uniform_for_all_tests(
    self: Draws, purpose: Purpose, position: int, index: int = 0
) -> float:
    return UNIFORM(self, purpose, 0 if purpose is Purpose.ACCEPT else position, index)


PICK, UNIFORM = Draws.pick, Draws.uniform

MUTANTS: dict[str, tuple[object, str, Callable[..., object], RuleCode]] = {
    "ratio_inverted": (rules, "accept_probability", invert_ratio, RuleCode.FULL),
    "residual_from_truncated_target": (
        rules, "residual", residual_of_truncated_target, RuleCode.FULL,
    ),
    "argmax_draft_tested_soft": (Draws, "pick", argmax_pick, RuleCode.FULL),
    "uniform_reused": (Draws, "uniform", one_uniform_for_all_tests, RuleCode.TOPK),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ratio_inverted", 800),
        ("residual_from_truncated_target", 800),
        ("argmax_draft_tested_soft", 1200),
        pytest.param("uniform_reused", 8000, marks=pytest.mark.slow),
    ],
)
def test_the_same_test_rejects_a_defect(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch, table_model: Any, fixed_plan: Any
) -> None:
    owner, attribute, replacement, code = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, replacement)
    plan = fixed_plan.of(draft_length=4, devices=DEVICES)
    assert p_value(run_many(code, count, table_model, plan), target_law(table_model)) < 1e-6


def test_a_token_outside_the_reported_law_is_refused(
    monkeypatch: pytest.MonkeyPatch, table_model: Any, fixed_plan: Any
) -> None:
    # Mutant draft_untruncated_but_tested_truncated: the draw ignores the cut, the report keeps it.
    monkeypatch.setattr(contract, "truncate", lambda row, top_k: row)
    plan = fixed_plan.of(draft_length=4, devices=DEVICES)
    with pytest.raises(ValueError, match="was drafted with probability 0"):
        run_many(RuleCode.TOPK, 50, table_model, plan)


def test_greedy_runs_have_one_possible_answer(table_model: Any, random_plans: Any) -> None:
    settings = KernelSettings(0.4, Contract(RuleCode.IDS, GREEDY, 2, 1), lambda sid: sid)
    kernel = VirtualKernel(
        table_model(VOCAB, 1),
        table_model(VOCAB, 0),
        [DeviceProfile(0.02)] * 4,
        [ServerProfile(ForwardTime(0.03, 0.0, 0.0, 0.0), 9999)] * 2,
        [Request(sid, sid % 4, 0.0, TEXT, 2, 12) for sid in range(12)],
        random_plans(num_servers=2, max_draft_length=3),
        settings,
    )
    answers = {tuple(record.tokens) for record in kernel.run().requests.values()}
    before, last, wanted = *TEXT, []
    for _ in range(12):
        before, last = last, int(np.argmax(table_model(VOCAB, 0).logits[before, last]))
        wanted.append(last)
    assert answers == {tuple(wanted)}
