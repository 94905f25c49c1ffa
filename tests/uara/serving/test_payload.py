"""The payload formulas against the frames that are really encoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from uara.decoding.protocol import (
    NO_TOKEN,
    Draft,
    Format,
    Frame,
    Open,
    RuleCode,
    Token,
    Verdict,
    encode,
)
from uara.decoding.row import EMPTY_PAIRS, Pairs
from uara.errors import UserError
from uara.serving.payload import CODEC_NAMES, CODECS, Codec, make_codec

VOCAB_SIZES = (300, 65_536, 70_000)
CODES = {"ids": RuleCode.IDS, "id_prob": RuleCode.ID_PROB, "topk": RuleCode.TOPK}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in CODEC_NAMES),
    *(("ids", {"ids_rule": rule}) for rule in ("onehot", "gumbel")),
    *(("id_prob", {"probability_bits": bits}) for bits in (16, 8)),
    *(("id_prob", {"lossy": True, "probability_bits": bits}) for bits in (32, 8)),
]


def frame_bits(frame: Frame, codec: Codec) -> int:
    code = CODES.get(codec.name, RuleCode.FULL)
    if codec.rule == "gumbel":
        code = RuleCode.GUMBEL
    form = Format(code, codec.vocab_size, codec.top_k, codec.probability_bits)
    return 8 * (len(encode(frame, form)) + codec.frame_overhead_bytes)


def pairs(count: int) -> Pairs:
    return Pairs(tuple(range(count)), (0.5 / max(count, 1),) * count)


def draft_of(length: int, codec: Codec) -> Draft:
    width = {"ids": 0, "id_prob": 1, "topk": codec.top_k, "full": codec.vocab_size}[codec.name]
    rows = tuple(pairs(width) for _ in range(length)) if width else ()
    return Draft(7, 3, 1, 99, NO_TOKEN, tuple(range(length)), rows)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_formula_equals_the_encoded_draft_for_every_length(
    name: str, options: dict[str, Any], vocab_size: int
) -> None:
    codec = make_codec(name, vocab_size=vocab_size, frame_overhead_bytes=28, **options)
    for length in (*range(9), 64, 127, 128, 200, 255, 256):
        if name == "full" and length > 8:
            continue
        assert codec.draft_bits(length) == frame_bits(draft_of(length, codec), codec)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_formula_equals_the_encoded_opening_frame(vocab_size: int) -> None:
    codec = make_codec("ids", vocab_size=vocab_size)
    for tokens in (0, 1, 63, 64, 127, 128, 4000, 40_000):
        prompt = tuple(i % vocab_size for i in range(tokens))
        values = [1, RuleCode.ID_PROB, 32, vocab_size, 0, 64, 2**63, 5, 0.7, 0, 1.0, NO_TOKEN]
        frame = Open(*values, prompt, 16, is_lossy=True)  # type: ignore[arg-type]
        assert codec.prompt_bits(tokens) == frame_bits(frame, codec)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_formula_equals_the_encoded_verdicts_and_their_mean(
    name: str, options: dict[str, Any]
) -> None:
    codec = make_codec(name, vocab_size=300, top_k=20, tail_draws=5, **options)
    accepted = Verdict(1, 2, 0, 50, 4, 17, True, EMPTY_PAIRS, EMPTY_PAIRS, 10)
    rejected = Verdict(1, 2, 0, 50, 1, 17, True, EMPTY_PAIRS, EMPTY_PAIRS, 10)
    if name == "id_prob":
        tails = 0 if "lossy" in options else 5
        rejected = Verdict(1, 2, 0, 50, 1, NO_TOKEN, True, pairs(20), pairs(tails), 10)
    bits = frame_bits(accepted, codec), frame_bits(rejected, codec)
    assert codec.verdict_bits_given(rejected=False) == bits[0]
    assert codec.verdict_bits_given(rejected=True) == bits[1]
    all_accepted = 0.8 * 0.8 * 0.8
    assert codec.verdict_bits(3, 0.8) == pytest.approx(
        all_accepted * bits[0] + (1 - all_accepted) * bits[1]
    )


def test_formula_equals_the_encoded_token() -> None:
    for codec in CODECS.values():
        assert codec.token_bits() == frame_bits(Token(1, 100, 5, False), codec)


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_tensors_and_numbers_give_the_same_bits(name: str) -> None:
    codec = make_codec(name, vocab_size=2048)
    lengths = torch.tensor([[0, 1, 5], [8, 13, 40]])
    alphas = torch.tensor([[0.5], [0.9]], dtype=torch.float64)
    for row in range(2):
        for column in range(3):
            length, alpha = int(lengths[row, column]), float(alphas[row, 0])
            assert codec.draft_bits(lengths)[row, column] == codec.draft_bits(length)
            assert codec.prompt_bits(lengths * 100)[row, column] == codec.prompt_bits(length * 100)
            bits = codec.verdict_bits(lengths, alphas)[row, column]
            assert float(bits) == pytest.approx(codec.verdict_bits(length, alpha))


def test_a_top_32_row_costs_one_and_a_half_kilobit_per_token() -> None:
    codec = make_codec("topk", vocab_size=32_000)
    assert codec.draft_bits(6) - codec.draft_bits(5) == (2 + 32 * (2 + 4)) * 8


def test_a_codec_names_the_acceptance_that_it_is_verified_with() -> None:
    names = {
        make_codec(name, top_k=4, **options).rule  # type: ignore[arg-type]
        for name, options in VARIANTS
    }
    assert names == {"greedy", "onehot", "gumbel", "maxc", "maxc_q8", "maxc_top4"}


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("zip", {}, "codec 'zip' is unknown; allowed: ids, id_prob, topk, full"),
        ("topk", {"vocab_size": 8, "top_k": 9}, "top_k 9 is out of range"),
        ("id_prob", {"tail_draws": 0}, "tail_draws 0"),
        ("id_prob", {"probability_bits": 12}, "probability_bits 12 is not allowed"),
        ("topk", {"probability_bits": 16}, "only id_prob has them"),
        ("full", {"lossy": True}, "only id_prob has them"),
        ("ids", {"ids_rule": "best"}, "ids_rule 'best' is unknown; allowed: greedy, onehot"),
        ("topk", {"ids_rule": "gumbel"}, "leave it out, or set the codec to ids"),
    ],
)
def test_a_wrong_codec_is_refused_in_one_line(
    name: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text) as caught:
        make_codec(name, **options)
    assert "\n" not in str(caught.value)
