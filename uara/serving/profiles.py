"""Machines of the papers that this package follows, and machines from a file of measurements.

One way of running per machine: hardware, model and number format of a row belong together. Where a
paper prints no time, a forward pass reads all weights once (decoding is bound by memory) and a
verified or prefilled token costs two FLOP per weight at 40 % of the peak. Rows `...-flops` are the
FLOPs-only times of arXiv 2511.01695, which leave the memory out and are 10 to 100 times too short.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uara.errors import UserError
from uara.serving.machine import ForwardTime, Phone, Rack

FORMAT_VERSION = 1
MEASURED_FILE = Path(__file__).resolve().parents[2] / "checkpoints" / "pair" / "machine.json"
UTILISATION = 0.4
BANDWIDTH_UTILISATION = 0.9
PACKAGE_POWER_W = 4.0  # a phone's sustained package power, above which it throttles
MAINS = math.inf  # battery of what hangs on the mains

_FORWARD_FIELDS = ("fixed_s", "per_row_s", "per_token_s", "per_context_s")
_RACK_FIELDS = (*_FORWARD_FIELDS, "kv_capacity_tokens", "kv_bytes_per_token", "power_w")
_PHONE_FIELDS = ("draft_time_s", "draft_power_w", "battery_wh", "draft_flop_per_token")


def _rack(
    name: str,
    *,
    parameters: float,
    weight_bytes: float,
    memory_bytes_per_s: float,
    flop_per_s: float,
    kv_bytes_per_token: float,
    memory_bytes: float,
    power_w: float,
    source: str,
    measured_forward_s: float | None = None,
) -> Rack:
    """Derive a rack; a measured forward time goes first. `flop_per_s` is the peak of all GPUs."""
    return Rack(
        name=name,
        forward=ForwardTime(
            fixed_s=measured_forward_s or weight_bytes / memory_bytes_per_s,
            per_row_s=0.0,
            per_token_s=2 * parameters / (UTILISATION * flop_per_s),
            per_context_s=kv_bytes_per_token / memory_bytes_per_s,
        ),
        kv_capacity_tokens=int((memory_bytes - weight_bytes) / kv_bytes_per_token),
        power_w=power_w,
        source=source,
        kv_bytes_per_token=kv_bytes_per_token,
    )


# arXiv 2511.01695: GPT2-XL (48 layers of width 1600, 1.558e9 weights, fp16) on one GPU; the TFLOP/s
# of the FLOPs-only rows are those that its authors published with an earlier paper (arXiv
# 2404.03154). KV cache: 48 x 1600 x 2 x 2 B per token.
GPT2_XL_PARAMETERS = 1.558e9
GPT2_XL_KV_BYTES = 48 * 1600 * 2 * 2
_GPT2_GPUS: dict[str, tuple[float, float, float, float, float]] = {
    # memory bytes/s, tensor-core fp16 FLOP/s (fp32 sums), memory bytes, watt, printed FLOP/s
    "rtx2080": (448e9, 40.3e12, 8e9, 215.0, 11.2e12),
    "rtx3090": (936e9, 71e12, 24e9, 350.0, 35.6e12),
    "rtx4090": (1008e9, 165.2e12, 24e9, 450.0, 82.9e12),
}


def _gpt2_racks() -> list[Rack]:
    """List the servers of arXiv 2511.01695, bound by memory and FLOPs-only."""
    racks = []
    for gpu, (bytes_per_s, flop_per_s, memory, power_w, printed) in _GPT2_GPUS.items():
        rack = _rack(
            f"{gpu}-gpt2-xl",
            parameters=GPT2_XL_PARAMETERS,
            weight_bytes=2 * GPT2_XL_PARAMETERS,
            memory_bytes_per_s=bytes_per_s,
            flop_per_s=flop_per_s,
            kv_bytes_per_token=GPT2_XL_KV_BYTES,
            memory_bytes=memory,
            power_w=power_w,
            source=f"GPU and model of arXiv 2511.01695; NVIDIA {gpu} data sheet: "
            f"{bytes_per_s / 1e9:.0f} GB/s, {flop_per_s / 1e12:.1f} TFLOP/s, {power_w:.0f} W",
        )
        per_token_s = 2 * GPT2_XL_PARAMETERS / printed
        flops_only = Rack(
            f"{rack.name}-flops",
            ForwardTime(0.0, 0.0, per_token_s, 0.0),
            rack.kv_capacity_tokens,
            power_w,
            f"FLOPs-only: 2 x 1.558e9 FLOP per token at the {printed / 1e12:.1f} TFLOP/s of arXiv "
            "2404.03154",
            GPT2_XL_KV_BYTES,
        )
        racks += [rack, flops_only]
    return racks


# arXiv 2510.11331: the verify models on an RTX 4500 (Ada: 432 GB/s, 39.63 TFLOP/s, 24 GB, 210 W).
# Weights as the paper counts them, J (8 h1^2 + 4 h1 h2) bytes in fp16: no embeddings, two matrices
# in the feed-forward part; FLOP per token is the same number. KV cache: 4 J h1 bytes per token.
_LLAMA_SHAPES = {
    "68m": (2, 768, 3072),
    "1.1b": (22, 2048, 5632),
    "7b": (32, 4096, 11008),
    "13b": (40, 5120, 13824),
}


def llama_weight_bytes(size: str) -> float:
    """Count the bytes of a LLaMA model's layers in fp16 as arXiv 2510.11331 does."""
    layers, width, inner = _LLAMA_SHAPES[size]
    return float(layers * (8 * width**2 + 4 * width * inner))


