"""FLOPs, seconds and bytes against sums over single passes."""

from __future__ import annotations

import numpy as np
import pytest

from uara.control.plan.config import RTX3080, HetEdgeConfig
from uara.control.plan.model_cost import (
    MODELS,
    PassTime,
    ServingCost,
    StageTimes,
    chunk_flop,
    rounds_needed,
    tokens_per_round,
)
from uara.serving.profiles import llama_weight_bytes

LAYERS, H1, H2 = 22, 2048, 5632  # of the 1.1B model
COST = HetEdgeConfig(output_tokens_max=30).cost


def step_flop(cached: float) -> float:
    return LAYERS * (8 * H1**2 + 4 * (cached + 1) * H1 + 4 * H1 * H2)


def test_a_prefill_and_a_step_are_the_papers_formulas() -> None:
    shape = MODELS["1.1b"]
    prefill = LAYERS * (8 * 70 * H1**2 + 4 * 70**2 * H1 + 4 * 70 * H1 * H2)
    assert float(chunk_flop(shape, 70, 0)) == pytest.approx(prefill, rel=1e-14)
    assert float(chunk_flop(shape, 1, 123)) == pytest.approx(step_flop(123), rel=1e-14)


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_those_of_the_machines_of_the_paper(model: str) -> None:
    assert MODELS[model].weight_bytes == llama_weight_bytes(model)


def test_a_round_brings_the_bonus_token_and_each_draft_that_survives() -> None:
    assert float(tokens_per_round(0.8, 3)) == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    assert float(tokens_per_round(1.0, 3)) == 4


def test_rounds_are_rounded_up_but_not_beyond() -> None:
    assert rounds_needed(8, 1.0, np.array([1, 2, 3, 7])).tolist() == [4, 3, 2, 1]
    assert float(rounds_needed(2048, 0.8, 4)) == 610


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_draft_stage_is_the_sum_of_its_passes(number: int) -> None:
    tasks, prompt, length = 5, 70, 4
    c1, c2 = COST.draft_pass.s_per_flop, COST.draft_pass.fixed_s
    grown = prompt + (number - 1) * (1 + 0.8 + 0.8**2 + 0.8**3 + 0.8**4)
    flops = [step_flop(grown + i - 1) for i in range(1, length + 1)]
    if number == 1:
        flops[0] = LAYERS * (8 * prompt * H1**2 + 4 * prompt**2 * H1 + 4 * prompt * H1 * H2)
    expected = sum(c1 * flop * tasks + c2 for flop in flops)
    stage = COST.draft_stage(tasks, prompt, length)
    assert float(stage.at(number)) == pytest.approx(expected, rel=1e-12)


def test_a_verify_stage_checks_all_drafts_in_one_pass() -> None:
    stage = COST.verify_stage(5, 70, 2)
    law, shape = COST.verify_pass, COST.verify
    step = 1 + 0.8 + 0.64
    for number, new, cached in ((1, 72, 0.0), (2, 3, 70 + step), (4, 3, 70 + 3 * step)):
        flop = 32 * (8 * new * 4096**2 + 4 * new * (cached + new) * 4096 + 4 * new * 4096 * 11008)
        expected = law.s_per_flop * flop * 5 + law.fixed_s
        assert float(stage.at(number)) == pytest.approx(expected, rel=1e-12), number
    assert shape == MODELS["7b"]


def test_the_total_of_a_stage_is_the_sum_of_its_rounds() -> None:
    stage = StageTimes(np.array(5.0), np.array(1.0), np.array(0.25))
    assert stage.at(np.arange(1, 5)).tolist() == [5.0, 1.0, 1.25, 1.5]
    assert [float(stage.total(n)) for n in (1, 2, 4)] == [5.0, 6.0, 8.75]


def test_plain_decoding_is_a_prefill_and_a_pass_per_further_token() -> None:
    law, shape = COST.verify_pass, COST.verify
    flops = [chunk_flop(shape, 70, 0)] + [chunk_flop(shape, 1, 70 + n) for n in range(29)]
    expected = sum(float(law(6, flop)) for flop in flops)
    assert float(COST.plain_decoding_s(6, 70)) == pytest.approx(expected, rel=1e-12)


def test_the_cache_has_room_for_the_whole_answer() -> None:
    wide = HetEdgeConfig().cost
    per_task = float(wide.batch_bytes(1, 512))
    assert per_task == 4 * LAYERS * H1 * (512 + 2048)
    assert per_task == pytest.approx(461e6, rel=1e-3)
    assert float(wide.batch_bytes(30, 512)) == 30 * per_task


def test_a_pass_reads_the_weights_and_starts_its_kernels_unless_told_otherwise() -> None:
    law = RTX3080.pass_time("68m")
    assert law.fixed_s == pytest.approx(llama_weight_bytes("68m") / 760e9 + 2 * 50e-6)
    assert law.s_per_flop == pytest.approx(1 / (0.4 * 29.77e12))
    told = RTX3080.model_copy(update={"s_per_flop": 1e-12, "fixed_s": 0.01, "fixed_scale": 0.5})
    assert told.pass_time("68m") == PassTime(1e-12, 0.005)


def test_costs_of_the_config_are_those_of_its_models() -> None:
    config = HetEdgeConfig(draft="68m", verify="13b", acceptance=0.6)
    assert isinstance(config.cost, ServingCost)
    assert (config.cost.draft, config.cost.verify) == (MODELS["68m"], MODELS["13b"])
    assert config.cost.acceptance == 0.6
