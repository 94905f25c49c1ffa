"""Write the finished pair: half-precision weights, tokenizer, decode set, acceptance and card."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from experiments.pair.acceptance import RULES, WORLD_TASKS, measure_acceptance
from experiments.runs import write_json, write_text
from uara.decoding.models import ModelPair, Prompt, load_pair
from uara.files import whole_file

PAIR_NAME = "uara-stdlib"
FROZEN_PER_TASK = 24
CALIBRATION_PER_TASK = 64


def save_pair(
    out: Path,
    *,
    target: PreTrainedModel,
    draft: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
) -> None:
    """Save both models in float16 in the transformers format, the tokenizer and the decode set.

    Args:
        out: Folder of the pair.
        target: Trained target; left as it is.
        draft: Trained draft; left as it is.
        tokenizer: Tokenizer of both.
        prompts: Decode set, written to `prompts.jsonl`.
    """
    for name, model in (("target", target), ("draft", draft)):
        folder = out / name
        temporary = out / f".{name}.partial"
        # A copy from the saved weights keeps the model in memory in float32.
        half = type(model)(model.config)
        half.load_state_dict(model.state_dict())
        half.to(torch.float16).save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    with whole_file(out / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    lines = b"".join(msgspec.json.encode(prompt) + b"\n" for prompt in prompts)
    with whole_file(out / "prompts.jsonl") as temporary:
        temporary.write_bytes(lines)


def publish(
    out: Path,
    *,
    config: dict[str, Any],
    corpus: dict[str, object],
    losses: dict[str, dict[str, float]],
    calibration: Sequence[Prompt],
    temperature: float,
) -> None:
    """Measure the saved pair and write `acceptance.json`, `card.json` and `card.md`.

    The measurement reads the saved float16 weights back, since those are what users run.

    Args:
        out: Folder of the pair, filled by `save_pair`.
        config: Training config.
        corpus: Facts of the corpus.
        losses: Held-out loss in nats per token, by model and task.
        calibration: Held-out prompts, none of them in the decode set.
        temperature: Serving temperature.
    """
    loaded = load_pair(out / "draft", out / "target")
    pair = ModelPair(loaded.draft, loaded.target, loaded.tokenizer, PAIR_NAME)
    acceptance = measure_acceptance(pair, calibration, temperature)
    card = {
        "pair": PAIR_NAME,
        "made_by": "uara pair train",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "text_licence": "PSF-2.0",
        "corpus": corpus,
        "parameters": {
            "target": count_parameters(pair.target),
            "draft": count_parameters(pair.draft),
        },
        "held_out_nats_per_token": losses,
        "temperature": temperature,
        "acceptance": {
            rule: {task: acceptance["rules"][rule][task]["mean"] for task in WORLD_TASKS}
            for rule in RULES
        },
        "config": config,
    }
    write_json(out / "acceptance.json", acceptance)
    write_json(out / "card.json", card)
    write_text(out / "card.md", card_text(card))


def count_parameters(model: PreTrainedModel) -> int:
    """Count a model's parameters; a matrix that is used twice counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rounded(values: Iterable[float]) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _shares(weights: dict[str, float]) -> str:
    return ", ".join(f"{task} {weight:g}" for task, weight in weights.items())


def card_text(card: dict[str, Any]) -> str:
    """Render the card for readers; every figure comes from `card.json`."""
    config, corpus = card["config"], card["corpus"]
    read = [task for task in WORLD_TASKS if task != "photo"]
    accepted = {rule: [card["acceptance"][rule][task] for task in WORLD_TASKS] for rule in RULES}
    rows = "\n".join(_row((rule, *_rounded(rates))) for rule, rates in accepted.items())
    losses = "\n".join(
        _row(
            (
                name,
                f"{card['parameters'][name]:,}",
                str(config[f"{name}_steps"]),
                *_rounded(card["held_out_nats_per_token"][name][task] for task in read),
            )
        )
        for name in ("target", "draft")
    )
    tokens = config["step_tokens"]
    return f"""# {card["pair"]}

A small Llama-style draft/target pair for first runs and tests. It writes text in the manner of
Python's standard library; it is no assistant, and its answers are not to be relied on.

Made by `{card["made_by"]}` (Python {card["python"]}, torch {card["torch"]}, transformers
{card["transformers"]}, CPU, {config["precision"]} matrix products, seed {config["seed"]}).

## Text
Source, docstrings and language-reference topics of the Python {card["python"]} standard library,
licence {card["text_licence"]}. Whole files and topics are held out by a hash of their name.
Corpus sha256: `{corpus["sha256"]}`.
{config["vocab_size"]} byte-level byte-pair tokens, context {config["context"]}.

- `code`: continue a piece of source.
- `summarise`: a function, then its docstring.
- `chat`: a question on a module, class, function or topic, then the answer from the documentation.

## Training
{tokens} tokens per step. The draft begins as the target's first and last layers and learns the
target's full law at temperature {card["temperature"]}, on the corpus and on texts that the target
wrote. Shares in its distillation: {_shares(config["draft_weights"])}. Rounding differs
between processors and numbers of threads, so a rerun elsewhere gives other weights of like quality.
Held-out loss in nats per token:

| model | parameters | steps | {" | ".join(read)} |
| --- | --- | --- | --- | --- | --- |
{losses}

## Acceptance
Accepted / tested tokens along the target's own texts from held-out prompts outside the decode set
(`prompts.jsonl`); sampling rules at temperature {card["temperature"]}. Spread between prompts in
`acceptance.json`.

| rule | {" | ".join(WORLD_TASKS)} |
| --- | --- | --- | --- | --- |
{rows}

`photo` (a question on a photo) repeats `chat`: the pair reads text alone. Greedy text of so small a
target tends to repeat itself, which flatters the greedy rate. `maxc` is max coupling, `maxc_top32`
the same with the draft's law cut to its 32 likeliest tokens before the draw, and `maxc_q8` with its
probabilities rounded up to 8 bits. `onehot` and `gumbel` send token ids alone: the draft's
likeliest token passes with the target's probability of it, or both ends sample by the same noise.
"""
