"""How often the target accepts what the draft proposes: held-out prompts, texts, measured rates.

Shapes: B prompts of a batch, L tokens of the longest text, V vocabulary entries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from experiments.pair.corpus import TEXT_TASKS, Document
from uara.decoding.models import ModelPair, Prompt
from uara.decoding.rules import round_up
from uara.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT_VERSION = 1
WORLD_TASKS = ("chat", "summarise", "code", "photo")
# A text-only pair sees no photo: a question on one is answered as text, so it takes chat's rates.
PHOTO_STANDS_FOR = "chat"
MAX_PROMPT_TOKENS = 160
_MIN_PROMPT_TOKENS = 8
_MIN_ANSWER_CHARACTERS = 80
_PROMPTS_PER_UNIT = 8
_BATCH = 32


def held_out_prompts(
    documents: Sequence[Document], tokenizer: Tokenizer, per_task: int, *, skip: int = 0
) -> list[Prompt]:
    """Choose prompts among held-out documents, in an order that their text alone decides.

    Args:
        documents: Documents that training never saw.
        tokenizer: Tokenizer of the pair.
        per_task: Prompts of each task.
        skip: How many of each task to pass over first, so that two sets do not overlap.

    Returns:
        Up to `per_task` prompts of each task, of at most `MAX_PROMPT_TOKENS` tokens.
    """
    prompts: list[Prompt] = []
    for task in TEXT_TASKS:
        ranked = sorted(
            {doc.prompt: doc for doc in documents if doc.task == task}.values(),
            key=lambda doc: hashlib.sha256(doc.prompt.encode()).digest(),
        )
        chosen: list[str] = []
        taken: dict[str, int] = {}
        for doc in ranked:
            length = len(tokenizer.encode(doc.prompt).ids)
            fits = _MIN_PROMPT_TOKENS <= length <= MAX_PROMPT_TOKENS
            crowded = taken.get(doc.unit, 0) >= _PROMPTS_PER_UNIT
            if fits and not crowded and len(doc.answer) >= _MIN_ANSWER_CHARACTERS:
                chosen.append(doc.prompt)
                taken[doc.unit] = taken.get(doc.unit, 0) + 1
        prompts += [
            Prompt(id=f"{task}-{index:04d}", task=task, text=text)
            for index, text in list(enumerate(chosen))[skip : skip + per_task]
        ]
    return prompts


@torch.no_grad()
def sample_continuations(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    end_token_id: int | None,
    generator: torch.Generator,
) -> list[list[int]]:
    """Let a model continue prompts, all in one batch padded on the left.

    Args:
        model: A causal language model.
        prompts: Token ids of B prompts.
        max_tokens: Longest continuation.
        temperature: Sampling temperature; 0 takes the likeliest token.
        end_token_id: Token that ends a continuation; None: none does.
        generator: Source of the draws.

    Returns:
        The B continuations, with the end token where one was reached.
    """
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    seen = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        seen[row, longest - len(prompt) :] = 1
    positions = (seen.cumsum(1) - 1).clamp_min(0)
    texts: list[list[int]] = [[] for _ in prompts]
    open_rows = torch.ones(len(prompts), dtype=torch.bool)
    cache = None
    for _ in range(max_tokens):
        output = model(
            input_ids=ids,
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        drawn = _draw(output.logits[:, -1].float(), temperature, generator)
        for row in open_rows.nonzero().flatten().tolist():
            texts[row].append(int(drawn[row]))
        if end_token_id is not None:
            open_rows &= drawn != end_token_id
        if not bool(open_rows.any()):
            break
        ids = drawn.unsqueeze(1)
        seen = functional.pad(seen, (0, 1), value=1)
        positions = positions[:, -1:] + 1
    return texts


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw one token per row of logits, shape (B, V); return shape (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    law = functional.softmax(logits / temperature, dim=-1)
    return torch.multinomial(law, 1, generator=generator).squeeze(1)


@torch.no_grad()
def acceptance_rates(
    pair: ModelPair,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    temperature: float,
    rules: Sequence[str],
) -> dict[str, list[Tensor]]:
    """Return the chance that each token of the target's texts would have been accepted.

    Args:
        pair: Draft and target.
        prompts: Token ids of B prompts.
        texts: Token ids of B continuations.
        temperature: Serving temperature; 0 compares the likeliest tokens.
        rules: Names in `RATES`.

    Returns:
        For each rule and prompt, rates in [0, 1], shape (tokens of its continuation,).
    """
    rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    target_law = _law(pair.target(input_ids=ids, use_cache=False).logits, temperature)
    draft_law = _law(pair.draft(input_ids=ids, use_cache=False).logits, temperature)
    found: dict[str, list[Tensor]] = {}
    for rule in rules:
        rates = RATES[rule](target_law, draft_law)  # (B, L)
        # The law at a position is that of the next token, hence the shift by one.
        found[rule] = [
            rates[index, len(prompt) - 1 : len(prompt) - 1 + len(text)]
            for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
    return found


def overlap(target: Tensor, draft: Tensor, *, top: int | None = None) -> Tensor:
    """Compute the acceptance under max coupling, sum over v of min(p(v), q(v)).

    It does not depend on what stood before (Leviathan et al. 2023, Theorem 3.5).

    Args:
        target: Laws p, shape (..., V).
        draft: Laws q, same shape.
        top: Entries to which q is cut and renormalised before the draw; None: all.

    Returns:
        Rates, shape (...).
    """
    if top is not None and top < draft.shape[-1]:
        kept = draft.topk(top, dim=-1)
        draft = torch.zeros_like(draft).scatter(-1, kept.indices, kept.values)
        draft = draft / draft.sum(-1, keepdim=True)
    return torch.minimum(target, draft).sum(-1)


def rounded_overlap(target: Tensor, draft: Tensor) -> Tensor:
    """Compute the acceptance where q is sent in 8 bits: sum over v of q(v) min(1, p(v) / q^(v))."""
    sent = torch.from_numpy(round_up(draft.double().numpy(), 8))
    passed = draft * torch.where(sent > target, target / sent.clamp_min(1e-38), 1.0)
    return passed.sum(-1)


def likeliest_kept(target: Tensor, draft: Tensor) -> Tensor:
    """Compute the acceptance under ONEHOT, p of the draft's likeliest token; shapes as above."""
    return target.gather(-1, draft.argmax(-1, keepdim=True)).squeeze(-1)


