"""Distributions of the action heads: masked categorical and Beta, drawn from a given generator.

Shape legend: N rows of any leading shape, C choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

UNIT_MARGIN = 1e-4  # Beta samples stay this far from 0 and 1, where log-densities blow up


@dataclass(frozen=True)
class Categorical:
    """Choices with log-probabilities (N, C); an illegal one has probability 0 and no gradient."""

    log_prob_all: Tensor

    @classmethod
    def of(cls, logits: Tensor, mask: Tensor | None = None) -> Categorical:
        """Normalise logits (N, C); `mask` (N, C) bool marks the legal choices, at least one."""
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        return cls(F.log_softmax(logits, dim=-1))

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw choices, (N,) long, by a race of exponential clocks with rates p."""
        clock = torch.empty_like(self.log_prob_all).exponential_(generator=generator)
        return (self.log_prob_all.exp() / clock).argmax(-1)

    def mode(self) -> Tensor:
        """Take the most likely choices, (N,) long."""
        return self.log_prob_all.argmax(-1)

    def log_prob(self, choice: Tensor) -> Tensor:
        """Look up the log-probabilities of choices (N,) long."""
        return self.log_prob_all.gather(-1, choice.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Compute entropies in nats, (N,); illegal choices count 0."""
        probability = self.log_prob_all.exp()
        # 0 times a finite (if huge) log-probability is 0, so no nan arises from masked choices.
        return -(probability * self.log_prob_all).sum(-1)


@dataclass(frozen=True)
class Beta:
    """Values in (0, 1) with both concentrations (N,) above 1: one peak, finite density."""

    alpha: Tensor
    beta: Tensor

    @classmethod
    def of(cls, raw: Tensor) -> Beta:
        """Turn two unbounded numbers per row (N, 2) into concentrations."""
        concentration = 1 + F.softplus(raw)
        return cls(concentration[..., 0], concentration[..., 1])

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw values, (N,), kept off the ends; differentiable in the concentrations.

        The gradient is that of implicit reparameterisation (arXiv 1805.08498).
        """
        # torch.distributions takes no generator; this is the kernel that it calls.
        x = torch._standard_gamma(self.alpha, generator)
        y = torch._standard_gamma(self.beta, generator)
        return (x / (x + y)).clamp(UNIT_MARGIN, 1 - UNIT_MARGIN)

    def mode(self) -> Tensor:
        """Take the mean, (N,): what is played when nothing is drawn."""
        return (self.alpha / (self.alpha + self.beta)).clamp(UNIT_MARGIN, 1 - UNIT_MARGIN)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute log-densities of values (N,) in (0, 1)."""
        log_norm = (
            torch.lgamma(self.alpha + self.beta)
            - torch.lgamma(self.alpha)
            - torch.lgamma(self.beta)
        )
        return (self.alpha - 1) * value.log() + (self.beta - 1) * torch.log1p(-value) + log_norm

    def entropy(self) -> Tensor:
        """Compute differential entropies in nats, (N,)."""
        total = self.alpha + self.beta
        log_beta = torch.lgamma(self.alpha) + torch.lgamma(self.beta) - torch.lgamma(total)
        return (
            log_beta
            - (self.alpha - 1) * torch.digamma(self.alpha)
            - (self.beta - 1) * torch.digamma(self.beta)
            + (total - 2) * torch.digamma(total)
        )
