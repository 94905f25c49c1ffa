"""Branches: what a device drafts ahead for the case that a drafted token is rejected.

At every drafted position a few other tokens are guessed as the correction. Behind each of them the
device drafts on, in the same forwards as its main chain. A branch's tokens are drawn as they would
be drawn after the rejection: from the draft's law behind the correction, by the draws of the next
epoch. So the stream is the one without branches, and only one branch of an epoch ever decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from uara.decoding.answer import Answer
from uara.decoding.evolve import evolve
from uara.decoding.row import EMPTY_PAIRS, Pairs


class Stem(msgspec.Struct, frozen=True, gc=False):
    """A branch as a draft step is told of it: where it leaves the main chain, and its tokens."""

    position: int
    correction: int
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        """Position behind its last token."""
        return self.position + 1 + len(self.tokens)


class BranchToken(msgspec.Struct, frozen=True, gc=False):
    """What a draft step has drawn behind a branch.

    Attributes:
        position: of the guessed correction.
        correction: the guess.
        token: drawn behind the branch's last token.
        row: what goes up with it.
        guesses: other tokens in its place, likeliest first.
    """

    position: int
    correction: int
    token: int
    row: Pairs = EMPTY_PAIRS
    guesses: tuple[int, ...] = ()


class Branch(msgspec.Struct, frozen=True, gc=False):
    """A guessed correction and what has been drafted behind it.

    Attributes:
        position: of the correction.
        correction: the guess.
        tokens: drafted behind it.
        rows: what goes up with them.
        guesses: per token, others in its place.
        is_growing: whether a draft step is under way that draws its next token.
    """

    position: int
    correction: int
    tokens: tuple[int, ...] = ()
    rows: tuple[Pairs, ...] = ()
    guesses: tuple[tuple[int, ...], ...] = ()
    is_growing: bool = False

    @property
    def end(self) -> int:
        """Position behind its last token."""
        return self.position + 1 + len(self.tokens)

    @property
    def stem(self) -> Stem:
        """What a draft step needs to know."""
        return Stem(self.position, self.correction, self.tokens)


Branches = tuple[Branch, ...]


def sprout(position: int, guesses: Sequence[int]) -> Branches:
    """Begin branches at a position whose token has just been drafted."""
    return tuple(Branch(position, guess) for guess in guesses)


def grow(branches: Branches, length: int, end: int, answer: Answer) -> Branches:
    """Mark the branches that take part in the draft step that begins now.

    Args:
        branches: of the epoch.
        length: tokens that a branch grows to.
        end: position behind the answer's last possible token.
        answer: whose end token ends a branch too.
    """

    def may_grow(branch: Branch) -> bool:
        last = branch.tokens[-1] if branch.tokens else branch.correction
        return len(branch.tokens) < length and branch.end < end and last != answer.eos

    return tuple(
        evolve(branch, is_growing=True) if may_grow(branch) else branch for branch in branches
    )


def extend(branches: Branches, drawn: Sequence[BranchToken]) -> Branches:
    """Add what a draft step has drawn; branches that are gone by now are not missed."""
    if not drawn:
        return branches
    found = {(token.position, token.correction): token for token in drawn}
    return tuple(
        _extend(branch, found.get((branch.position, branch.correction))) for branch in branches
    )


def _extend(branch: Branch, drawn: BranchToken | None) -> Branch:
    if drawn is None:
        return branch
    return evolve(
        branch,
        tokens=(*branch.tokens, drawn.token),
        rows=(*branch.rows, drawn.row),
        guesses=(*branch.guesses, drawn.guesses),
        is_growing=False,
    )


def from_position(branches: Branches, position: int) -> Branches:
    """Drop the branches at positions that are committed."""
    return tuple(branch for branch in branches if branch.position >= position)


def find(branches: Branches, position: int, correction: int) -> Branch | None:
    """Look for the branch behind a correction."""
    for branch in branches:
        if (branch.position, branch.correction) == (position, correction):
            return branch
    return None


def sprouts_of(branch: Branch) -> Branches:
    """Begin branches at the tokens of a branch that has become the main chain."""
    first = branch.position + 1
    return tuple(
        twig for i, guesses in enumerate(branch.guesses) for twig in sprout(first + i, guesses)
    )
