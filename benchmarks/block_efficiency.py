"""Tokens per verification: replay of traces against real draft/verify runs on the same prompts.

The traces come from texts that the target wrote alone; the runs draft, verify, reject and resample.
Nothing but the prompts is common to both.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from benchmarks.wall_agreement import Constant
from experiments.pair.traces import MAX_DRAFT_LENGTH, block_efficiency, measure_traces
from uara.decoding.contract import Contract
from uara.decoding.kernel import VirtualKernel
from uara.decoding.kv import TransformerModel
from uara.decoding.models import SHIPPED_PAIR_FOLDER, ModelPair, Prompt, load_prompts, shipped_pair
from uara.decoding.nodes import KernelSettings
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.rules import GREEDY, Sampling
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile, SlotPlan
from uara.serving.machine import ForwardTime


def real_tau(
    pair: ModelPair,
    prompts: list[Prompt],
    temperature: float,
    draft_length: int,
    *,
    tokens: int,
    seed: int,
) -> float:
    """Run every prompt on a phone of its own; return tokens per verification over all of them."""
    count = len(prompts)
    rule = RuleCode.ID_PROB if temperature else RuleCode.IDS
    sampling = Sampling(temperature) if temperature else GREEDY
    settings = KernelSettings(
        slot_s=1e3,
        contract=Contract(rule, sampling, 32, 8),
        session_seed=lambda sid: derive_seed("tau", seed, draft_length, sid),
        checks_draws=False,
    )
    rates = np.full(count, 1e9)
    plan = SlotPlan(np.zeros(count, np.int64), np.full(count, draft_length, np.int64), rates, rates)
    requests = []
    for sid, prompt in enumerate(prompts):
        text = tuple(pair.encode(prompt.text))
        requests.append(Request(sid, sid, 0.0, text, len(text), tokens))
    kernel = VirtualKernel(
        TransformerModel(pair.draft, pair.vocab_size),
        TransformerModel(pair.target, pair.vocab_size),
        [DeviceProfile(1e-3)] * count,
        [ServerProfile(ForwardTime(0.1, 0.0, 0.0, 0.0), 10**6)],
        requests,
        Constant(plan),
        settings,
    )
    records = list(kernel.run().requests.values())
    # The first token comes with the prompt, and the last one may be decoded without a draft.
    forwards = sum(1 for round_ in kernel.recorder.rounds if round_.work != "prefill")
    return sum(len(record.tokens) - 1 for record in records) / forwards


def main() -> None:
    """Print predicted and real tokens per verification per task and draft length."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=4, help="traces per prompt")
    parser.add_argument("--runs", type=int, default=2, help="real runs per prompt")
    parser.add_argument(
        "--draft-lengths", type=int, nargs="+", default=[*range(1, MAX_DRAFT_LENGTH + 1)]
    )
    asked = parser.parse_args()
    pair = shipped_pair()
    prompts = load_prompts(SHIPPED_PAIR_FOLDER / "prompts.jsonl")
    for task in sorted({prompt.task for prompt in prompts}):
        own = [prompt for prompt in prompts if prompt.task == task]
        traces = [
            trace
            for seed in range(asked.texts)
            for trace in measure_traces(
                pair, own, asked.temperature, max_tokens=asked.tokens, seed=seed
            )
        ]
        for gamma in asked.draft_lengths:
            real = [
                real_tau(pair, own, asked.temperature, gamma, tokens=asked.tokens, seed=seed)
                for seed in range(asked.runs)
            ]
            predicted, measured = block_efficiency(traces, gamma), float(np.mean(real))
            row = {
                "task": task,
                "draft_length": gamma,
                "predicted_tau": round(predicted, 3),
                "real_tau": round(measured, 3),
                "error_percent": round(100 * (predicted / measured - 1), 2),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
