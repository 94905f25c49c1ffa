"""The mathematics of draft and verify: laws, acceptance, residuals; no model, no clock, no socket.

Shape legend: V tokens of the vocabulary, g drafted tokens. A *row* is a law over the vocabulary,
float64 (V,), whose entries are whole multiples of 2^-24 and sum to 1 exactly: float32 on the wire
is then exactly the number that was drawn from, and differences of rows are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from uara.decoding.randomness import Choice, Purpose
from uara.decoding.row import EMPTY_PAIRS, Floats, Pairs, Row, outside, remembered, top_pairs

LATTICE = 2**24


class Sampling(msgspec.Struct, frozen=True, gc=False):
    """How logits become a law, on both ends alike.

    Attributes:
        temperature: divides the logits; 0 puts all mass on the largest (GREEDY).
        top_k: keeps the K most likely tokens; 0 keeps all.
        top_p: keeps the fewest most likely tokens that hold this mass; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling(temperature=0.0)


def to_lattice(weights: Floats) -> Floats:
    """Round weights to a row: floor to multiples of 2^-24; the largest remainders get one more.

    Args:
        weights: (V,) non-negative, not all zero.
    """
    scaled = weights / weights.sum() * LATTICE
    units = np.floor(scaled)
    missing = LATTICE - int(units.sum())
    if missing > 0:
        order = np.argsort(units - scaled, kind="stable")
        units[order[:missing]] += 1
    elif missing < 0:
        units[int(np.argmax(units))] += missing
    row = units / LATTICE
    assert float(row.sum()) == 1.0, "a row must sum to one"
    return np.asarray(row, np.float64)


def warp(logits: Floats, sampling: Sampling) -> Floats:
    """Turn logits into the row that tokens are drawn from and tested with.

    Args:
        logits: (V,) of one position, cast to float64 before anything else.
        sampling: temperature, then top-k, then top-p.
    """
    logits = np.asarray(logits, np.float64)
    if sampling.temperature == 0:
        row = np.zeros(len(logits))
        row[int(np.argmax(logits))] = 1.0
        return row
    weights = np.exp((logits - logits.max()) / sampling.temperature)
    weights /= weights.sum()
    if sampling.top_k:
        weights = _keep_most_likely(weights, sampling.top_k)
    if sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        mass_before = np.cumsum(weights[order]) - weights[order]
        weights = _keep_most_likely(weights, int((mass_before < sampling.top_p).sum()))
    return to_lattice(weights)


@remembered
def truncate(row: Floats, top_k: int) -> Floats:
    """Restrict a row to its `top_k` most likely tokens and renormalise."""
    return row if top_k >= np.count_nonzero(row) else to_lattice(_keep_most_likely(row, top_k))


def _keep_most_likely(weights: Floats, count: int) -> Floats:
    kept = np.zeros_like(weights)
    ids = np.argsort(-weights, kind="stable")[:count]
    kept[ids] = weights[ids]
    return np.asarray(kept / kept.sum(), np.float64)


def to_row(pairs: Pairs, vocab_size: int) -> Floats:
    """Spread pairs over the vocabulary."""
    row = np.zeros(vocab_size)
    np.add.at(row, list(pairs.ids), pairs.probabilities)
    return row


def accept_probability(target: float, draft: float) -> float:
    """Compute min(1, p(x) / q(x)) (Leviathan et al., arXiv 2211.17192; Chen et al., 2302.01318)."""
    assert draft > 0, "a drafted token has a positive probability"
    return min(1.0, target / draft)


def round_up(probabilities: Floats, bits: int) -> Floats:
    """Round probabilities up to what fits the wire.

    Args:
        probabilities: of rows, any shape.
        bits: 32 leaves them as they are; 16 is the IEEE half, whose least positive number is that
            of a row; 8 is the upper byte of a half.
    """
    assert bits in (8, 16, 32), f"{bits} bits per probability are not on offer"
    if bits == 32:
        return probabilities
    half = probabilities.astype(np.float16)
    # Positive floats are ordered as their bit patterns are.
    pattern = half.view(np.uint16).astype(np.int64) + (half.astype(np.float64) < probabilities)
    if bits == 8:
        pattern = (pattern + 0xFF) & 0xFF00
    return pattern.astype(np.uint16).view(np.float16).astype(np.float64)