def _llama_rack(size: str) -> Rack:
    layers, width, _ = _LLAMA_SHAPES[size]
    return _rack(
        f"rtx4500ada-llama-{size}",
        parameters=llama_weight_bytes(size) / 2,
        weight_bytes=llama_weight_bytes(size),
        memory_bytes_per_s=432e9,
        flop_per_s=39.63e12,
        kv_bytes_per_token=4.0 * layers * width,
        memory_bytes=24e9,
        power_w=210.0,
        source="verify node of arXiv 2510.11331, whose fitted coefficients are not published; "
        "RTX 4500 Ada data sheet: 432 GB/s, 39.63 TFLOP/s, 24 GB, 210 W",
    )


def _llama_node(size: str) -> Phone:
    return Phone(
        f"rtx3080-llama-{size}",
        draft_time_s=llama_weight_bytes(size) / (BANDWIDTH_UTILISATION * 760e9),
        draft_power_w=320.0,
        source="draft node of arXiv 2510.11331; RTX 3080 data sheet: 760 GB/s, 320 W; weights as "
        "the paper counts them, read once per token at 90 % of the bandwidth",
        battery_wh=MAINS,
        draft_flop_per_token=llama_weight_bytes(size),
    )


def _a100_rack(
    gpus: int, name: str, model: str, parameters: float, *, layers: int, tokens_per_s: float
) -> Rack:
    """Make a rack of arXiv 2603.19133: grouped-query attention, its time per token printed."""
    return _rack(
        f"{gpus}xA100-40GB-{name}",
        parameters=parameters,
        weight_bytes=2 * parameters,
        memory_bytes_per_s=1.555e12,
        flop_per_s=gpus * 312e12,
        kv_bytes_per_token=layers * 8 * 128 * 2 * 2,
        memory_bytes=gpus * 40e9,
        power_w=gpus * 400.0,
        measured_forward_s=1 / tokens_per_s,
        source=f"arXiv 2603.19133: {tokens_per_s} tokens/s of plain decoding on GSM8K; {model}: "
        f"{parameters / 1e9}e9 weights in 16 bit, {layers} layers of 8 key-value heads of 128; "
        "A100 data sheet: 312 TFLOP/s, 400 W",
    )


PAPER_RACKS: dict[str, Rack] = {
    rack.name: rack
    for rack in (
        *_gpt2_racks(),
        _llama_rack("7b"),
        _llama_rack("13b"),
        _a100_rack(2, "qwen3-32b", "Qwen3-32B", 32.8e9, layers=64, tokens_per_s=13.89),
        _a100_rack(4, "llama-3.1-70b", "Llama-3.1-70B", 70.6e9, layers=80, tokens_per_s=6.87),
    )
}


# arXiv 2511.01695: GPT2 (137e6 weights, fp16) on three phones; batteries and TFLOP/s of the
# FLOPs-only rows as published with arXiv 2404.03154.
GPT2_PARAMETERS = 137e6
_GPT2_PHONES: dict[str, tuple[float, float, float, str]] = {
    # memory bytes/s, battery Wh, printed FLOP/s, memory
    "galaxy-s23": (67.2e9, 15.1, 3.681e12, "Snapdragon 8 Gen 2: LPDDR5X-8400, 64 bit"),
    "iphone-14": (34.1e9, 12.7, 2.0e12, "A15: LPDDR4X-4266, 64 bit"),
    "mate-60": (44.0e9, 18.4, 2.06e12, "Kirin 9000S, taken with LPDDR5-5500, 64 bit"),
}


