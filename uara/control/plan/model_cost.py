"""FLOPs, time and memory of draft and verify passes of a batch, as arXiv 2510.11331 counts them.

Arrays of any one shape are taken and returned; rounds are counted from 1.

Per layer and token of a model of width h1 and inner width h2: 8 h1^2 + 4 h1 h2 for the matrices and
4 h1 for every token attended to (FlexGen, arXiv 2303.06865, appendix). The feed-forward part counts
two matrices, and embeddings and output layer are left out, both as the paper has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

FP16_BYTES = 2


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a transformer follows from."""

    layers: int
    width: int  # h1
    inner_width: int  # h2, of the feed-forward part

    @property
    def matrix_flop(self) -> float:
        """FLOPs of all matrices for one token."""
        return float(self.layers * (8 * self.width**2 + 4 * self.width * self.inner_width))

    @property
    def attention_flop(self) -> float:
        """FLOPs for one token that attends to one token."""
        return 4.0 * self.layers * self.width

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights in fp16: two FLOPs and two bytes per weight."""
        return self.matrix_flop / 2 * FP16_BYTES

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of a token's keys and values in fp16."""
        return 2.0 * FP16_BYTES * self.layers * self.width


# (68M: the card of JackFram/llama-68m; the others: the LLaMA and TinyLlama papers.)
MODELS: dict[str, ModelShape] = {
    "68m": ModelShape(2, 768, 3072),
    "1.1b": ModelShape(22, 2048, 5632),
    "7b": ModelShape(32, 4096, 11008),
    "13b": ModelShape(40, 5120, 13824),
}


@dataclass(frozen=True)
class PassTime:
    """Time of one forward pass of a batch: `s_per_flop` x FLOPs of a task x tasks + `fixed_s`."""

    s_per_flop: float  # c1
    fixed_s: float  # c2

    def __call__(self, tasks: ArrayLike, flop: ArrayLike) -> Array:
        """Compute seconds of a pass over a batch of `tasks`, each of `flop` FLOPs."""
        work = np.asarray(flop, np.float64) * np.asarray(tasks, np.float64)
        return np.asarray(self.s_per_flop * work + self.fixed_s)


def tokens_per_round(acceptance: float, draft_length: ArrayLike) -> Array:
    """Compute the tokens that a round brings on average, (1 - a^(l+1)) / (1 - a)."""
    length = np.asarray(draft_length, np.float64)
    if acceptance >= 1:
        return length + 1
    return np.asarray((1 - acceptance ** (length + 1)) / (1 - acceptance))


def rounds_needed(output_tokens: int, acceptance: float, draft_length: ArrayLike) -> Array:
    """Count the rounds of an answer, the ceiling of its length over the tokens of a round."""
    # A hair below, so that an exact quotient is not lifted by rounding.
    share = output_tokens / tokens_per_round(acceptance, draft_length)
    return np.ceil(share - 1e-9)