def residual(target: Floats, draft: Floats, sent: Floats | None = None) -> Floats:
    """Compute the weights p - q min(1, p / q^) of the token after a rejection, not normalised.

    With q^ = q these are max(p - q, 0). Any q^ >= q keeps the law, since q min(1, p / q^) <= p;
    with a smaller q^ it would be lost.

    Args:
        target: p, any shape.
        draft: q, that shape.
        sent: q^ that acceptance is tested with; q if left out.
    """
    sent = draft if sent is None else sent
    share = np.divide(draft, sent, out=np.zeros_like(draft), where=sent > 0)
    return np.where(sent > target, target * (1.0 - share), target - draft)


def residual_of_token(target: float, draft: float, sent: float) -> float:
    """Compute the `residual` of one token."""
    if sent > target:
        return target * (1.0 - draft / sent)
    return target - draft


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a verification decided.

    Attributes:
        accepted: how many drafted tokens stand.
        token: the one after them; None if the device has to draw it from `top` and `tails`.
        top: Top-K of the target's row at the rejected position.
        tails: draws from the target outside that Top-K.
    """

    accepted: int
    token: int | None
    top: Pairs = EMPTY_PAIRS
    tails: Pairs = EMPTY_PAIRS


@dataclass(frozen=True)
class SplitRule:
    """How much of the target's row goes down when the device draws the residual itself."""

    top_k: int
    tail_draws: int


def verify(
    target_rows: Sequence[Floats],
    tokens: Sequence[int],
    draft_rows: Sequence[Pairs],
    split: SplitRule | None,
    base: int,
    choice: Choice,
    *,
    is_coupled: bool = False,
    has_bonus: bool = True,
) -> Outcome:
    """Test drafted tokens one after the other; the output's law is the target's.

    A draft that was certain of its tokens is tested by ONEHOT: x passes with p(x). Coupled tokens
    are tested by GUMBEL: x passes if it wins the target's own race under the shared noise, whose
    winner is the token in any case. Everything else is maximal coupling.

    Args:
        target_rows: g + 1 rows of the target, at the drafted positions and after them.
        tokens: g drafted tokens.
        draft_rows: per token, what is known of the law it was drawn from: its whole support, or
            the token alone with its probability when `split` is given; empty for ids alone, when
            the draft was certain of every token.
        split: None if the token after a rejection is drawn here.
        base: position of the first drafted token.
        choice: decides acceptance and draws tokens.
        is_coupled: whether drafts were drawn by the noise that both ends share.
        has_bonus: False to draw nothing behind a draft that passes whole.

    Raises:
        ValueError: if a drafted token has probability zero in its own law.
    """
    assert len(target_rows) == len(tokens) + 1, "one target row per draft token and one more"
    for i, token in enumerate(tokens):
        if is_coupled:
            own = draw_target(target_rows[i], base + i, choice, is_coupled=True)
            if own != token:
                return Outcome(i, own)
            continue
        known = draft_rows[i] if draft_rows else Pairs((token,), (1.0,))
        drafted = known.probability_of(token)
        if drafted <= 0:
            raise ValueError(f"token {token} was drafted with probability {drafted}")
        row = target_rows[i]
        passes = accept_probability(row.item(token), drafted)
        if choice.flip(Purpose.ACCEPT, base + i, passes):
            continue
        if split is not None:
            top = top_pairs(row, split.top_k)
            tails = draw_tails(row, top, split.tail_draws, 0, base + i, choice)
            return Outcome(i, None, top, tails)
        weights = residual(row, to_row(known, len(row)))
        return Outcome(i, choice.pick(Purpose.RESIDUAL, base + i, weights))
    end = len(tokens)
    if not has_bonus:
        return Outcome(end, None)
    return Outcome(end, draw_target(target_rows[end], base + end, choice, is_coupled=is_coupled))


