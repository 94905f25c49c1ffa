"""What branches behind guessed corrections would bring with a pair: hit rates, and what they cost.

Shapes: B texts, L positions, V vocabulary entries, G numbers of guesses, N positions of a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.pair.acceptance import overlap, sample_continuations
from experiments.pair.corpus import TEXT_TASKS
from uara.decoding.kv import Feed, SequenceModel, TransformerModel
from uara.decoding.models import ModelPair, Prompt
from uara.serving.hardware import PHONES
from uara.serving.machine import Phone

GUESSES = (1, 2, 3, 5, 8)
BLOCK = 6
BRANCH_ROWS = (0, 3, 6, 12, 24)
# A phone's draft of 1.24e9 weights in int8 at 10 TOPS, a quarter of an NPU's peak; the cache of
# Llama-3.2-1B: 16 layers x 8 heads x 64 x 2 (K, V) x 2 B.
PHONE_FLOP_PER_S = 10e12
DRAFT_KV_BYTES_PER_TOKEN = 16 * 8 * 64 * 2 * 2
DRAFT_WEIGHT_BYTES = 1.24e9


def maxc_hits(target: Tensor, draft: Tensor, guesses: Tensor) -> Tensor:
    """Compute the chance that a token is rejected by maximal coupling and its correction guessed.

    A drafted x is rejected with max(q - p, 0) at x, the correction drawn from max(p - q, 0), and
    the guesses are the draft's likeliest tokens but x: a guess counts if it is not x itself.

    Args:
        target: Laws p, shape (..., V).
        draft: Laws q, same shape.
        guesses: The draft's G + 1 likeliest tokens, shape (..., G + 1).

    Returns:
        Chances, shape (...).
    """
    lost, wanted = (draft - target).clamp_min(0), (target - draft).clamp_min(0)
    rejected = lost.sum(-1)
    of_guesses = lost.gather(-1, guesses)
    found = wanted.gather(-1, guesses)
    # If x is one of the first G, all G + 1 are guesses but x, whose own chance to come is zero.
    first = of_guesses[..., :-1].sum(-1) * found.sum(-1)
    other = (rejected - of_guesses[..., :-1].sum(-1)) * found[..., :-1].sum(-1)
    return torch.where(rejected > 0, (first + other) / rejected.clamp_min(1e-12), 0.0)


def onehot_hits(target: Tensor, draft: Tensor, guesses: Tensor) -> Tensor:
    """Compute likewise where the draft's likeliest token is tested by the target's draw of it."""
    return target.gather(-1, guesses[..., 1:]).sum(-1)


@dataclass(frozen=True)
class _Laws:
    """Of one text: p, q of shape (L, V), and the noise of a shared race."""

    target: Tensor
    draft: Tensor
    noise: Tensor


def _rates(rule: str, laws: _Laws) -> tuple[Tensor, Tensor]:
    """Return the chance of a rejection, (L,), and of a rejection whose correction is guessed.

    The second has shape (G, L).
    """
    p, q = laws.target, laws.draft
    if rule == "gumbel":
        race = q.log() + laws.noise
        own = (p.log() + laws.noise).argmax(-1)
        order = race.topk(max(GUESSES) + 1).indices
        rejected = order[:, 0] != own
        hits = [((order[:, 1 : g + 1] == own[:, None]).any(-1) & rejected).float() for g in GUESSES]
        return rejected.float(), torch.stack(hits)
    order = q.topk(max(GUESSES) + 1).indices
    if rule == "maxc":
        rejected = 1 - overlap(p, q)
        hits = [maxc_hits(p, q, order[:, : g + 1]) for g in GUESSES]
    else:
        rejected = 1 - p.gather(-1, order[:, :1]).squeeze(-1)
        hits = [onehot_hits(p, q, order[:, : g + 1]) for g in GUESSES]
    return rejected, torch.stack(hits)


RULES = ("greedy", "onehot", "gumbel", "maxc")


@torch.no_grad()
def _text_laws(
    pair: ModelPair, prompt: Sequence[int], text: Sequence[int], temperature: float, seed: int
) -> _Laws:
    ids = torch.tensor([[*prompt, *text]])
    start, generator = len(prompt) - 1, torch.Generator().manual_seed(seed)
    logits = [
        model(input_ids=ids, use_cache=False).logits[0, start:-1, : pair.vocab_size].float()
        for model in (pair.target, pair.draft)
    ]
    if temperature == 0:
        # Guesses are ranked by the draft's logits; the target's law is certain.
        one = torch.nn.functional.one_hot(logits[0].argmax(-1), logits[0].shape[-1]).float()
        return _Laws(one, logits[1].softmax(-1), torch.empty(0))
    target, draft = ((row / temperature).softmax(-1) for row in logits)
    noise = -torch.empty_like(target).exponential_(generator=generator).log()
    return _Laws(target, draft, noise)


def hit_rates(
    pair: ModelPair,
    prompts: Sequence[Prompt],
    temperature: float,
    *,
    max_tokens: int = 96,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how often the token after a rejection is among guesses, on texts of the target.

    Args:
        pair: draft and target.
        prompts: of the text tasks.
        temperature: served.
        max_tokens: longest text per prompt.
        seed: of the texts and of shared noise.

    Returns:
        per rule and task (and `all`): `by_guesses`, the hit rate for each number of guesses, and
        `by_position`, with 3 guesses, for a rejection at the 1st, 2nd, ... token of a block.
    """
    found: dict[str, dict[str, Any]] = {}
    for rule in RULES:
        served = 0.0 if rule == "greedy" else temperature
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for task in TEXT_TASKS:
            encoded = [pair.encode(prompt.text) for prompt in prompts if prompt.task == task]
            texts = sample_continuations(
                pair.target,
                encoded,
                max_tokens=max_tokens,
                temperature=served,
                end_token_id=pair.end_token_id,
                generator=torch.Generator().manual_seed(seed),
            )
            by_guesses = torch.zeros(2, len(GUESSES), dtype=torch.float64)
            by_position = torch.zeros(2, BLOCK, dtype=torch.float64)
            for i, (prompt, text) in enumerate(zip(encoded, texts, strict=True)):
                laws = _text_laws(pair, prompt, text, served, seed + i)
                rejected, hits = _rates("onehot" if rule == "greedy" else rule, laws)
                by_guesses += torch.stack([hits.sum(-1), rejected.sum().expand(len(GUESSES))])
                by_position += _block_sums(rejected, hits[GUESSES.index(3)])
            sums[task] = (by_guesses, by_position)
        guessed, placed = zip(*sums.values(), strict=True)
        sums["all"] = (torch.stack(guessed).sum(0), torch.stack(placed).sum(0))
        found[rule] = {
            task: {"by_guesses": _shares(of_guesses), "by_position": _shares(of_places)}
            for task, (of_guesses, of_places) in sums.items()
        }
    return found


