"""The default racks and phones, and every machine by name.

Every constant belongs to one real machine and one way of running it; its source or derivation
stands beside it. Decoding is bound by memory: a forward pass reads all weights once.
"""

from __future__ import annotations

from uara.errors import UserError
from uara.serving.machine import KV_BYTES_PER_TOKEN, ForwardTime, Phone, Rack
from uara.serving.profiles import PAPER_PHONES, PAPER_RACKS, find_in_file

__all__ = [
    "KV_BYTES_PER_TOKEN",
    "PHONES",
    "RACKS",
    "ForwardTime",
    "Phone",
    "Rack",
    "get_phone",
    "get_rack",
]

# A 70B-class target (Llama-2-70B shape) in fp16: 140 GB of weights split by layers over four GPUs,
# so that one GPU after the other reads its quarter; chunked prefill keeps all four busy at 40 % of
# their dense fp16 peak; 2 x 70e9 = 140 GFLOP per token. The KV cache of a token is read by the GPU
# that holds the layer.
TARGET_WEIGHT_BYTES = 140e9
TARGET_FLOP_PER_TOKEN = 140e9
PREFILL_UTILISATION = 0.4
GPUS_PER_RACK = 4


def _rack(
    name: str,
    *,
    memory_bytes_per_s: float,
    peak_flop_per_s: float,
    kv_memory_bytes: float,
    board_power_w: float,
    source: str,
    measured_forward_s: float | None = None,
) -> Rack:
    """Derive a rack of four GPUs from data-sheet figures; a measured forward time goes first."""
    fixed_s = measured_forward_s or TARGET_WEIGHT_BYTES / memory_bytes_per_s
    per_token_s = TARGET_FLOP_PER_TOKEN / (GPUS_PER_RACK * peak_flop_per_s * PREFILL_UTILISATION)
    return Rack(
        name=name,
        forward=ForwardTime(
            fixed_s=fixed_s,
            per_row_s=0.0,
            per_token_s=per_token_s,
            per_context_s=KV_BYTES_PER_TOKEN / memory_bytes_per_s,
        ),
        kv_capacity_tokens=int(kv_memory_bytes / KV_BYTES_PER_TOKEN),
        power_w=GPUS_PER_RACK * board_power_w,
        source=source,
    )


RACKS: dict[str, Rack] = {
    rack.name: rack
    for rack in (
        _rack(
            "4xA100-40GB",
            memory_bytes_per_s=1.555e12,
            peak_flop_per_s=312e12,
            kv_memory_bytes=20e9,
            board_power_w=400.0,
            measured_forward_s=0.145,
            source="forward measured by PicoSpec (arXiv 2603.19133); NVIDIA A100 data sheet: 312 "
            "TFLOP/s, 1.555 TB/s, 400 W; 4 x 40 GB - 140 GB = 20 GB for KV",
        ),
        _rack(
            "4xRTX6000Ada",
            memory_bytes_per_s=0.96e12,
            peak_flop_per_s=364e12,
            kv_memory_bytes=52e9,
            board_power_w=300.0,
            source="NVIDIA RTX 6000 Ada data sheet: 0.96 TB/s, 364 TFLOP/s fp16, 300 W; 4 x 48 GB",
        ),
        _rack(
            "4xL40S",
            memory_bytes_per_s=0.864e12,
            peak_flop_per_s=362e12,
            kv_memory_bytes=52e9,
            board_power_w=350.0,
            source="NVIDIA L40S data sheet: 0.864 TB/s, 362 TFLOP/s fp16, 350 W; 4 x 48 GB",
        ),
        _rack(
            "4xRTXA6000",
            memory_bytes_per_s=0.768e12,
            peak_flop_per_s=155e12,
            kv_memory_bytes=52e9,
            board_power_w=300.0,
            source="NVIDIA RTX A6000 data sheet: 0.768 TB/s, 155 TFLOP/s fp16, 300 W; 4 x 48 GB",
        ),
        _rack(
            "4xA40",
            memory_bytes_per_s=0.696e12,
            peak_flop_per_s=149.7e12,
            kv_memory_bytes=52e9,
            board_power_w=300.0,
            source="NVIDIA A40 data sheet: 0.696 TB/s, 149.7 TFLOP/s fp16, 300 W; 4 x 48 GB",
        ),
    )
}

# A 1.24B-parameter draft (Llama-3.2-1B shape) in int8: 1.24 GB read per token at 90 % of the
# memory bandwidth of the phone's chip. 4 W is a phone's sustained package power, above which it
# throttles.
DRAFT_WEIGHT_BYTES = 1.24e9
DRAFT_BANDWIDTH_UTILISATION = 0.9
PHONE_PACKAGE_POWER_W = 4.0


def _phone(name: str, memory_bytes_per_s: float, source: str) -> Phone:
    """Derive a phone's time per draft token from its memory bandwidth."""
    return Phone(
        name=name,
        draft_time_s=DRAFT_WEIGHT_BYTES / (DRAFT_BANDWIDTH_UTILISATION * memory_bytes_per_s),
        draft_power_w=PHONE_PACKAGE_POWER_W,
        source=source,
    )


PHONES: dict[str, Phone] = {
    phone.name: phone
    for phone in (
        _phone("snapdragon-8-gen-3", 76.8e9, "LPDDR5X-9600, 64 bit: 76.8 GB/s"),
        _phone("snapdragon-8-gen-2", 67.2e9, "LPDDR5X-8400, 64 bit: 67.2 GB/s"),
        _phone("snapdragon-8-gen-1", 51.2e9, "LPDDR5-6400, 64 bit: 51.2 GB/s"),
        _phone("snapdragon-865", 44.0e9, "LPDDR5-5500, 64 bit: 44 GB/s"),
    )
}


def get_rack(name: str) -> Rack:
    """Look a rack up: a default one, one of a paper, `measured`, or `FILE.json:NAME`.

    Raises:
        UserError: if there is none of that name, or its file lacks a field.
    """
    rack = RACKS.get(name) or PAPER_RACKS.get(name) or find_in_file(name, "racks")
    if not isinstance(rack, Rack):
        known = ", ".join((*RACKS, *PAPER_RACKS))
        raise UserError(f"server '{name}' is unknown; allowed: {known}, or FILE.json:NAME")
    return rack


def get_phone(name: str) -> Phone:
    """Look a phone up: a default one, one of a paper, `measured`, or `FILE.json:NAME`.

    Raises:
        UserError: if there is none of that name, or its file lacks a field.
    """
    phone = PHONES.get(name) or PAPER_PHONES.get(name) or find_in_file(name, "phones")
    if not isinstance(phone, Phone):
        known = ", ".join((*PHONES, *PAPER_PHONES))
        raise UserError(f"device '{name}' is unknown; allowed: {known}, or FILE.json:NAME")
    return phone
