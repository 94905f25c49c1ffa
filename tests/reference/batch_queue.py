"""A server that batches, event by event: the judge of the batching formula, with nothing of it."""

from __future__ import annotations

import random
from collections.abc import Sequence


def mean_cycles_s(
    think_s: Sequence[float],
    own_s: Sequence[float],
    base_s: float,
    *,
    jitter: float = 0.0,
    never_rests: bool = False,
    passes: int = 3000,
    seed: int = 0,
) -> list[float]:
    """Simulate one server with closed-loop devices and measure each device's mean cycle.

    The server starts a pass whenever it is free and a device waits, and takes along all that wait.
    When the pass ends, its devices leave to think and come back.

    Args:
        think_s: time that each device is away between two passes; 0 is plain decoding.
        own_s: time that each device adds to a pass.
        base_s: time of a pass that carries nothing.
        jitter: think times are uniform within this share of their mean.
        never_rests: passes go on for others even when none of the devices waits.
        passes: length of the simulation.
        seed: of the jitter and of the moments at which the devices start.

    Returns:
        mean seconds from the end of one pass to the end of the next, per device.
    """
    rng = random.Random(seed)
    devices = range(len(think_s))
    back_s = [rng.uniform(0, base_s + think) for think in think_s]
    first_s: list[float | None] = [None] * len(think_s)
    last_s = [0.0] * len(think_s)
    rounds = [0] * len(think_s)
    now = 0.0
    for number in range(passes):
        if not never_rests:
            now = max(now, min(back_s))
        batch = [device for device in devices if back_s[device] <= now]
        now += base_s + sum(own_s[device] for device in batch)
        for device in batch:
            back_s[device] = now + think_s[device] * rng.uniform(1 - jitter, 1 + jitter)
            if number < passes // 10:
                continue  # the start is forgotten
            if first_s[device] is None:
                first_s[device] = now
            else:
                rounds[device] += 1
            last_s[device] = now
    return [
        (last - first) / count
        for first, last, count in zip(first_s, last_s, rounds, strict=True)
        if first is not None
    ]