def _block_sums(rejected: Tensor, hits: Tensor) -> Tensor:
    """Sum hits and rejections at each token of the blocks that begin anywhere in a text, (2, N)."""
    alive, sums = torch.ones_like(rejected), torch.zeros(2, BLOCK, dtype=torch.float64)
    for i in range(min(BLOCK, len(rejected))):
        sums[:, i] = torch.stack([(alive * hits).sum(), (alive * rejected).sum()])
        alive = (alive * (1 - rejected))[:-1]
        rejected, hits = rejected[1:], hits[1:]
    return sums


def _shares(sums: Tensor) -> list[float]:
    return [round(float(hit / all_), 4) if all_ else 0.0 for hit, all_ in sums.T]


def branch_share(
    model: SequenceModel,
    *,
    context_tokens: int = 160,
    repeats: int = 15,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """Measure what a branch adds to a draft step on this machine.

    Args:
        model: the draft.
        context_tokens: that each row has cached.
        repeats: timings of each number of rows; the least counts, since other work only adds.
        clock: seconds of processor time.

    Returns:
        the step's time without branches, and per branch its share of that by least squares.
    """
    context = [token % model.vocab_size for token in range(context_tokens)]
    cache = model.new_cache()
    model.forward([Feed(cache, context, context_tokens - 1)])
    least_s = []
    for rows in BRANCH_ROWS:
        spent = []
        for _ in range(repeats):
            caches = [cache.fork() for _ in range(rows + 1)]
            begun = clock()
            model.forward([Feed(own, [1]) for own in caches])
            spent.append(clock() - begun)
        least_s.append(min(spent))
    slope, base = np.polyfit(BRANCH_ROWS, least_s, 1)
    return {
        "context_tokens": context_tokens,
        "rows": list(BRANCH_ROWS),
        "step_s": [round(s, 6) for s in least_s],
        "share": round(float(slope / base), 4),
    }


def phone_share(phone: Phone, *, context_tokens: int = 512, shares_prefix: bool) -> float:
    """Derive what a branch adds to a phone's draft step, relative, by a roofline.

    A step reads all weights once; a branch adds its arithmetic, which is not taken to overlap with
    that, and where rows do not share the prefix it reads its keys and values too.

    Args:
        phone: whose memory bandwidth follows from its time per draft token.
        context_tokens: cached.
        shares_prefix: whether the rows of a step read the common prefix once.
    """
    compute_s = phone.draft_flop_per_token / PHONE_FLOP_PER_S
    bytes_per_s = DRAFT_WEIGHT_BYTES / phone.draft_time_s
    read_s = 0.0 if shares_prefix else DRAFT_KV_BYTES_PER_TOKEN * context_tokens / bytes_per_s
    return (compute_s + read_s) / phone.draft_time_s


def measure_branches(
    pair: ModelPair, prompts: Sequence[Prompt], temperature: float, max_tokens: int
) -> dict[str, Any]:
    """Measure hit rates and costs of branches; the content of `branches.json`."""
    return {
        "pair": pair.name,
        "temperature": temperature,
        "prompts": len(prompts),
        "max_tokens": max_tokens,
        "guesses": list(GUESSES),
        "hit_rates": hit_rates(pair, prompts, temperature, max_tokens=max_tokens),
        "this_machine": branch_share(TransformerModel(pair.draft, pair.vocab_size)),
        "phones": {
            name: {
                "shared_prefix": round(phone_share(phone, shares_prefix=True), 4),
                "own_prefix": round(phone_share(phone, shares_prefix=False), 4),
            }
            for name, phone in PHONES.items()
        },
    }
