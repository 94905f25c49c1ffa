"""Draft and verify on a table of laws, without models, kernel or frames; cases of rule and codec.

Shape legend: V tokens of the vocabulary. A law depends on the last two tokens, so that the joint
law of the first tokens is known exactly, and every random choice goes through one source: keyed
draws for a sample, `Enumeration` for all possibilities at once.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from uara.decoding import rules
from uara.decoding.contract import Contract
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Choice, Draws, Purpose
from uara.decoding.row import Floats, Pairs
from uara.decoding.rules import GREEDY, Outcome, Sampling, warp

Tokens = tuple[int, ...]
Law = dict[Tokens, float]

VOCAB = 5
TOKENS = 3
TEXT = (0, 1)
LENGTHS = (3, 1, 2, 0, 2, 3, 1)  # drafted per round, from a place in the list that trials rotate
PLAIN = Sampling()


@dataclass(frozen=True)
class Tables:
    """Logits of target and draft, (V, V, V): one before last, last, next."""

    target: Floats
    draft: Floats

    @classmethod
    def draw(cls, vocab_size: int = VOCAB, seed: int = 0, concentration: float = 2.0) -> Tables:
        """Draw flat laws, on which a defect shows: Dirichlet with a concentration of 1 to 3."""
        generator = np.random.default_rng(seed)
        shape = (vocab_size, vocab_size)
        laws = [generator.dirichlet([concentration] * vocab_size, shape) for _ in range(2)]
        return cls(np.log(laws[0]), np.log(laws[1]))

    def rows(self, contract: Contract) -> tuple[Floats, Floats]:
        """Warp all logits, the target's and the draft's."""
        pairs = ((self.target, contract.sampling), (self.draft, contract.draft_sampling))
        warped = [np.apply_along_axis(warp, -1, logits, sampling) for logits, sampling in pairs]
        return warped[0], warped[1]


@dataclass
class Trial:
    """Drafts and verifies until some tokens are there; what a mutant may override is public.

    Attributes:
        contract: rule and codec.
        tables: laws.
        tokens: how many of the first tokens are returned.
        lengths: of the drafts of successive rounds, over and over.
        offset: place in `lengths` of the first round.
    """

    contract: Contract
    tables: Tables
    tokens: int = TOKENS
    lengths: Sequence[int] = LENGTHS
    offset: int = 0
    _rows: tuple[Floats, Floats] = field(init=False)

    def __post_init__(self) -> None:
        self._rows = self.tables.rows(self.contract)

    def target_row(self, done: Tokens) -> Floats:
        """Return the target's row behind some tokens."""
        before, last = (*TEXT, *done)[-2:]
        return np.asarray(self._rows[0][before, last])

    def draft_law(self, done: Tokens) -> Floats:
        """Return the row that a draft token is drawn from."""
        before, last = (*TEXT, *done)[-2:]
        return self.contract.draft_law(self._rows[1][before, last])

    def drafted(self, law: Floats, position: int, choice: Choice) -> int:
        """Draw a draft token."""
        return self.contract.draw_draft(law, position, choice)

    def reported(self, law: Floats) -> Floats:
        """Return the row that is said to be the one drawn from."""
        return law

    def keeps(self, law: Floats, token: int) -> bool:
        """Whether a drawn token is submitted."""
        return True

    def verified(
        self,
        rows: Sequence[Floats],
        tokens: Tokens,
        sent: Sequence[Pairs],
        base: int,
        choice: Choice,
    ) -> Outcome:
        """Test a draft."""
        return self.contract.verify(rows, tokens, sent, base, choice)

    def committed(
        self, tokens: Tokens, accepted: int, token: int, rows: Sequence[Floats], choice: Choice
    ) -> Tokens:
        """Return what a round adds to the answer."""
        return (*tokens[:accepted], token)

    def resolved(
        self, law: Floats, outcome: Outcome, row: Floats, position: int, choice: Choice
    ) -> int:
        """Draw the token after a rejection on the device, asking for more tails as needed."""
        tails, drawn = outcome.tails, 0
        while True:
            result = self.contract.resolve(law, outcome.top, tails, drawn, position, choice)
            if result.token is not None:
                return result.token
            if isinstance(choice, Enumeration) and drawn:
                sent = rules.round_up(law, self.contract.probability_bits)
                return choice.close(rules.residual(row, law, sent), row, outcome.top)
            drawn = result.drawn
            count = self.contract.tail_draws
            tails = rules.draw_tails(row, outcome.top, count, drawn, position, choice)

    def __call__(self, choice: Choice) -> Tokens:
        """Return the first tokens."""
        done: Tokens = ()
        turn, epoch = self.offset, 0
        while len(done) < self.tokens:
            length = self.lengths[turn % len(self.lengths)]
            own = choice.in_epoch(epoch) if isinstance(choice, Draws) else choice
            more, rejected = self._round(done, length, own)
            done, turn, epoch = (*done, *more), turn + 1, epoch + rejected
        return done[: self.tokens]

    def _round(self, done: Tokens, length: int, choice: Choice) -> tuple[Tokens, bool]:
        base = len(TEXT) + len(done)
        tokens: Tokens = ()
        laws, sent = [], []
        for i in range(length):
            law = self.draft_law((*done, *tokens))
            token = self.drafted(law, base + i, choice)
            if not self.keeps(law, token):
                break
            laws.append(law)
            sent.append(self.contract.sent(self.reported(law), token))
            tokens = (*tokens, token)
        rows = [self.target_row((*done, *tokens[:i])) for i in range(len(tokens) + 1)]
        if not tokens:
            return (self.contract.draw_target(rows[0], base, choice),), False
        known = [pairs for pairs in sent if len(pairs)]
        outcome = self.verified(rows, tokens, known, base, choice)
        at, last = outcome.accepted, outcome.token
        if last is None:
            last = self.resolved(laws[at], outcome, rows[at], base + at, choice)
        return self.committed(tokens, at, last, rows, choice), at < len(tokens)

    def target_law(self) -> Law:
        """Multiply the target's conditional laws along every sequence."""
        law = {}
        vocab_size = self.tables.target.shape[-1]
        for tokens in itertools.product(range(vocab_size), repeat=self.tokens):
            probability = 1.0
            for i, token in enumerate(tokens):
                probability *= float(self.target_row(tokens[:i])[token])
            law[tokens] = probability
        return law


