"""What a policy's choices are worth: exact over discrete heads, one draw of each continuous one.

Shape legend: B networks, M devices, C candidates (servers, or one), L draft lengths,
K continuous heads.

Christodoulou, arXiv 1910.07207 (exact expectation over discrete actions); Delalleau et al.,
arXiv 1912.11077 (discrete choice first, continuous parameters given it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.heads import Beta, Categorical
from agents.network import CandidateLaws
from envs.action import Action, Head

CONTINUOUS: tuple[Head, ...] = ("bandwidth", "power")


@dataclass(frozen=True)
class Draw:
    """One joint action and the continuous values that every candidate would have had."""

    action: Action  # (B, M), detached
    shares: Tensor  # (B, M, C, K) differentiable in the policy


def draw(laws: CandidateLaws, generator: torch.Generator) -> Draw:
    """Draw continuous values for each candidate, then a joint action that uses them."""
    heads = [head for head in CONTINUOUS if getattr(laws, head) is not None]
    values = [_beta(laws, head).sample(generator) for head in heads]
    server = None if laws.server is None else laws.server.sample(generator)
    length = None if laws.draft_length is None else laws.draft_length.sample(generator)

    def of_candidate(values: Tensor) -> Tensor:
        if server is None:
            return values.squeeze(2).detach()
        return values.gather(2, server.unsqueeze(-1)).squeeze(2).detach()

    action = Action(
        server=server,
        draft_length=None if length is None else of_candidate(length),
        **{head: of_candidate(value) for head, value in zip(heads, values, strict=True)},
    )
    return Draw(action, stack_shares(values, _one_of(laws)))


def stack_shares(values: list[Tensor], like: Tensor) -> Tensor:
    """Put the values of continuous heads side by side; none give (..., 0), shaped as `like`."""
    if not values:
        return like.new_zeros(*like.shape, 0)
    return torch.stack(values, dim=-1).to(like.dtype)


def expected_value(laws: CandidateLaws, value: Tensor) -> Tensor:
    """Take the exact expectation over the discrete heads, (B, M).

    Args:
        laws: of the policy.
        value: (B, M, C, L) of each choice, at one draw of its continuous values.
    """
    if laws.draft_length is None:
        given_server = value.squeeze(-1)
    else:
        given_server = (laws.draft_length.log_prob_all.exp() * value).sum(-1)
    return _over_candidates(laws, given_server)


def entropies(laws: CandidateLaws) -> dict[Head, Tensor]:
    """Compute the entropy of each learned head in nats, (B, M); later heads over all servers.

    All are closed forms, differentiable in the policy. Their sum is the entropy of the joint law.
    """
    found: dict[Head, Tensor] = {}
    if laws.server is not None:
        found["server"] = laws.server.entropy()
    later: tuple[Head, ...] = ("bandwidth", "power", "draft_length")
    for head in later:
        if getattr(laws, head) is not None:
            found[head] = _over_candidates(laws, laws.of(head).entropy())
    return found


def draw_uniformly(
    heads: tuple[Head, ...], mask: Tensor, num_lengths: int, generator: torch.Generator
) -> Action:
    """Draw an action from the whole legal space, each head uniformly.

    Args:
        heads: the learned ones.
        mask: (B, M, E) bool, servers in reach.
        num_lengths: L.
        generator: of the draws.
    """
    chosen: dict[str, Tensor] = {}
    size = mask.shape[:2]
    for head in heads:
        if head == "server":
            flat = torch.zeros(mask.shape, device=mask.device)
            chosen[head] = Categorical.of(flat, mask).sample(generator)
        elif head == "draft_length":
            chosen[head] = torch.randint(num_lengths, size, generator=generator, device=mask.device)
        else:
            chosen[head] = torch.rand(size, generator=generator, device=mask.device)
    return Action(**chosen)


def _over_candidates(laws: CandidateLaws, value: Tensor) -> Tensor:
    """Average values (B, M, C) by the server's law, (B, M)."""
    if laws.server is None:
        return value.squeeze(2)
    # An illegal server has probability 0 and its value is finite: it counts nothing.
    return (laws.server.log_prob_all.exp() * value).sum(-1)


def _beta(laws: CandidateLaws, head: Head) -> Beta:
    law = laws.of(head)
    assert isinstance(law, Beta)
    return law


def _one_of(laws: CandidateLaws) -> Tensor:
    """Find a tensor (B, M, C) of any learned head."""
    if laws.server is not None:
        return laws.server.log_prob_all
    if laws.draft_length is not None:
        return laws.draft_length.log_prob_all[..., 0]
    law = laws.bandwidth or laws.power
    assert law is not None, "no head is learned"
    return law.alpha
