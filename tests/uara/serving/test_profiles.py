"""Machines of the papers and of files: reckoned anew from published figures, refused when wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uara.errors import UserError
from uara.serving import profiles
from uara.serving.hardware import PHONES, RACKS, get_phone, get_rack
from uara.serving.profiles import PAPER_PHONES, PAPER_RACKS, llama_weight_bytes

RACK = {
    "fixed_s": 0.02,
    "per_row_s": 0.001,
    "per_token_s": 0.0002,
    "per_context_s": 1e-7,
    "kv_capacity_tokens": 5000,
    "kv_bytes_per_token": 1000,
    "power_w": 65,
    "source": "measured on one machine by its owner",
}
PHONE = {
    "draft_time_s": 0.004,
    "draft_power_w": 20,
    "battery_wh": 50,
    "draft_flop_per_token": 1e6,
    "source": "measured on one machine by its owner",
}


def write(folder: Path, **changes: object) -> str:
    content = {"format_version": 1, "racks": {"lab": RACK}, "phones": {"lab": PHONE}} | changes
    path = folder / "machines.json"
    path.write_text(json.dumps(content))
    return f"{path}:lab"


def test_names_of_all_machines_are_different() -> None:
    assert not RACKS.keys() & PAPER_RACKS.keys()
    assert not PHONES.keys() & PAPER_PHONES.keys()


@pytest.mark.parametrize(
    "machine", [*PAPER_RACKS.values(), *PAPER_PHONES.values()], ids=lambda m: m.name
)
def test_every_machine_names_its_source(machine: object) -> None:
    assert len(getattr(machine, "source", "")) > 20


# Published: plain decoding in tokens/s (a token is a forward pass), drafting time in ms per token.
@pytest.mark.parametrize(
    ("name", "forward_ms"), [("2xA100-40GB-qwen3-32b", 72.0), ("4xA100-40GB-llama-3.1-70b", 145.6)]
)
def test_measured_racks_take_the_published_time_per_token(name: str, forward_ms: float) -> None:
    assert 1e3 * get_rack(name).forward.fixed_s == pytest.approx(forward_ms, abs=0.05)


@pytest.mark.parametrize("name", ["jetson-agx-orin-qwen3-0.6b", "jetson-agx-orin-llama-3.2-1b"])
def test_jetson_drafts_a_token_in_24_ms(name: str) -> None:
    assert 1e3 * get_phone(name).draft_time_s == pytest.approx(24.4, abs=0.1)


@pytest.mark.parametrize(
    ("size", "gigabytes"), [("7b", 10.07), ("13b", 19.71), ("1.1b", 1.75), ("68m", 0.03)]
)
def test_llama_weights_are_those_that_the_cost_model_counts(size: str, gigabytes: float) -> None:
    assert llama_weight_bytes(size) / 1e9 == pytest.approx(gigabytes, abs=0.006)


@pytest.mark.parametrize(("size", "kv_bytes"), [("7b", 524_288), ("13b", 819_200)])
def test_llama_rack_reads_its_weights_once_per_pass(size: str, kv_bytes: int) -> None:
    rack = get_rack(f"rtx4500ada-llama-{size}")
    weights = llama_weight_bytes(size)
    assert rack.forward.fixed_s == pytest.approx(weights / 432e9)
    assert rack.kv_bytes_per_token == kv_bytes
    assert rack.kv_capacity_tokens == int((24e9 - weights) / kv_bytes)
    assert rack.kv_capacity_tokens > 5000


@pytest.mark.parametrize(
    ("gpu", "gb_per_s", "tflop_per_s"), [("rtx2080", 448, 11.2), ("rtx4090", 1008, 82.9)]
)
def test_flops_only_times_are_far_below_those_of_memory(
    gpu: str, gb_per_s: float, tflop_per_s: float
) -> None:
    real, flops = get_rack(f"{gpu}-gpt2-xl"), get_rack(f"{gpu}-gpt2-xl-flops")
    assert real.forward.fixed_s == pytest.approx(2 * 1.558e9 / (gb_per_s * 1e9))
    assert flops.forward.fixed_s == 0
    assert flops.forward.per_token_s == pytest.approx(3.116 / (1e3 * tflop_per_s))
    assert real.forward(1.0, 1.0, 0.0) > 10 * flops.forward(1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "watt_hours", "ms"),
    [("galaxy-s23", 15.1, 4.53), ("iphone-14", 12.7, 8.93), ("mate-60", 18.4, 6.92)],
)
def test_phones_have_the_published_batteries(name: str, watt_hours: float, ms: float) -> None:
    phone = get_phone(name)
    assert phone.battery_j == pytest.approx(watt_hours * 3600)
    # 274 MB of fp16 weights at 90 % of 67.2, 34.1 and 44 GB/s
    assert 1e3 * phone.draft_time_s == pytest.approx(ms, abs=0.01)
    assert get_phone(f"{name}-flops").draft_time_s < phone.draft_time_s / 10


def test_machine_of_a_file_has_the_numbers_of_the_file(tmp_path: Path) -> None:
    name = write(tmp_path)
    rack, phone = get_rack(name), get_phone(name)
    assert rack.forward(2.0, 10.0, 1000.0) == pytest.approx(0.02 + 0.002 + 0.002 + 1e-4)
    assert (rack.kv_capacity_tokens, rack.power_w) == (5000, 65)
    assert (phone.draft_time_s, phone.battery_j) == (0.004, 50 * 3600)


def test_measured_machine_is_read_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MEASURED_FILE", tmp_path / "machines.json")
    with pytest.raises(UserError, match="do not exist"):
        get_rack("measured")
    write(tmp_path, racks={"measured": RACK})
    assert get_rack("measured").forward.fixed_s == 0.02


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"racks": {"lab": {k: v for k, v in RACK.items() if k != "power_w"}}}, "lacks power_w"),
        ({"racks": {"lab": {**RACK, "fixed_s": -0.1}}}, "fixed_s .* is -0.1; give a number of at"),
        ({"racks": {"lab": {**RACK, "per_token_s": "fast"}}}, "per_token_s .* is 'fast'"),
        ({"racks": {"lab": {**RACK, "kv_capacity_tokens": 0}}}, "kv_capacity_tokens .* above 0"),
        ({"racks": {"lab": {**RACK, "fixed_s": 0, "per_token_s": 0}}}, "fixed_s . per_token_s"),
        ({"racks": {}}, "holds no 'lab' among its racks"),
        ({"format_version": 9}, "format version 9, allowed: 1"),
    ],
)
def test_profile_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    with pytest.raises(UserError, match=text) as refusal:
        get_rack(write(tmp_path, **changes))
    assert "\n" not in str(refusal.value)


def test_phone_without_a_field_is_refused_in_one_line(tmp_path: Path) -> None:
    short = {key: value for key, value in PHONE.items() if key != "draft_time_s"}
    with pytest.raises(UserError, match=r"machine 'lab' in .* lacks draft_time_s; give all of"):
        get_phone(write(tmp_path, phones={"lab": short}))


@pytest.mark.parametrize("text", ["no json", "[]", "{}"])
def test_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "machines.json").write_text(text)
    with pytest.raises(UserError, match="holds no machine profiles"):
        get_rack(f"{tmp_path / 'machines.json'}:lab")
