"""How long blocks are that end at the first draft step past a limit (`async`).

Shape legend: all arguments broadcast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from uara.serving.modes.psd import TIME_SPREAD


@dataclass(frozen=True)
class BlockLength:
    """What is known of the length N of a block.

    Attributes:
        drafted: E[N].
        committed: tokens that its verdict commits, E[(1 - a^N) / (1 - a)].
        survives: chance that all its tokens are accepted, E[a^N].
    """

    drafted: Tensor
    committed: Tensor
    survives: Tensor


def cut_at(limit_s: Tensor, token_s: Tensor, gamma: Tensor, alpha: Tensor) -> BlockLength:
    """Compute the law of N, the number of steps to the first end S_N >= limit, at most gamma.

    N > k if the first k steps end before the limit. With steps of mean t and standard deviation
    s, P(N > k) = P(S_k < L), about Phi((L - k t) / (s sqrt(k))), and exact for the one uniform step
    k = 1. So E[N] = 1 + sum over k < gamma of P(N > k), the verdict commits a^k P(N > k) summed
    over k, and as N stops at what has been seen, drafting lasts t E[N] (Wald's identity).

    Args:
        limit_s: drafting time from which the block may go up.
        token_s: mean time of a draft step.
        gamma: planned draft length.
        alpha: acceptance.
    """
    limit = limit_s / token_s.clamp_min(1e-9)
    half_width = TIME_SPREAD * math.sqrt(3)
    drafted = committed = torch.ones_like(limit + gamma + alpha)
    goes_on = ((limit - 1 + half_width) / (2 * half_width)).clamp(0, 1)
    for steps in range(1, int(gamma.max())):
        if steps > 1:
            goes_on = torch.special.ndtr((limit - steps) / (TIME_SPREAD * math.sqrt(steps)))
        chance = torch.where(gamma > steps, goes_on, 0.0)
        drafted = drafted + chance
        committed = committed + alpha**steps * chance
    return BlockLength(drafted, committed, 1 - (1 - alpha) * committed)
