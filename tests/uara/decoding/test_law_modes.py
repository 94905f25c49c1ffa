"""The joint law of three tokens through the kernel, in every serving mode and with every codec.

`test_law` and `test_parallel_kernel` have the plain rules; here are the codecs that round, matched
samples of the parallel modes, and the modes in which one end decodes alone.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.uara.decoding.test_law import DEVICES, TEXT, TOKENS, VOCAB, p_value, target_law
from uara.decoding.contract import Contract
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.nodes import Jitter
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.rules import Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile
from uara.serving.hardware import ForwardTime

SAMPLING = Sampling(temperature=0.8)
CONTRACTS = {
    "onehot": Contract(RuleCode.IDS, SAMPLING, 2, 1),
    "gumbel": Contract(RuleCode.GUMBEL, SAMPLING, 2, 1),
    "full": Contract(RuleCode.FULL, SAMPLING, 2, 1),
    "id_prob, 16 bits": Contract(RuleCode.ID_PROB, SAMPLING, 2, 1, 16),
    "id_prob, 8 bits": Contract(RuleCode.ID_PROB, SAMPLING, 2, 1, 8),
}
ROUNDED = [(mode, f"id_prob, {bits} bits") for mode in ("sd", "psd", "async") for bits in (8, 16)]
ALONE = [("server_ar", "full"), ("server_ar", "gumbel"), ("device_only", "full")]
MATCHED = [("psd", "onehot"), ("async", "onehot")]


def law_of(mode: str, codec: str, count: int, table_model: Any, planner: Any, fixed: Any) -> float:
    """Draw `count` answers with seeds of this configuration; p of the law that they should have."""
    is_ar = mode == "server_ar"
    settings = KernelSettings(
        0.4,
        CONTRACTS[codec],
        lambda sid: derive_seed("law", mode, codec, sid),
        mode="sd" if is_ar else mode,
        window=2,
        jitter=Jitter(0.3, 0.3, seed=derive_seed("times", mode, codec) >> 32),
        drain_slots=10**6,
    )
    plans = planner(num_servers=2, max_draft_length=4, seed=len(mode) * 31 + len(codec))
    kernel = VirtualKernel(
        table_model(VOCAB, 1),
        table_model(VOCAB, 0),
        [DeviceProfile(0.02 + 0.003 * i) for i in range(DEVICES)],
        [ServerProfile(ForwardTime(0.03, 0.002, 0.001, 0.0), 9999, 0.02)] * 2,
        [Request(sid, sid % DEVICES, 0.0, TEXT, 2, TOKENS + 2) for sid in range(count)],
        fixed.of(draft_length=0, devices=DEVICES) if is_ar else plans,
        settings,
    )
    records = kernel.run().requests
    answers = [records[sid].tokens[:TOKENS] for sid in range(count)]
    tested = sum(record.tested for record in records.values())
    assert (tested == 0) is ((mode, codec) in ALONE)
    # A device alone gives its draft's law, which is another table.
    model = (lambda size, seed: table_model(size, 1)) if mode == "device_only" else table_model
    return p_value(answers, target_law(model))


@pytest.mark.parametrize(("mode", "codec"), [ALONE[1], ALONE[2], ("async", "onehot")])
def test_three_tokens_have_their_joint_law(
    mode: str, codec: str, table_model: Any, random_plans: Any, fixed_plan: Any
) -> None:
    assert law_of(mode, codec, 400, table_model, random_plans, fixed_plan) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "codec"), [*ROUNDED, *MATCHED, *ALONE])
def test_three_tokens_have_their_joint_law_in_many_runs(
    mode: str, codec: str, table_model: Any, random_plans: Any, fixed_plan: Any
) -> None:
    assert law_of(mode, codec, 25_000, table_model, random_plans, fixed_plan) > 1e-4


@pytest.mark.parametrize("mode", ["server_ar", "device_only"])
def test_the_table_tells_the_two_models_apart(
    mode: str, table_model: Any, random_plans: Any, fixed_plan: Any
) -> None:
    # Mutant: each end decodes with the other's model.
    def swapped(size: int, seed: int) -> Any:
        return table_model(size, 1 - seed)

    found = law_of(mode, "full", 300, table_model, random_plans, fixed_plan)
    wrong = p_value_of_other(mode, table_model, random_plans, fixed_plan, swapped)
    assert wrong < 1e-6 < found


def p_value_of_other(
    mode: str, table_model: Any, random_plans: Any, fixed_plan: Any, swapped: Any
) -> float:
    """Draw with the models swapped, and test against the law of the ends as they should be."""
    calls = {"left": 2}  # the kernel's two models come first, the law's table after them

    def make(size: int, seed: int) -> Any:
        calls["left"] -= 1
        return swapped(size, seed) if calls["left"] >= 0 else table_model(size, seed)

    return law_of(mode, "full", 300, make, random_plans, fixed_plan)
