"""Frames survive the wire, and what is no frame is refused."""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import pytest

from uara.decoding.protocol import (
    NO_TOKEN,
    Close,
    Draft,
    Error,
    Format,
    Frame,
    NeedP,
    Open,
    ProtocolError,
    RuleCode,
    Tails,
    Token,
    Verdict,
    decode,
    encode,
)
from uara.decoding.row import EMPTY_PAIRS, Pairs
from uara.decoding.rules import round_up, to_lattice

ROW = to_lattice(np.array([0.5, 0.2, 0.1, 0.3]))
PAIRS = Pairs((2, 0), tuple(ROW[[2, 0]].tolist()))
OPEN = Open(
    9, RuleCode.TOPK, 2, 4, 3, 64, 2**64 - 1, 2**63 + 5, 0.7, 5, 0.9, NO_TOKEN, (0, 1, 2, 3)
)
FRAMES: list[Frame] = [
    OPEN,
    Draft(9, 1, 2, 33, 3, (2, 0), (PAIRS, PAIRS)),
    Draft(9, 1, 2, 33, NO_TOKEN, (), ()),
    Draft(9, 1, 2, 33, NO_TOKEN, (2,), (PAIRS,), continues=True),
    Verdict(9, 1, 2, 33, 1, 3, False, EMPTY_PAIRS, EMPTY_PAIRS, 1234),
    Verdict(9, 1, 2, 33, 1, NO_TOKEN, True, PAIRS, PAIRS, 0),
    NeedP(9, 2, 34, 8),
    Tails(9, 2, 34, 8, PAIRS),
    Token(9, 40, 3, True),
    Close(9),
    Error(9, "no room"),
]


def listed(value: object) -> object:
    if isinstance(value, Pairs):
        return (list(value.ids), [float(probability) for probability in value.probabilities])
    if isinstance(value, tuple):
        return [listed(item) for item in value]
    return value


def fields(frame: Frame) -> dict[str, object]:
    return {name: listed(value) for name, value in msgspec.structs.asdict(frame).items()}


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
@pytest.mark.parametrize("vocab_size", [4, 70_000])
def test_a_frame_comes_out_as_it_went_in(frame: Frame, vocab_size: int) -> None:
    form = Format(RuleCode.TOPK, vocab_size, 2)
    if isinstance(frame, Open):
        frame = msgspec.structs.replace(frame, vocab_size=vocab_size)
    copy = decode(encode(frame, form), form)
    assert type(copy) is type(frame)
    assert fields(copy) == fields(frame)


@pytest.mark.parametrize(
    ("code", "row"),
    [
        (RuleCode.ID_PROB, Pairs((2,), (ROW.item(2),))),
        (RuleCode.FULL, Pairs(range(4), ROW)),
    ],
)
def test_every_codec_brings_its_rows_over(code: RuleCode, row: Pairs) -> None:
    form = Format(code, 4, 2)
    frame = Draft(1, 0, 0, 5, NO_TOKEN, (2,), (row,))
    assert fields(decode(encode(frame, form), form)) == fields(frame)


@pytest.mark.parametrize(("bits", "size"), [(32, 4), (16, 2), (8, 1)])
def test_rounded_probabilities_come_over_as_they_are(bits: int, size: int) -> None:
    form, whole = Format(RuleCode.ID_PROB, 4, 2, bits), Format(RuleCode.IDS, 4, 2)
    rows = tuple(Pairs((i,), tuple(round_up(ROW[[i]], bits).tolist())) for i in (2, 0, 3))
    frame = Draft(1, 0, 0, 5, NO_TOKEN, (2, 0, 3), rows)
    assert fields(decode(encode(frame, form), form)) == fields(frame)
    bare = Draft(1, 0, 0, 5, NO_TOKEN, (2, 0, 3), ())
    assert len(encode(frame, form)) == len(encode(bare, whole)) + 3 * size


@pytest.mark.parametrize(("bits", "is_lossy"), [(32, True), (16, False), (8, True)])
def test_the_opening_frame_agrees_on_rounding_and_loss(bits: int, is_lossy: bool) -> None:
    changed = {"rule": RuleCode.ID_PROB, "probability_bits": bits, "is_lossy": is_lossy}
    frame = msgspec.structs.replace(OPEN, **changed)
    assert decode(encode(frame, Format(RuleCode.ID_PROB, 4, 2))) == frame


def test_the_opening_frame_needs_no_agreement() -> None:
    assert decode(encode(OPEN, Format(RuleCode.TOPK, 4, 2))) == OPEN
    with pytest.raises(ProtocolError, match="begins with Open"):
        decode(encode(Token(1, 2, 3, True), Format(RuleCode.IDS, 4, 2)))


def broken() -> dict[str, bytes]:
    form = Format(RuleCode.ID_PROB, 4, 2)
    good = encode(Draft(1, 0, 0, 5, NO_TOKEN, (2,), (Pairs((2,), (0.5,)),)), form)
    header = Draft.LAYOUT.pack(1, 0, 0, 5, NO_TOKEN)
    token = np.array([2], "<u2").tobytes()
    half = np.array([0.5], "<f4").tobytes()

    def wire(*parts: object) -> bytes:
        body = msgspec.msgpack.encode(parts)
        return struct.pack("<I", len(body)) + body

    rounded = bytearray(encode(OPEN, form))
    rounded[9] |= 0x10  # `topk` has whole probabilities
    version = bytearray(encode(OPEN, form))
    version[8] = 77  # behind the length (4 bytes), array and tag (2), head of the binary (2)
    return {
        "length prefix": good[:-1],
        "length prefix ": b"",
        "malformed": wire(99, header),
        "malformed ": wire(2, header[:-1], token, half),
        "malformed  ": wire(2, header, token, half, b"more"),
        "expected 4 x 1": wire(2, header, token, b""),
        "outside 4 ids": wire(2, header, np.array([4], "<u2").tobytes(), half),
        "no whole number of token ids": wire(2, header, token + b"x", half),
        "outside .0, 1.": wire(2, header, token, np.array([1.5], "<f4").tobytes()),
        "outside .0, 1. ": wire(2, header, token, np.array([np.nan], "<f4").tobytes()),
        "no whole number of .id": wire(5, Tails.LAYOUT.pack(1, 2, 3, 0), b"abc"),
        "version 77": bytes(version),
        "rule 0x12 is unknown": bytes(rounded),
    }


@pytest.mark.parametrize("reason", broken())
def test_what_is_no_frame_is_refused(reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason.rstrip()):
        decode(broken()[reason], Format(RuleCode.ID_PROB, 4, 2))


def test_a_frame_has_no_more_text_than_prompt() -> None:
    frame = msgspec.structs.replace(OPEN, text_tokens=5)
    with pytest.raises(ProtocolError, match="5 text tokens in a prompt of 4"):
        decode(encode(frame, Format(RuleCode.TOPK, 4, 2)))


def test_the_first_part_of_a_block_is_as_long_as_a_draft_of_its_tokens() -> None:
    form = Format(RuleCode.TOPK, 4, 2)
    whole = Draft(9, 1, 2, 33, NO_TOKEN, (2,), (PAIRS,))
    part = Draft(9, 1, 2, 33, NO_TOKEN, (2,), (PAIRS,), continues=True)
    assert len(encode(part, form)) == len(encode(whole, form))