class Enumeration:
    """A source of choices that follows a given path and notes the branches beside it."""

    def __init__(self, path: Tokens = ()) -> None:
        """Start at the root; `path` holds the choices to make first."""
        self.path, self.step, self.probability = path, 0, 1.0
        self.taken: list[int] = []
        self.branches: list[Tokens] = []
        self._raced: dict[int, tuple[Floats, int]] = {}

    def choose(self, weights: Floats) -> int:
        """Make the next choice of the path, or the first possible one."""
        options = [int(i) for i in np.flatnonzero(weights)]
        if self.step < len(self.path):
            chosen = self.path[self.step]
        else:
            chosen = options[0]
            self.branches += [(*self.taken, other) for other in options[1:]]
        self.step += 1
        self.taken.append(chosen)
        self.probability *= float(weights[chosen] / weights.sum())
        return chosen

    def flip(self, purpose: Purpose, position: int, probability: float, index: int = 0) -> bool:
        """Decide both ways, one path each."""
        return self.choose(np.array([1 - probability, probability])) == 1

    def pick(self, purpose: Purpose, position: int, weights: Floats, index: int = 0) -> int:
        """Pick every index, one path each."""
        return self.choose(weights)

    def race(self, purpose: Purpose, position: int, weights: Floats) -> int:
        """Pick every index; the second race at a position under the noise of the first."""
        if position not in self._raced:
            winner = self.choose(weights)
            self._raced[position] = (weights, winner)
            return winner
        first, winner = self._raced.pop(position)
        return self.choose(joint_race(first, weights)[winner])

    def close(self, residual: Floats, target: Floats, top: Pairs) -> int:
        """End a search through tail draws, one of which is awaited, as if it went on for ever."""
        tail_target, tail_residual = target.copy(), residual.copy()
        ids = list(top.ids)
        tail_target[ids] = tail_residual[ids] = 0
        begins_anew = float((tail_target - tail_residual).sum())
        if self.choose(np.array([tail_residual.sum(), begins_anew])):
            return self.choose(residual)
        return self.choose(tail_residual)


def joint_race(first: Floats, second: Floats) -> Floats:
    """Compute P(i wins a race by the first law, j by the second, under one noise), (V, V).

    With exponential numbers E, i wins the first if E_i / q_i is least and j the second if E_j / p_j
    is. For j = i the probability is 1 / sum over k of max(p_k / p_i, q_k / q_i). For j != i and
    E_j = r E_i it takes q_j / q_i <= r <= p_j / p_i, and all others behind both; over E_i the
    integral is 1 / (1 + r + sum over k of max(q_k / q_i, r p_k / p_j))^2, over r piecewise
    that of 1 / (A + B r)^2.
    """
    q, p = first / first.sum(), second / second.sum()
    joint = np.zeros((len(q), len(q)))
    for i, j in itertools.product(np.flatnonzero(q), np.flatnonzero(p)):
        if i == j:
            joint[i, i] = 1 / np.maximum(p / p[i], q / q[i]).sum()
            continue
        low, high = q[j] / q[i], p[j] / p[i] if p[i] else np.inf
        if high <= low:
            continue
        others = [k for k in range(len(q)) if k not in (i, j)]
        flat = q[others] / q[i]
        slope = p[others] / p[j]
        with np.errstate(divide="ignore", invalid="ignore"):
            turns = np.where(slope > 0, flat / slope, np.inf)
        inner = sorted({float(r) for r in turns if low < r < high})
        for left, right in itertools.pairwise([low, *inner, high]):
            is_steep = turns <= left
            constant = 1 + flat[~is_steep].sum()
            rise = 1 + slope[is_steep].sum()
            joint[i, j] += (1 / (constant + rise * left) - 1 / (constant + rise * right)) / rise
    return joint


