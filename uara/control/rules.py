"""The controller that is made of rules: one for the servers, others for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from uara.control.allocation import AllocationConfig, Allocator
from uara.control.association import ASSOCIATION_RULES, AssociationConfig, association_rules
from uara.control.ucb import UcbDraftLength
from uara.errors import UserError
from uara.network import Decision, NetworkState, SlotOutcome
from uara.prediction import Physics


class RuleController:
    """Chooses servers by a named rule and allocates the rest by rules."""

    observes = "network"

    def __init__(
        self,
        association: str,
        allocation: AllocationConfig,
        physics: Physics,
        name: str | None = None,
        parameters: AssociationConfig | None = None,
    ) -> None:
        """Look the rule up.

        Args:
            association: name of a rule.
            allocation: rules for the rest.
            physics: what they reckon with.
            name: of the controller; that of the rule by default.
            parameters: of association rules; the defaults where there are none.

        Raises:
            UserError: if there is no rule of that name.
        """
        if association not in ASSOCIATION_RULES:
            raise UserError(
                f"controller '{association}' is unknown; allowed: {', '.join(ASSOCIATION_RULES)}"
            )
        self.name = association if name is None else name
        self.allocator = Allocator(allocation, physics)
        rules = ASSOCIATION_RULES if parameters is None else association_rules(parameters)
        self._choose = rules[association]
        self._generator = torch.Generator()
        self._learner: UcbDraftLength | None = None
        if allocation.draft_length == "ucb":
            self._learner = UcbDraftLength(physics.config.max_draft_length, allocation.ucb)

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Take the generator that the rule draws from; forget what lengths have brought."""
        self._generator = generator
        if self._learner is not None:
            self._learner.reset(mask)

    def decide(self, state: NetworkState) -> Decision:
        """Choose servers, then the rest."""
        return self.complete(state, self._choose(state, self.allocator, self._generator))

    def complete(self, state: NetworkState, server: Tensor) -> Decision:
        """Choose the rest for servers (B, M) long that something else has chosen."""
        length = None if self._learner is None else self._learner.choose(state)
        return self.allocator(state, server, length)

    def observe(self, outcome: SlotOutcome) -> None:
        """Learn which lengths pay, where the rule is one that learns."""
        if self._learner is not None:
            self._learner.observe(outcome)
