"""How ids and probabilities lie in a frame: fixed widths, little-endian, by the session's codec."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache

import numpy as np

from uara.decoding.row import EMPTY_PAIRS, Floats, Pairs


class ProtocolError(Exception):
    """A frame that does not keep to the protocol; the session that sent it is closed."""


class RuleCode(IntEnum):
    """Acceptance rule and draft payload of a session."""

    IDS = 0
    ID_PROB = 1
    TOPK = 2
    FULL = 3
    GUMBEL = 4  # token ids alone, as IDS


@dataclass(frozen=True)
class Format:
    """What both ends agreed on: width of an id and the draft payload.

    Attributes:
        rule: which probabilities go with a draft.
        vocab_size: number of token ids; up to 65,536 an id takes two bytes, else four.
        top_k: pairs per row of `topk` drafts and of `id_prob` verdicts.
        probability_bits: of a probability in `id_prob` drafts.
    """

    rule: RuleCode
    vocab_size: int
    top_k: int
    probability_bits: int = 32

    @cached_property
    def probability_bytes(self) -> int:
        """Bytes of a drafted token's probability."""
        return self.probability_bits // 8 if self.rule is RuleCode.ID_PROB else 4

    @cached_property
    def id_bytes(self) -> int:
        """Bytes of a token id."""
        return 2 if self.vocab_size <= 65_536 else 4

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that go with a drafted token."""
        return {
            RuleCode.IDS: 0,
            RuleCode.GUMBEL: 0,
            RuleCode.ID_PROB: self.probability_bytes,
            RuleCode.TOPK: self.top_k * (self.id_bytes + 4),
            RuleCode.FULL: self.vocab_size * 4,
        }[self.rule]

    def pack_ids(self, ids: Sequence[int]) -> bytes:
        """Pack token ids."""
        return _array(len(ids), "H" if self.id_bytes == 2 else "I").pack(*ids)

    def unpack_ids(self, data: bytes) -> tuple[int, ...]:
        """Unpack token ids.

        Raises:
            ProtocolError: if the bytes are no whole number of ids of the vocabulary.
        """
        count, rest = divmod(len(data), self.id_bytes)
        if rest:
            raise ProtocolError(f"{len(data)} bytes are no whole number of token ids")
        ids: tuple[int, ...] = _array(count, "H" if self.id_bytes == 2 else "I").unpack(data)
        if ids and max(ids) >= self.vocab_size:
            raise ProtocolError(f"token id {max(ids)} is outside {self.vocab_size} ids")
        return ids

    def pack_pairs(self, pairs: Pairs) -> bytes:
        """Pack ids, then probabilities as f32."""
        if not pairs.ids:
            return b""
        return self.pack_ids(pairs.ids) + _pack_probabilities(pairs.probabilities, 4)

    def unpack_pairs(self, data: bytes) -> Pairs:
        """Unpack what `pack_pairs` packed.

        Raises:
            ProtocolError: if the size is wrong or a probability lies outside [0, 1].
        """
        if not data:
            return EMPTY_PAIRS
        count, rest = divmod(len(data), self.id_bytes + 4)
        if rest:
            raise ProtocolError(f"{len(data)} bytes are no whole number of (id, probability)")
        cut = count * self.id_bytes
        return Pairs(self.unpack_ids(data[:cut]), unpack_probabilities(data[cut:]))

    def pack_rows(self, rows: tuple[Pairs, ...]) -> bytes:
        """Pack the draft's probabilities as the codec sends them."""
        if not self.row_bytes:
            return b""
        if self.rule is RuleCode.TOPK:
            return b"".join([self.pack_pairs(row) for row in rows])
        if self.rule is RuleCode.FULL:
            return b"".join([_pack_probabilities(row.probabilities, 4) for row in rows])
        own = [row.probabilities[0] for row in rows]
        return _pack_probabilities(own, self.probability_bytes)

    def unpack_rows(self, data: bytes, tokens: tuple[int, ...]) -> tuple[Pairs, ...]:
        """Unpack the probabilities that go with `tokens`, one row per token.

        Raises:
            ProtocolError: if there are not as many as the codec sends.
        """
        width = self.row_bytes
        if len(data) != width * len(tokens):
            raise ProtocolError(f"{len(data)} bytes of rows, expected {width} x {len(tokens)}")
        if not width:
            return ()
        if self.rule is RuleCode.ID_PROB:
            probabilities = unpack_probabilities(data, width)
            return tuple([Pairs((x,), (p,)) for x, p in zip(tokens, probabilities, strict=True)])
        parts = [data[i : i + width] for i in range(0, len(data), width)]
        if self.rule is RuleCode.TOPK:
            return tuple(self.unpack_pairs(part) for part in parts)
        ids = range(self.vocab_size)
        return tuple(Pairs(ids, _unpack_row(part)) for part in parts)


@lru_cache(4096)
def _array(count: int, letter: str) -> struct.Struct:
    return struct.Struct(f"<{count}{letter}")


def _pack_probabilities(values: Sequence[float] | Floats, width: int) -> bytes:
    """Pack probabilities that a float of `width` bytes holds exactly."""
    if isinstance(values, np.ndarray):
        return values.astype("<f4").tobytes()
    if width == 4:
        return _array(len(values), "f").pack(*values)
    data = _array(len(values), "e").pack(*values)
    return data if width == 2 else data[1::2]


def unpack_probabilities(data: bytes, width: int = 4) -> tuple[float, ...]:
    """Unpack probabilities of `width` bytes each.

    Raises:
        ProtocolError: if one lies outside [0, 1].
    """
    if width == 1:
        # A lone byte is the upper one of a half.
        data = b"".join([bytes((0, byte)) for byte in data])
    letter, size = ("f", 4) if width == 4 else ("e", 2)
    values: tuple[float, ...] = _array(len(data) // size, letter).unpack(data)
    for value in values:
        if not 0 <= value <= 1:
            raise ProtocolError("a probability lies outside [0, 1]")
    return values


def _unpack_row(data: bytes) -> Floats:
    """Unpack a probability for each token of the vocabulary."""
    values = np.frombuffer(data, "<f4").astype(np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise ProtocolError("a probability lies outside [0, 1]")
    return values