def exact_law(trial: Trial, source: type[Enumeration] = Enumeration) -> Law:
    """Enumerate every possibility of a trial."""
    law: Law = defaultdict(float)
    pending: list[Tokens] = [()]
    while pending:
        choices = source(pending.pop())
        law[trial(choices)] += choices.probability
        pending += choices.branches
    return law


def total_variation(law: Law, other: Law) -> float:
    """Compute half the sum of absolute differences."""
    return sum(abs(law.get(key, 0.0) - other.get(key, 0.0)) for key in {*law, *other}) / 2


@dataclass(frozen=True)
class Fit:
    """Drawn sequences against a law.

    Attributes:
        draws: how many.
        chi_square: of the joint law, cells with less than 5 expected merged.
        p_value: chance of a larger one; 0 where an impossible sequence was drawn.
        total_variation: between drawn and expected shares; about sqrt(cells / draws) / 2 by chance.
    """

    draws: int
    chi_square: float
    p_value: float
    total_variation: float


def fit(drawn: Sequence[Tokens], law: Law) -> Fit:
    """Compare drawn sequences with a law."""
    observed: dict[Tokens, int] = defaultdict(int)
    for tokens in drawn:
        observed[tuple(tokens)] += 1
    count = len(drawn)
    shares = {tokens: seen / count for tokens, seen in observed.items()}
    distance = total_variation(shares, law)
    if any(law.get(tokens, 0.0) == 0 for tokens in observed):
        return Fit(count, np.inf, 0.0, distance)
    common = [tokens for tokens in law if law[tokens] * count >= 5]
    seen = [observed[tokens] for tokens in common]
    wanted = [law[tokens] * count for tokens in common]
    if (rest := count - sum(wanted)) > 1e-6 * count:
        seen.append(count - sum(seen))
        wanted.append(rest)
    if len(seen) == 1:
        return Fit(count, 0.0, 1.0, distance)
    wanted = [value * count / sum(wanted) for value in wanted]
    result = stats.chisquare(seen, wanted)
    return Fit(count, float(result.statistic), float(result.pvalue), distance)


def sample(
    trial: Trial, draws: int, *, seed: int = 0, source: Callable[[int], Choice] = Draws
) -> list[Tokens]:
    """Run a trial many times, each with a seed and an offset of its own."""
    drawn = []
    for number in range(draws):
        trial.offset = number
        drawn.append(trial(source(seed << 32 | number)))
    return drawn


CASES: dict[str, Contract] = {
    "greedy / ids": Contract(RuleCode.IDS, GREEDY, 2, 1),
    "onehot / ids": Contract(RuleCode.IDS, PLAIN, 2, 1),
    "gumbel / ids": Contract(RuleCode.GUMBEL, PLAIN, 2, 1),
    "maxc / full": Contract(RuleCode.FULL, PLAIN, 2, 1),
    "maxc / topk": Contract(RuleCode.TOPK, PLAIN, 2, 1),
    "maxc / id_prob": Contract(RuleCode.ID_PROB, PLAIN, 2, 1),
    "maxc / id_prob, 16 bits": Contract(RuleCode.ID_PROB, PLAIN, 2, 1, 16),
    "maxc / id_prob, 8 bits": Contract(RuleCode.ID_PROB, PLAIN, 2, 1, 8),
    "maxc / full, T 0.7, top-k 4, top-p 0.9": Contract(RuleCode.FULL, Sampling(0.7, 4, 0.9), 2, 1),
    "gumbel / ids, T 0.7, top-k 4, top-p 0.9": Contract(
        RuleCode.GUMBEL, Sampling(0.7, 4, 0.9), 2, 1
    ),
    "maxc / id_prob, lossy, top-k 3 within K": Contract(
        RuleCode.ID_PROB, Sampling(top_k=3), 3, 1, is_lossy=True
    ),
}
LOSSY = Contract(RuleCode.ID_PROB, PLAIN, 2, 1, is_lossy=True)