def coupled_overlap(target: Tensor, draft: Tensor) -> Tensor:
    """Compute the chance that both laws' races under the same noise have one winner (GUMBEL).

    Token x wins both with probability 1 / sum over v of max(p(v) / p(x), q(v) / q(x)) (Daliri et
    al., arXiv 2408.07978). The larger of the two is the first exactly for v with
    p(v) / q(v) >= p(x) / q(x), so sorting by that ratio makes two running sums of the denominator.

    Args:
        target: Laws p, shape (..., V).
        draft: Laws q, same shape.

    Returns:
        Rates, shape (...).
    """
    p, q = target.double(), draft.double()
    order = (p / q).nan_to_num(0.0, posinf=math.inf).argsort(-1)
    p, q = p.gather(-1, order), q.gather(-1, order)
    q_before = q.cumsum(-1) - q
    p_from = p.flip(-1).cumsum(-1).flip(-1)
    both = (p > 0) & (q > 0)
    safe_p, safe_q = p.where(both, torch.ones_like(p)), q.where(both, torch.ones_like(q))
    wins = 1 / (p_from / safe_p + q_before / safe_q)
    return wins.where(both, torch.zeros_like(wins)).sum(-1)


Rates = Callable[[Tensor, Tensor], Tensor]
RATES: dict[str, Rates] = {
    "greedy": overlap,
    "maxc": overlap,
    "maxc_top32": partial(overlap, top=32),
    "maxc_q8": rounded_overlap,
    "onehot": likeliest_kept,
    "gumbel": coupled_overlap,
}
RULES = tuple(RATES)