def chunk_flop(shape: ModelShape, tokens: ArrayLike, context_tokens: ArrayLike) -> Array:
    """Count FLOPs of one pass of `tokens` new tokens of one task on a cache of `context_tokens`.

    With no cache it is the prefill J (8 I h1^2 + 4 I^2 h1 + 4 I h1 h2), with one token the decode
    step J (8 h1^2 + 4 (c + 1) h1 + 4 h1 h2) of the paper.
    """
    new = np.asarray(tokens, np.float64)
    attended = np.asarray(context_tokens, np.float64) + new
    return shape.matrix_flop * new + shape.attention_flop * new * attended


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one stage of batches in round 1, in round 2, and how much each later round adds.

    A stage's FLOPs are linear in the context, which grows by the same number of tokens per round.
    """

    first_s: Array
    second_s: Array
    growth_s: Array  # per round beyond the second

    def at(self, round_number: ArrayLike) -> Array:
        """Compute seconds in rounds 1, 2, ...; broadcasts."""
        number = np.asarray(round_number, np.float64)
        later = self.second_s + (number - 2) * self.growth_s
        return np.where(number < 2, self.first_s, later)

    def total(self, rounds: ArrayLike) -> Array:
        """Sum over rounds 1 .. `rounds`."""
        number = np.asarray(rounds, np.float64)
        later = (number - 1) * self.second_s + (number - 1) * (number - 2) / 2 * self.growth_s
        return self.first_s + later


@dataclass(frozen=True)
class ServingCost:
    """Both models on their machines, and how they speculate."""

    draft: ModelShape
    verify: ModelShape
    draft_pass: PassTime
    verify_pass: PassTime
    acceptance: float
    output_tokens: int  # to which every answer is reckoned, O_max

    def rounds(self, draft_length: ArrayLike) -> Array:
        """Count rounds of an answer."""
        return rounds_needed(self.output_tokens, self.acceptance, draft_length)

    def draft_stage(
        self, tasks: ArrayLike, input_tokens: ArrayLike, draft_length: ArrayLike
    ) -> StageTimes:
        """Time the l draft passes of a round of batches.

        In round 1 the first pass is the prefill; pass i of round n finds a cache of
        I + (n - 1) L + i - 1 tokens.

        Args:
            tasks: in the batch.
            input_tokens: I, to which all prompts of the batch are padded.
            draft_length: l.
        """
        count, prompt = np.asarray(tasks, np.float64), np.asarray(input_tokens, np.float64)
        length = np.asarray(draft_length, np.float64)
        step = tokens_per_round(self.acceptance, length)
        shape = self.draft

        def passes(number: Array, context: Array, cached: Array) -> Array:
            # Passes of one token each; `cached` sums what the passes of the round have added.
            attended = number * (context + 1) + cached
            return shape.matrix_flop * number + shape.attention_flop * attended

        in_round = length * (length - 1) / 2
        first = chunk_flop(shape, prompt, 0) + passes(length - 1, prompt, in_round)
        second = passes(length, prompt + step, in_round)
        growth = shape.attention_flop * length * step
        scale, fixed = self.draft_pass.s_per_flop * count, self.draft_pass.fixed_s * length
        return _stage(scale * first + fixed, scale * second + fixed, scale * growth)

    def verify_stage(
        self, tasks: ArrayLike, input_tokens: ArrayLike, draft_length: ArrayLike
    ) -> StageTimes:
        """Time the verify pass of a round: I + l tokens in round 1, then l + 1 on the cache.

        Args:
            tasks: in the batch.
            input_tokens: I, to which all prompts of the batch are padded.
            draft_length: l.
        """
        prompt, length = np.asarray(input_tokens, np.float64), np.asarray(draft_length, np.float64)
        step = tokens_per_round(self.acceptance, length)
        first = self.verify_pass(tasks, chunk_flop(self.verify, prompt + length, 0))
        second = self.verify_pass(tasks, chunk_flop(self.verify, length + 1, prompt + step))
        scale = self.verify_pass.s_per_flop * np.asarray(tasks, np.float64)
        growth = scale * self.verify.attention_flop * (length + 1) * step
        return _stage(first, second, growth)

    def plain_decoding_s(self, tasks: ArrayLike, input_tokens: ArrayLike) -> Array:
        """Time a batch that the verify model alone decodes, token by token.

        The prefill gives the first token, and pass n finds a cache of I + n - 1 tokens.
        """
        prompt = np.asarray(input_tokens, np.float64)
        passes = self.output_tokens - 1.0
        attended = passes * (prompt + 1) + passes * (passes - 1) / 2
        steps = self.verify.matrix_flop * passes + self.verify.attention_flop * attended
        flop = chunk_flop(self.verify, prompt, 0) + steps
        scale = self.verify_pass.s_per_flop * np.asarray(tasks, np.float64)
        return np.asarray(scale * flop + (passes + 1) * self.verify_pass.fixed_s)

    def batch_bytes(self, tasks: ArrayLike, input_tokens: ArrayLike) -> Array:
        """Count bytes of the draft model's cache of a batch, with room for the whole answers."""
        tokens = np.asarray(input_tokens, np.float64) + self.output_tokens
        return np.asarray(tasks, np.float64) * self.draft.kv_bytes_per_token * tokens


def _stage(first_s: Array, second_s: Array, growth_s: Array) -> StageTimes:
    first, second, growth = np.broadcast_arrays(first_s, second_s, growth_s)
    return StageTimes(first, second, growth)
