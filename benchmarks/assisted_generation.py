"""Our draft/verify loop beside assisted generation: `python -m benchmarks.assisted_generation`.

Transformers gets the same pair, prompts, greedy rule and constant draft length in one process, in
turns; processor time, both warm. The outputs must be equal.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from uara.decoding.contract import Contract
from uara.decoding.drafter import Drafter
from uara.decoding.kv import TransformerModel
from uara.decoding.model_verifier import ModelVerifier
from uara.decoding.models import SHIPPED_PAIR_FOLDER, ModelPair, load_prompts, shipped_pair
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Draws, Ledger
from uara.decoding.rules import GREEDY
from uara.decoding.verifier import Work


@dataclass(frozen=True)
class Race:
    """What both gave for one prompt: answers and seconds of processor time."""

    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    own_s: float
    their_s: float


def decode(
    draft: TransformerModel,
    target: TransformerModel,
    text: Sequence[int],
    *,
    count: int,
    gamma: int,
    end_token: int,
) -> tuple[int, ...]:
    """Answer greedily with the runtime's own drafter and verifier, without clock and links."""
    contract = Contract(RuleCode.IDS, GREEDY, 1, 1)
    drafter = Drafter(draft, contract, Draws(0, ledger=Ledger(False)))
    verifier = ModelVerifier(target)
    verifier.open(0, contract, Draws(0, ledger=Ledger(False)))
    context, end, epoch = tuple(text), len(text) + count, 0
    while len(context) < end:
        tokens: tuple[int, ...] = ()
        for _ in range(min(gamma, end - len(context) - 1)):
            tokens = (*tokens, drafter.draft((*context, *tokens), epoch).token)
        (outcome,) = verifier.forward([Work(0, context, tokens, epoch=epoch)])
        assert outcome is not None, "a verification decides"
        assert outcome.token is not None, "greedy corrections are the server's"
        epoch += outcome.accepted < len(tokens)
        new = (*tokens[: outcome.accepted], outcome.token)
        if end_token in new:
            return (*context, *new[: new.index(end_token) + 1])[len(text) :]
        context = (*context, *new)
        drafter.forget_rows()
    return context[len(text) :]


def assisted(pair: ModelPair, text: Sequence[int], *, count: int, gamma: int) -> tuple[int, ...]:
    """Answer greedily with `generate(assistant_model=...)`."""
    settings = pair.draft.generation_config
    settings.num_assistant_tokens = gamma
    settings.num_assistant_tokens_schedule = "constant"
    settings.assistant_confidence_threshold = 0.0
    ids = torch.tensor([list(text)])
    with torch.inference_mode():
        found = pair.target.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=pair.draft,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=pair.end_token_id,
            pad_token_id=pair.end_token_id,
        )
    return tuple(found[0, len(text) :].tolist())


def race(pair: ModelPair, texts: Sequence[Sequence[int]], *, count: int, gamma: int) -> list[Race]:
    """Let both answer every prompt, in turns, the first one once more to warm up."""
    draft, target = (
        TransformerModel(model, pair.vocab_size) for model in (pair.draft, pair.target)
    )
    rows = []
    for text in [texts[0], *texts]:
        begin_s = time.process_time()
        ours = decode(draft, target, text, count=count, gamma=gamma, end_token=pair.end_token_id)
        middle_s = time.process_time()
        theirs = assisted(pair, text, count=count, gamma=gamma)
        rows.append(Race(ours, theirs, middle_s - begin_s, time.process_time() - middle_s))
    return rows[1:]


def shipped_texts(pair: ModelPair, prompts: int, length: int = 128) -> list[list[int]]:
    """Take prompts of the shipped set, evenly spread, and the ends of their texts."""
    every = load_prompts(SHIPPED_PAIR_FOLDER / "prompts.jsonl")
    step = max(1, len(every) // prompts)
    return [pair.encode(prompt.text)[-length:] for prompt in every[::step][:prompts]]


def main(
    prompts: Annotated[int, typer.Option(min=1, help="of the shipped set")] = 12,
    count: Annotated[int, typer.Option(min=8, help="answer tokens")] = 96,
    gamma: Annotated[int, typer.Option(min=1, help="draft length")] = 4,
) -> None:
    """Race both loops and print tokens per second of processor time."""
    torch.set_num_threads(1)
    console, pair = Console(), shipped_pair()
    texts = shipped_texts(pair, prompts)
    rows: list[Race] = []
    for text in track(texts, console=console, transient=True):
        rows += race(pair, [text], count=count, gamma=gamma)
    tokens = sum(len(row.ours) for row in rows)
    own_s, their_s = (sum(getattr(row, name) for row in rows) for name in ("own_s", "their_s"))
    table = Table(title=f"greedy, draft length {gamma}, one thread", box=box.SIMPLE_HEAD)
    table.add_column("loop")
    table.add_column("tokens/s", justify="right")
    table.add_row("ours (sd)", f"{tokens / own_s:.1f}")
    table.add_row("transformers' assisted generation", f"{tokens / their_s:.1f}")
    console.print(table)
    equal = sum(row.ours == row.theirs for row in rows)
    console.print(f"ratio {their_s / own_s:.2f}; {equal} of {len(rows)} outputs equal")


if __name__ == "__main__":
    typer.run(main)
