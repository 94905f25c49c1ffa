"""Requests of a real run: prompts of a decode set with the arrivals and priced sizes of a world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uara.decoding.models import ModelPair, Prompt
from uara.decoding.randomness import derive_seed
from uara.decoding.scenario import Request
from uara.errors import UserError
from uara.world.config import WorldConfig
from uara.world.requests import TaskType

# A question on a photo has no text of its own kind; its answer reads like one in a chat.
TEXT_OF_TASK = {"photo": "chat"}


def make_requests(
    pair: ModelPair,
    prompts: Sequence[Prompt],
    world: WorldConfig,
    *,
    num_devices: int,
    count: int,
    output_tokens: int,
    seed: int,
) -> list[Request]:
    """Give prompts to devices, task types in turn, with Poisson arrivals.

    Args:
        pair: whose tokenizer reads the texts.
        prompts: a decode set; each task type walks through its own.
        world: task types (priced prompt length, attachment) and arrivals per device.
        num_devices: request i belongs to device i mod this number.
        count: how many.
        output_tokens: tokens of every answer; no end token stops it before.
        seed: of arrivals and lengths.

    Raises:
        UserError: if a task type has no prompts.
    """
    texts: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        texts.setdefault(prompt.task, []).append(prompt)
    tasks = world.requests.tasks
    wanted = [TEXT_OF_TASK.get(task.name, task.name) for task in tasks]
    missing = sorted(set(wanted) - set(texts))
    if missing:
        raise UserError(
            f"the decode set has no prompts of task {', '.join(missing)}; it has "
            f"{', '.join(sorted(texts))}: add prompts or rename the world's tasks"
        )
    arrivals_s = np.zeros(num_devices)
    requests = []
    for sid in range(count):
        index, device = sid % len(tasks), sid % num_devices
        generator = np.random.default_rng(derive_seed(seed, "request", sid))
        arrivals_s[device] += generator.exponential(1 / world.requests.arrivals_per_s)
        own = texts[wanted[index]]
        text = tuple(pair.encode(own[sid // len(tasks) % len(own)].text))
        requests.append(
            Request(
                sid=sid,
                device=device,
                arrival_s=float(arrivals_s[device]),
                text=text,
                prompt_tokens=max(len(text), _prompt_tokens(tasks[index], generator)),
                max_new=output_tokens,
                task=index,
                attachment_bits=tasks[index].attachment_bits,
            )
        )
    return requests


def _prompt_tokens(task: TaskType, generator: np.random.Generator) -> int:
    """Draw a prompt length: the minimum plus an exponential part, cut at the maximum."""
    scale = task.prompt_tokens_mean - task.prompt_tokens_min
    drawn = task.prompt_tokens_min + generator.exponential(scale)
    return round(min(drawn, task.prompt_tokens_max))