def draw_target(row: Floats, position: int, choice: Choice, *, is_coupled: bool = False) -> int:
    """Draw the target's own token at a position, by the shared noise where drafts are coupled."""
    draw = choice.race if is_coupled else choice.pick
    return draw(Purpose.TARGET, position, row)


def draw_tails(
    row: Floats, top: Pairs, count: int, first: int, position: int, choice: Choice
) -> Pairs:
    """Draw `count` tokens from a row outside its Top-K; `first` numbers the first of them.

    Where nothing lies outside, the pairs are zeros, which a device never takes.
    """
    rest = outside(row, len(top))
    if rest is None:
        return Pairs((0,) * count, (0.0,) * count)
    ids = tuple(choice.pick(Purpose.TAIL, position, rest, first + k) for k in range(count))
    return Pairs(ids, tuple(float(row[token]) for token in ids))


class Resolution(msgspec.Struct, frozen=True, gc=False):
    """The token that a device drew after a rejection, or None and how many tails it refused."""

    token: int | None
    drawn: int


def resolve(
    draft: Floats,
    top: Pairs,
    tails: Pairs,
    first: int,
    position: int,
    choice: Choice,
    *,
    sent: Floats | None = None,
    is_lossy: bool = False,
) -> Resolution:
    """Draw from p - q min(1, p / q^) with only the Top-K of p and some draws from its tail.

    Rejection sampling under the envelope that equals the residual on the Top-K and p outside it:
    an atom of the Top-K is taken at once, a tail draw z with probability residual(z) / p(z).

    Args:
        draft: the row q that the rejected token was drawn from.
        top: Top-K of the target's row.
        tails: draws from the target outside the Top-K.
        first: how many tail draws were refused before these; if positive, one is awaited.
        position: of the rejected token.
        choice: decides.
        sent: q^, the row as the server would have it from the wire; q if left out.
        is_lossy: whether the residual outside the Top-K is left out.
    """
    sent = draft if sent is None else sent

    def weight(token: int, target: float) -> float:
        return residual_of_token(target, draft.item(token), sent.item(token))

    atoms = [weight(*pair) for pair in zip(top.ids, top.probabilities, strict=True)]
    if is_lossy:
        weights = np.array(atoms if any(atoms) else top.probabilities)
        return Resolution(top.ids[choice.pick(Purpose.ATOM, position, weights)], 0)
    envelope = Row.of(np.array([*atoms, 1.0 - sum(top.probabilities)]))
    for k in range(len(tails) + 1):
        index = first + k
        # After a refill the choice of the tail at this index has been made already.
        if not (first and k == 0):
            atom = choice.pick(Purpose.ATOM, position, envelope, index)
            if atom < len(top):
                return Resolution(top.ids[atom], index)
        if k == len(tails):
            return Resolution(None, index)
        token, target = tails.ids[k], tails.probabilities[k]
        if choice.flip(Purpose.THIN, position, weight(token, target) / target, index):
            return Resolution(token, index)
    raise AssertionError("the loop returns at its last step")


def lost_residual(target: Floats, draft: Floats, sent: Floats, top_k: int) -> float:
    """Compute the share of the residual that lies outside the target's Top-K.

    It is the distance in total variation between the exact law of the token after a rejection and
    that of a residual cut to the Top-K; times the probability of a rejection, that of the output.

    Args:
        target: p, (V,).
        draft: q, (V,).
        sent: q^, (V,).
        top_k: K.
    """
    weights = residual(target, draft, sent)
    inside = float(weights[list(top_pairs(target, top_k).ids)].sum())
    return 1.0 - inside / float(weights.sum())
