"""What travels per round, in bits: codecs, each with its acceptance rule, as closed formulas.

The formulas hold for plain numbers and for tensors of any shape alike; they equal, byte for byte,
the frames that `uara.decoding.protocol` encodes. Frame layout: u32 length, array head and tag (1 B
each), then each field as a MessagePack binary of 2, 3 or 5 B of head and its content.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from uara.errors import UserError

Number = TypeVar("Number", float, Tensor)
CodecName = Literal["ids", "id_prob", "topk", "full"]

IdsRule = Literal["greedy", "onehot", "gumbel"]

CODEC_NAMES: tuple[CodecName, ...] = ("ids", "id_prob", "topk", "full")
IDS_RULES: tuple[IdsRule, ...] = ("greedy", "onehot", "gumbel")
PROBABILITY_BITS = (32, 16, 8)
DEFAULT_VOCAB_SIZE = 32_000  # Llama 2, the family of the racks' target
DEFAULT_TOP_K = 32
DEFAULT_TAIL_DRAWS = 8
DEFAULT_FRAME_OVERHEAD_BYTES = 40  # IPv4 and TCP headers without options

LENGTH_AND_HEAD_BYTES = 4 + 1 + 1
OPEN_HEADER_BYTES = 60
DRAFT_HEADER_BYTES = 20
VERDICT_HEADER_BYTES = 31
TOKEN_HEADER_BYTES = 13
PROBABILITY_BYTES = 4


def id_bytes(vocab_size: int) -> int:
    """Count the bytes of one token id: 2 up to 65,536 ids, else 4."""
    return 2 if vocab_size <= 65_536 else 4


def field_bytes(content: Number) -> Number:
    """Count the bytes of a MessagePack binary of `content` bytes (bin 8, bin 16, bin 32)."""
    return content + 2 + (content > 255) + 2.0 * (content > 65_535)


@dataclass(frozen=True)
class Codec:
    """What a draft and a verdict carry, and the acceptance rule that goes with it.

    `ids` sends token ids alone and is verified by GREEDY (both ends take the most likely token), by
    ONEHOT (the draft's most likely token passes with the target's probability of it) or by GUMBEL
    (both ends sample by the same noise). The others are verified by rejection sampling (maximal
    coupling, MAXC): `id_prob` sends the probability of each drafted token and
    gets, at a rejection, the Top-K of the target's row and draws from its tail; `topk` drafts from
    the renormalised Top-K of the draft's row and sends that row; `full` sends the whole row.

    Attributes:
        name: `ids`, `id_prob`, `topk` or `full`.
        rule: key of the acceptance profile: `greedy`, `onehot`, `gumbel`, `maxc`, `maxc_top<K>`, or
            `maxc_q8` for probabilities of 8 bits; those of 16 cost less than 2^-10 of acceptance.
        vocab_size: number of token ids.
        top_k: K of the rows sent by `topk` (up) and `id_prob` (down).
        tail_draws: draws from outside the Top-K that go with a rejection under `id_prob`.
        frame_overhead_bytes: added to every frame for the transport's headers.
        probability_bits: of a drafted token's probability under `id_prob`.
        is_lossy: whether a rejection under `id_prob` brings the Top-K alone, which biases the
            output by the residual outside it.
    """

    name: CodecName
    rule: str
    vocab_size: int
    top_k: int
    tail_draws: int
    frame_overhead_bytes: int
    probability_bits: int = 32
    is_lossy: bool = False

    @property
    def id_bytes(self) -> int:
        """Bytes of one token id."""
        return id_bytes(self.vocab_size)

    @property
    def row_bytes_per_token(self) -> int:
        """Bytes of draft probabilities that go with one drafted token."""
        return {
            "ids": 0,
            "id_prob": self.probability_bits // 8,
            "topk": self.top_k * (self.id_bytes + PROBABILITY_BYTES),
            "full": self.vocab_size * PROBABILITY_BYTES,
        }[self.name]

    @property
    def rejection_row_bytes(self) -> int:
        """Bytes of target probabilities that go with a rejection."""
        if self.name != "id_prob":
            return 0
        draws = 0 if self.is_lossy else self.tail_draws
        return (self.top_k + draws) * (self.id_bytes + PROBABILITY_BYTES)

    def _frame_bits(self, *fields: Number) -> Number:
        total = field_bytes(fields[0])
        for content in fields[1:]:
            total = total + field_bytes(content)
        return (total + (LENGTH_AND_HEAD_BYTES + self.frame_overhead_bytes)) * 8

    def prompt_bits(self, prompt_tokens: Number) -> Number:
        """Compute the bits of the frame that opens a request (uplink, once; photos not counted).

        Args:
            prompt_tokens: tokens of the prompt.
        """
        return self._frame_bits(
            OPEN_HEADER_BYTES + 0 * prompt_tokens, prompt_tokens * self.id_bytes
        )

    def draft_bits(self, draft_length: Number) -> Number:
        """Compute the bits of one draft (uplink, once per round).

        Args:
            draft_length: drafted tokens in the frame.
        """
        return self._frame_bits(
            DRAFT_HEADER_BYTES + 0 * draft_length,
            draft_length * self.id_bytes,
            draft_length * self.row_bytes_per_token,
        )

    def verdict_bits(self, draft_length: Number, acceptance: Number) -> Number:
        """Compute the expected bits of one verdict (downlink, once per round).

        The rejection payload is weighted by P(reject) = 1 - alpha^gamma. Requests for more tail
        draws (`id_prob`, when all of `tail_draws` are refused) are rare and not counted.

        Args:
            draft_length: drafted tokens tested, gamma.
            acceptance: accepted / tested tokens, alpha.
        """
        accepted = self.verdict_bits_given(rejected=False)
        rejected = self.verdict_bits_given(rejected=True)
        reject_probability: Number = 1 - acceptance**draft_length
        return accepted + (rejected - accepted) * reject_probability

    def verdict_bits_given(self, *, rejected: bool) -> float:
        """Compute the bits of one verdict, given whether a draft token was rejected."""
        row = self.rejection_row_bytes if rejected else 0
        return self._frame_bits(float(VERDICT_HEADER_BYTES), float(row))

    def token_bits(self) -> float:
        """Compute the bits of one token that the server decodes alone (downlink)."""
        return self._frame_bits(float(TOKEN_HEADER_BYTES))


def make_codec(
    name: str,
    *,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    top_k: int = DEFAULT_TOP_K,
    tail_draws: int = DEFAULT_TAIL_DRAWS,
    frame_overhead_bytes: int = DEFAULT_FRAME_OVERHEAD_BYTES,
    ids_rule: str = "greedy",
    probability_bits: int = 32,
    lossy: bool = False,
) -> Codec:
    """Make a codec of that name for a vocabulary.

    Raises:
        UserError: if the name is unknown, a count is out of range, or an option is given that the
            codec does not have.
    """
    if name not in CODEC_NAMES:
        raise UserError(f"codec '{name}' is unknown; allowed: {', '.join(CODEC_NAMES)}")
    if not 1 <= top_k <= vocab_size:
        raise UserError(f"top_k {top_k} is out of range; give 1 to the vocabulary's {vocab_size}")
    if tail_draws < 1 or frame_overhead_bytes < 0:
        raise UserError(
            f"tail_draws {tail_draws} and frame_overhead_bytes {frame_overhead_bytes} are not "
            "both allowed; give at least 1 draw and at least 0 bytes"
        )
    _check_options(name, ids_rule, probability_bits, lossy=lossy)
    rules = {"ids": ids_rule, "topk": f"maxc_top{top_k}"}
    rule = "maxc_q8" if probability_bits == 8 else rules.get(name, "maxc")
    return Codec(
        name,
        rule,
        vocab_size,
        top_k,
        tail_draws,
        frame_overhead_bytes,
        probability_bits,
        lossy,
    )


def _check_options(name: str, ids_rule: str, probability_bits: int, *, lossy: bool) -> None:
    if ids_rule not in IDS_RULES:
        raise UserError(f"ids_rule '{ids_rule}' is unknown; allowed: {', '.join(IDS_RULES)}")
    if probability_bits not in PROBABILITY_BITS:
        raise UserError(f"probability_bits {probability_bits} is not allowed; give 32, 16 or 8")
    if name != "ids" and ids_rule != "greedy":
        raise UserError(
            f"ids_rule '{ids_rule}' was given with codec '{name}', which is verified by maximal "
            "coupling; leave it out, or set the codec to ids"
        )
    if name != "id_prob" and (probability_bits != 32 or lossy):
        raise UserError(
            f"probability_bits {probability_bits} and lossy {lossy} were given with codec "
            f"'{name}'; only id_prob has them: leave both out, or set the codec to id_prob"
        )


CODECS: dict[str, Codec] = {name: make_codec(name) for name in CODEC_NAMES}
