"""The controller that is made of rules: one for the servers, closed forms for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES
from uara.errors import UserError
from uara.network import Decision, NetworkState, SlotOutcome
from uara.prediction import Physics


class RuleController:
    """Chooses servers by a named rule and allocates the rest by closed forms."""

    observes = "network"

    def __init__(self, association: str, allocation: AllocationConfig, physics: Physics) -> None:
        """Look the rule up.

        Raises:
            UserError: if there is no rule of that name.
        """
        if association not in ASSOCIATION_RULES:
            raise UserError(
                f"controller '{association}' is unknown; allowed: {', '.join(ASSOCIATION_RULES)}"
            )
        self.name = association
        self.allocator = Allocator(allocation, physics)
        self._choose = ASSOCIATION_RULES[association]
        self._generator = torch.Generator()

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Take the generator that the rule draws from; rules remember nothing else."""
        self._generator = generator

    def decide(self, state: NetworkState) -> Decision:
        """Choose servers, then bandwidth, power and draft length."""
        return self.allocator(state, self._choose(state, self.allocator, self._generator))

    def observe(self, outcome: SlotOutcome) -> None:
        """Ignore the outcome."""
