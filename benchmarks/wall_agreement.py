"""Wall clock against virtual clock: the shipped pair in real processes, paced from a profile.

Each setting is played twice with the same requests, plans and seeds: under the virtual clock, and
by one server process and one process per phone on loopback. The profile is several times slower
than this machine, so that the machine can keep to it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from experiments.pair.machine import PassSize, time_forwards
from experiments.wall import ClockDifference, WallServerSpec, compare_clocks, run_on_wall
from uara.decoding.contract import Contract
from uara.decoding.kernel import VirtualKernel
from uara.decoding.kv import TransformerModel
from uara.decoding.models import (
    SHIPPED_PAIR_FOLDER,
    ModelPair,
    load_prompts,
    shipped_pair,
    tokenizer_hash,
)
from uara.decoding.nodes import KernelSettings
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.rules import Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile, SlotPlan
from uara.serving.machine import ForwardTime

KV_TOKENS = 100_000
RTT_S = 0.02
RATE_BPS = 200_000.0
DRAFT_LENGTH = 4
ANSWER_TOKENS = 24
FORWARD = ForwardTime(0.15, 0.0, 1e-3, 0.0)
DEVICE = DeviceProfile(0.05, 1e-4)


@dataclass(frozen=True)
class Constant:
    """A planner that plans the same for every slot."""

    plan_of_slot: SlotPlan

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        """Return the plan."""
        return self.plan_of_slot


def profile_file(folder: Path) -> str:
    """Write the profile that the server process keeps to; return its name."""
    rack = {
        "fixed_s": FORWARD.fixed_s,
        "per_row_s": FORWARD.per_row_s,
        "per_token_s": FORWARD.per_token_s,
        "per_context_s": FORWARD.per_context_s,
        "kv_capacity_tokens": KV_TOKENS,
        "kv_bytes_per_token": 1.0,
        "power_w": 0.0,
        "source": "this benchmark",
    }
    path = folder / "machine.json"
    path.write_text(json.dumps({"format_version": 1, "racks": {"paced": rack}, "phones": {}}))
    return f"{path}:paced"


def slowness(pair: ModelPair) -> tuple[float, float]:
    """Compute how many times slower the profile is than this machine: forward and draft step.

    This machine's is processor time, which other work does not lengthen.
    """
    sizes = [PassSize(1, DRAFT_LENGTH + 1, 64)]
    target_s, draft_s = (
        min(time_forwards(TransformerModel(model, pair.vocab_size), sizes, 5, time.process_time))
        for model in (pair.target, pair.draft)
    )
    return FORWARD(1.0, DRAFT_LENGTH + 1.0, 64.0) / target_s, DEVICE.draft_time_s / draft_s


def compare(pair: ModelPair, mode: str, devices: int, machine: str) -> dict[str, object]:
    """Play one setting under both clocks."""
    prompts = load_prompts(SHIPPED_PAIR_FOLDER / "prompts.jsonl")
    texts = [tuple(pair.encode(prompt.text))[:48] for prompt in prompts[: 2 * devices]]
    requests = [
        Request(sid, sid % devices, 0.0, text, len(text), ANSWER_TOKENS)
        for sid, text in enumerate(texts)
    ]
    settings = KernelSettings(
        slot_s=1.0,
        contract=Contract(RuleCode.ID_PROB, Sampling(0.7), 32, 8),
        session_seed=lambda sid: derive_seed("agreement", sid),
        tokenizer_hash=tokenizer_hash(pair.tokenizer),
        mode=mode,
    )
    rates = np.full(devices, RATE_BPS)
    plan = SlotPlan(
        np.zeros(devices, np.int64), np.full(devices, DRAFT_LENGTH, np.int64), rates, rates
    )
    kernel = VirtualKernel(
        TransformerModel(pair.draft, pair.vocab_size),
        TransformerModel(pair.target, pair.vocab_size),
        [DEVICE] * devices,
        [ServerProfile(FORWARD, KV_TOKENS, RTT_S)],
        requests,
        Constant(plan),
        settings,
    )
    virtual = kernel.run().requests
    wall = run_on_wall(
        requests,
        [plan],
        [WallServerSpec(machine, KV_TOKENS, RTT_S)],
        [DEVICE] * devices,
        settings,
        draft=SHIPPED_PAIR_FOLDER / "draft",
        target=SHIPPED_PAIR_FOLDER / "target",
    )
    found = compare_clocks([virtual[request.sid] for request in requests], wall.requests)
    return _row(mode, devices, found, wall.residuals_s, wall.late_drafts)


def _row(
    mode: str,
    devices: int,
    found: list[ClockDifference],
    residuals_s: list[float],
    late_drafts: int,
) -> dict[str, object]:
    errors = [difference.wall_e2e_s / difference.virtual_e2e_s - 1 for difference in found]
    return {
        "mode": mode,
        "devices": devices,
        "equal_answers": sum(difference.is_equal for difference in found),
        "within_bound": sum(difference.is_close for difference in found),
        "requests": len(found),
        "e2e_error_percent": [round(100 * min(errors), 2), round(100 * max(errors), 2)],
        "frame_residual_ms": [
            round(1e3 * float(np.percentile(residuals_s, q)), 3) for q in (50, 99)
        ],
        "late_drafts": late_drafts,
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Print one row per setting."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--modes", nargs="+", default=["sd", "async"])
    asked = parser.parse_args()
    pair = shipped_pair()
    forward, draft = slowness(pair)
    print(f"the profile is {forward:.0f} (forward) and {draft:.0f} (draft) times slower than here")
    with tempfile.TemporaryDirectory() as folder:
        machine = profile_file(Path(folder))
        for mode in asked.modes:
            for devices in asked.devices:
                print(json.dumps(compare(pair, mode, devices, machine)), flush=True)


if __name__ == "__main__":
    main()