def _law(logits: Tensor, temperature: float) -> Tensor:
    """Turn logits, shape (B, L, V), into the law that is served at a temperature."""
    if temperature == 0:
        return functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return functional.softmax(logits.float() / temperature, dim=-1)


def measure_acceptance(
    pair: ModelPair,
    prompts: Sequence[Prompt],
    temperature: float,
    *,
    max_tokens: int = 128,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the acceptance of a pair for each rule and task on texts that the target writes.

    Args:
        pair: Draft and target.
        prompts: Prompts of the text tasks.
        temperature: Serving temperature of the rules that sample.
        max_tokens: Longest text per prompt; a text also ends at the target's end token.
        seed: Seed of the sampled texts.

    Returns:
        The content of `acceptance.json`: per rule and task, `mean` = accepted / tested tokens,
        `std` of that rate between prompts (weighted by their tokens), and the number of `prompts`.

    Raises:
        UserError: If the temperature is not positive, a text task has no prompt, or a prompt
            leaves no room for `max_tokens`.
    """
    if temperature <= 0:
        raise UserError(
            f"temperature {temperature} is not positive; the sampling rules need one above 0, "
            "for example 0.7"
        )
    rules: dict[str, dict[str, Any]] = {rule: {} for rule in RULES}
    for task in TEXT_TASKS:
        encoded = [pair.encode(prompt.text) for prompt in prompts if prompt.task == task]
        _check_prompts(pair, task, encoded, max_tokens)
        rates: dict[str, list[Tensor]] = {rule: [] for rule in RULES}
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, len(encoded), _BATCH):
            batch = encoded[start : start + _BATCH]
            found = _batch_rates(pair, batch, temperature, max_tokens, generator)
            for rule in RULES:
                rates[rule] += found[rule]
        for rule in RULES:
            rules[rule][task] = _summary(rates[rule])
    for per_task in rules.values():
        per_task["photo"] = dict(per_task[PHOTO_STANDS_FOR])
    return {
        "format_version": FORMAT_VERSION,
        "pair": pair.name,
        "temperature": temperature,
        "tasks": list(WORLD_TASKS),
        "rules": rules,
    }


def _batch_rates(
    pair: ModelPair,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    max_tokens: int,
    generator: torch.Generator,
) -> dict[str, list[Tensor]]:
    """Return each rule's rates over the texts that the target writes under that rule."""
    greedy, sampled = (
        sample_continuations(
            pair.target,
            prompts,
            max_tokens=max_tokens,
            temperature=served,
            end_token_id=pair.end_token_id,
            generator=generator,
        )
        for served in (0.0, temperature)
    )
    sampling_rules = [rule for rule in RULES if rule != "greedy"]
    return acceptance_rates(pair, prompts, greedy, 0.0, ["greedy"]) | acceptance_rates(
        pair, prompts, sampled, temperature, sampling_rules
    )


def _check_prompts(
    pair: ModelPair, task: str, encoded: Sequence[Sequence[int]], max_tokens: int
) -> None:
    if not encoded:
        raise UserError(
            f"no prompt of task '{task}'; acceptance is measured per task, so give some of each "
            f"of {', '.join(TEXT_TASKS)}"
        )
    longest = max(map(len, encoded))
    if longest + max_tokens > pair.context_tokens:
        raise UserError(
            f"a prompt of {longest} tokens and {max_tokens} more exceed the pair's context of "
            f"{pair.context_tokens}; shorten the prompts or max_tokens"
        )


def _summary(rates: Sequence[Tensor]) -> dict[str, float | int]:
    """Pool the rates of all tokens; spread them between prompts."""
    tested = torch.tensor([float(rate.numel()) for rate in rates], dtype=torch.float64)
    per_prompt = torch.stack([rate.double().mean() for rate in rates])
    mean = float((per_prompt * tested).sum() / tested.sum())
    variance = float((tested * (per_prompt - mean) ** 2).sum() / tested.sum())
    return {"mean": round(mean, 4), "std": round(math.sqrt(variance), 4), "prompts": len(rates)}
