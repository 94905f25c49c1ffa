"""Racks and phones against their data sheets, reckoned anew."""

from __future__ import annotations

import pytest
import torch

from uara.errors import UserError
from uara.serving.hardware import (
    KV_BYTES_PER_TOKEN,
    PHONES,
    RACKS,
    ForwardTime,
    get_phone,
    get_rack,
)

# Data sheets: memory GB/s, dense fp16 TFLOP/s, memory GB and watt of one GPU.
BOARDS = {
    "4xA100-40GB": (1555, 312.0, 40, 400),
    "4xRTX6000Ada": (960, 364.0, 48, 300),
    "4xL40S": (864, 362.0, 48, 350),
    "4xRTXA6000": (768, 155.0, 48, 300),
    "4xA40": (696, 149.7, 48, 300),
}
# A forward pass reads 140 GB of weights; the first is a measurement instead.
FORWARD_MS = {
    "4xA100-40GB": 145.0,
    "4xRTX6000Ada": 145.8,
    "4xL40S": 162.0,
    "4xRTXA6000": 182.3,
    "4xA40": 201.1,
}
# 64-bit LPDDR: mega-transfers per second.
MEMORY_MT_PER_S = {
    "snapdragon-8-gen-3": 9600,
    "snapdragon-8-gen-2": 8400,
    "snapdragon-8-gen-1": 6400,
    "snapdragon-865": 5500,
}


def test_every_machine_is_checked_here() -> None:
    assert RACKS.keys() == BOARDS.keys() == FORWARD_MS.keys()
    assert PHONES.keys() == MEMORY_MT_PER_S.keys()


def test_kv_cache_of_a_token_of_llama_2_70b() -> None:
    # 80 layers of 8 key-value heads of 128 numbers, a key and a value each, two bytes a number.
    assert KV_BYTES_PER_TOKEN == 327_680


@pytest.mark.parametrize("name", BOARDS)
def test_rack_follows_from_its_data_sheet(name: str) -> None:
    memory_gb_per_s, peak_tflop_per_s, memory_gb, board_w = BOARDS[name]
    rack = RACKS[name]
    assert 1e3 * rack.forward.fixed_s == pytest.approx(FORWARD_MS[name], rel=1e-3)
    # 2 FLOP per weight and token, over four boards at 40 % of their peak.
    per_token_s = 2 * 70e9 / (4 * 0.4 * peak_tflop_per_s * 1e12)
    assert rack.forward.per_token_s == pytest.approx(per_token_s, rel=1e-6)
    per_context_s = 327_680 / (memory_gb_per_s * 1e9)
    assert rack.forward.per_context_s == pytest.approx(per_context_s, rel=1e-6)
    kv_gb = 4 * memory_gb - 140
    assert rack.kv_capacity_tokens == int(kv_gb * 1e9 / 327_680)
    assert rack.power_w == 4 * board_w


@pytest.mark.parametrize(
    ("name", "prefill_ms"),
    [("4xA100-40GB", 0.28), ("4xRTX6000Ada", 0.24), ("4xL40S", 0.24), ("4xRTXA6000", 0.56)],
)
def test_prefill_of_a_token_takes_a_fraction_of_a_millisecond(name: str, prefill_ms: float) -> None:
    assert 1e3 * RACKS[name].forward.per_token_s == pytest.approx(prefill_ms, abs=0.006)


@pytest.mark.parametrize("name", PHONES)
def test_phone_reads_its_draft_model_once_per_token(name: str) -> None:
    bytes_per_s = MEMORY_MT_PER_S[name] * 1e6 * 8
    assert PHONES[name].draft_time_s == pytest.approx(1.24e9 / (0.9 * bytes_per_s), rel=1e-6)


@pytest.mark.parametrize("machine", [*RACKS.values(), *PHONES.values()], ids=lambda m: m.name)
def test_every_machine_names_its_source(machine: object) -> None:
    assert len(getattr(machine, "source", "")) > 20


def test_forward_time_is_linear_for_numbers_and_tensors_alike() -> None:
    forward = ForwardTime(fixed_s=1.0, per_row_s=0.1, per_token_s=0.01, per_context_s=0.001)
    assert forward(2.0, 3.0, 4.0) == pytest.approx(1.234)
    rows = torch.tensor([0.0, 2.0])
    torch.testing.assert_close(forward(rows, 1.5 * rows, 2 * rows), torch.tensor([1.0, 1.234]))


@pytest.mark.parametrize("look_up", [get_rack, get_phone])
def test_unknown_machine_is_refused_with_the_names_that_are_known(look_up: object) -> None:
    with pytest.raises(UserError, match=r"'abacus' is unknown; allowed: (4x|snap)") as refusal:
        look_up("abacus")  # type: ignore[operator]
    assert "\n" not in str(refusal.value)