def _gpt2_phones() -> list[Phone]:
    """List the phones of arXiv 2511.01695, bound by memory and FLOPs-only."""
    phones = []
    for name, (bytes_per_s, battery_wh, printed, memory) in _GPT2_PHONES.items():
        flop = 2 * GPT2_PARAMETERS
        derived = 2 * GPT2_PARAMETERS / (BANDWIDTH_UTILISATION * bytes_per_s)
        phones += [
            Phone(name, derived, PACKAGE_POWER_W, f"GPT2 in fp16; {memory}", battery_wh, flop),
            Phone(
                f"{name}-flops",
                flop / printed,
                PACKAGE_POWER_W,
                f"FLOPs-only: 2 x 137e6 FLOP at the {printed / 1e12} TFLOP/s of arXiv 2404.03154",
                battery_wh,
                flop,
            ),
        ]
    return phones


def _jetson(name: str, model: str, parameters: float, *, draft_s: float, tokens: int) -> Phone:
    """Make a drafter of arXiv 2603.19133: a Jetson AGX Orin, 40 W at most by its data sheet.

    Its tables print the time of whole drafts; that Llama's has 7 tokens follows from the accepted
    lengths.
    """
    return Phone(
        f"jetson-agx-orin-{name}",
        draft_time_s=draft_s / tokens,
        draft_power_w=40.0,
        source=f"arXiv 2603.19133: {1e3 * draft_s:.2f} ms for {tokens} draft tokens of {model} on "
        "GSM8K",
        battery_wh=MAINS,
        draft_flop_per_token=2 * parameters,
    )


PAPER_PHONES: dict[str, Phone] = {
    phone.name: phone
    for phone in (
        *_gpt2_phones(),
        _llama_node("68m"),
        _llama_node("1.1b"),
        _jetson("qwen3-0.6b", "Qwen3-0.6B", 0.6e9, draft_s=97.46e-3, tokens=4),
        _jetson("llama-3.2-1b", "Llama-3.2-1B", 1.24e9, draft_s=171.05e-3, tokens=7),
    )
}


def find_in_file(name: str, kind: str) -> Rack | Phone | None:
    """Look up `measured` or `FILE.json:NAME` among the "racks" or "phones" of a file.

    Returns:
        None if the name is of neither form.

    Raises:
        UserError: if the file is missing or damaged, or the machine is not in it, lacks a field or
            has a number that cannot be.
    """
    path, sign, key = name.rpartition(":")
    if name == "measured":
        path, key = str(MEASURED_FILE), name
    elif not sign or not path.endswith(".json"):
        return None
    table = _read(Path(path)).get(kind)
    row = table.get(key) if isinstance(table, Mapping) else None
    if not isinstance(row, Mapping):
        raise UserError(f"{path} holds no '{key}' among its {kind}; add it or name another")
    return _make_rack(key, row, path) if kind == "racks" else _make_phone(key, row, path)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"machine profiles {path} do not exist; give a file of measured times or another name"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw["format_version"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no machine profiles ({error!r}); make it anew") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, allowed: {FORMAT_VERSION}")
    return dict(raw)


def _numbers(name: str, row: Mapping[str, Any], fields: tuple[str, ...], path: str) -> list[float]:
    """Take the numbers of a profile, all of them there, finite and not negative."""
    missing = [field for field in (*fields, "source") if field not in row]
    if missing:
        raise UserError(
            f"machine '{name}' in {path} lacks {', '.join(missing)}; give all of "
            f"{', '.join((*fields, 'source'))}"
        )
    values = []
    for field in fields:
        value = row[field]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
            raise UserError(
                f"{field} of machine '{name}' in {path} is {value!r}; give a number of at least 0"
            )
        values.append(float(value))
    return values


def _positive(field: str, value: float, name: str, path: str) -> float:
    if value <= 0:
        raise UserError(
            f"{field} of machine '{name}' in {path} is {value:g}; give a number above 0"
        )
    return value


def _make_rack(name: str, row: Mapping[str, Any], path: str) -> Rack:
    *forward, capacity, kv_bytes, power_w = _numbers(name, row, _RACK_FIELDS, path)
    _positive("fixed_s + per_token_s", forward[0] + forward[2], name, path)
    return Rack(
        name=name,
        forward=ForwardTime(*forward),
        kv_capacity_tokens=int(_positive("kv_capacity_tokens", capacity, name, path)),
        power_w=power_w,
        source=str(row["source"]),
        kv_bytes_per_token=_positive("kv_bytes_per_token", kv_bytes, name, path),
    )


def _make_phone(name: str, row: Mapping[str, Any], path: str) -> Phone:
    time_s, power_w, battery_wh, flop = _numbers(name, row, _PHONE_FIELDS, path)
    return Phone(
        name=name,
        draft_time_s=_positive("draft_time_s", time_s, name, path),
        draft_power_w=power_w,
        source=str(row["source"]),
        battery_wh=_positive("battery_wh", battery_wh, name, path),
        draft_flop_per_token=flop,
    )
