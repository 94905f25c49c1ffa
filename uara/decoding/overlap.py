"""How drafting and verifying overlap in a session: the forms of the parallel modes."""

from __future__ import annotations

from dataclasses import dataclass

from uara.decoding.draft_budget import DraftBudget


@dataclass(frozen=True)
class Overlap:
    """One form of parallel speculation; both ends of a session have the same.

    A draft step that is under way when a rejection comes is finished first and thrown away: a
    model on a device is not stopped in the middle of a token.

    Attributes:
        window: blocks that may be sent and unverified while the next one is drafted and held; at 0
            the device stops and waits.
        sends_first_ahead: whether a block's first token goes up as soon as it is drawn.
        judges_first: whether the server tests it against the row that it keeps, before any forward.
        has_barrier: whether both ends go step by step (PEARL, arXiv 2408.11850): the device takes a
            verdict when its block is complete, and then sends what is left of the block and begins
            the next one; the verdict is that on the block's first token and all before it.
        first_length: tokens of the first block after a rejection; 0: as many as of any other.
        guesses: corrections guessed at every drafted position; behind each a branch is drafted
            ahead, which is taken up at a rejection that it foresaw. 0: none.
        branch_length: tokens that a branch grows to.
        draft_budget: drafting time after which a block is cut; None: blocks are never cut.
    """

    window: int = 1
    sends_first_ahead: bool = True
    judges_first: bool = True
    has_barrier: bool = False
    first_length: int = 0
    guesses: int = 0
    branch_length: int = 4
    draft_budget: DraftBudget | None = None

    def __post_init__(self) -> None:
        assert self.window >= 0, "a window cannot be negative"
        assert self.judges_first or not self.has_barrier, "a barrier waits for the first token"
        assert self.guesses >= 0, "the number of guesses cannot be negative"
        assert self.branch_length > 0, "a branch has at least one token"
        drafts_on = self.window > 0 and not self.has_barrier
        assert drafts_on or not self.guesses, "branches grow while a device drafts on"
        assert self.draft_budget is None or not self.has_barrier, "a step ends with a whole block"


def overlap_of(
    mode: str, window: int = 1, draft_budget: DraftBudget | None = None
) -> Overlap | None:
    """Return the form of a serving mode; None if its ends take turns.

    Args:
        mode: key of `uara.serving.modes.MODES`.
        window: of `async` (PicoSpec, arXiv 2603.19133).
        draft_budget: of `async`.
    """
    if mode == "async":
        return Overlap(window, draft_budget=draft_budget)
    return Overlap(has_barrier=True) if mode == "psd" else None
