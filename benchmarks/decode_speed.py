"""Rounds per second of the runtime itself: a table for a language model, one core, virtual time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.rules import Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile, SlotPlan
from uara.decoding.table_model import TableModel
from uara.decoding.verifier import Contract
from uara.serving.hardware import ForwardTime

VOCAB = 32
DRAFT_LENGTH = 4
ANSWER_TOKENS = 64
REPEATS = 3


@dataclass(frozen=True)
class _Constant:
    plan_of_slot: SlotPlan

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        return self.plan_of_slot


def tables() -> tuple[TableModel, TableModel]:
    """Draw a draft and a target that resembles it."""
    generator = np.random.default_rng(0)
    draft = generator.normal(0, 1, (VOCAB,) * 3)
    return TableModel(draft), TableModel(draft + generator.normal(0, 0.5, draft.shape))


def make_kernel(
    mode: str, pair: tuple[TableModel, TableModel], *, keeps_rounds: bool, requests: int = 40
) -> VirtualKernel:
    """Give one device requests, one after the other."""
    settings = KernelSettings(
        slot_s=10.0,
        contract=Contract(RuleCode.ID_PROB, Sampling(), 8, 8),
        session_seed=lambda sid: derive_seed("speed", sid),
        mode=mode,
        window=2,
        keeps_rounds=keeps_rounds,
        checks_draws=False,
    )
    rate = np.array([1e8])
    plan = SlotPlan(np.zeros(1, np.int64), np.array([DRAFT_LENGTH]), rate, rate)
    return VirtualKernel(
        *pair,
        [DeviceProfile(0.02)],
        [ServerProfile(ForwardTime(0.07, 0.0, 0.0, 0.0), 10**6, 0.05)],
        [Request(sid, 0, 0.0, (1, 2), 2, ANSWER_TOKENS) for sid in range(requests)],
        _Constant(plan),
        settings,
    )


def rounds_per_s(kernel: VirtualKernel) -> tuple[float, float]:
    """Play a run; return rounds and tokens per second of processor time."""
    begun = time.process_time()
    records = kernel.run().requests.values()
    spent_s = time.process_time() - begun
    rounds = sum(record.verifications for record in records)
    return rounds / spent_s, sum(len(record.tokens) for record in records) / spent_s


def main() -> None:
    """Print the best of a few runs per mode, with records of rounds and without."""
    torch.set_num_threads(1)
    print(f"table model, V = {VOCAB}, draft length {DRAFT_LENGTH}, one core, processor time")
    pair = tables()
    for mode in ("sd", "psd", "async"):
        for keeps_rounds in (True, False):
            # The first run makes the rows of the tables, which is not the runtime's work.
            runs = [
                rounds_per_s(make_kernel(mode, pair, keeps_rounds=keeps_rounds))
                for _ in range(1 + REPEATS)
            ]
            rounds, tokens = max(runs[1:])
            kept = "with" if keeps_rounds else "without"
            print(f"{mode:6} {kept:8} records: {rounds:6.0f} rounds/s, {tokens:6.0f} tokens/s")


if __name__ == "__main__":
    main()
