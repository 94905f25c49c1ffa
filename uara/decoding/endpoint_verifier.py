"""A verifier whose target lives behind an OpenAI-compatible completion endpoint (vLLM and others).

Greedy only: the endpoint tells, for each drafted token as part of a prompt, which token would have
been the likeliest there (`prompt_logprobs`), and draws the one behind the last. It keeps nothing
for a session, and engines compute prompt probabilities without their prefix caches: **every round
reads its whole context anew**. That makes it a way to hold large targets, not a fast one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from uara.decoding.contract import Contract
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Draws
from uara.decoding.row import Pairs
from uara.decoding.rules import Outcome
from uara.decoding.verifier import Capabilities, Work
from uara.errors import UserError

try:
    import httpx
except ImportError as error:
    raise UserError(
        "an endpoint needs the package httpx, which is not installed; install 'uara[serve]'"
    ) from error

_TOKEN_PREFIX = "token_id:"


class EndpointError(RuntimeError):
    """The endpoint is out of reach or answers something else than asked."""


@dataclass
class EndpointVerifier:
    """The target behind a URL; see the module's docstring and `uara.decoding.verifier.Verifier`.

    Attributes:
        url: of the API, up to and with its version: `http://127.0.0.1:8000/v1`.
        model: name that the endpoint knows the target by.
        context_tokens: longest context that it reads; None: it says so itself, by an error.
        timeout_s: of one request.
        tokens_sent: prompt tokens that were sent to be read, over all requests.
    """

    url: str
    model: str = "target"
    context_tokens: int | None = None
    timeout_s: float = 60.0
    tokens_sent: int = 0
    _client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        # Loopback and private addresses are not for proxies of the environment.
        self._client = httpx.Client(timeout=self.timeout_s, trust_env=False)

    @property
    def capabilities(self) -> Capabilities:
        """Greedy verification of token ids, nothing else."""
        return Capabilities(
            rules=frozenset({RuleCode.IDS}),
            samples=False,
            returns_rows=False,
            batch_invariant=False,
            context_tokens=self.context_tokens,
        )

    def open(self, sid: int, contract: Contract, draws: Draws) -> None:
        """Take a session in: nothing is kept for it."""
        assert contract.rule is RuleCode.IDS, "an endpoint tests token ids"
        assert contract.sampling.temperature == 0, "an endpoint tests greedily"

    def close(self, sid: int) -> None:
        """Forget a session, of which nothing was kept."""

    def forward(self, batch: Sequence[Work]) -> list[Outcome | None]:
        """Verify and step in one request; None for a mere reading, which is left out.

        Raises:
            EndpointError: if the endpoint is out of reach or answers something else.
        """
        asked = [work for work in batch if work.draw]
        answers = iter(self._complete([[*work.context, *work.tokens] for work in asked]))
        return [_decide(work, next(answers)) if work.draw else None for work in batch]

    def judge(
        self, sid: int, position: int, tokens: tuple[int, ...], rows: tuple[Pairs, ...], epoch: int
    ) -> Outcome:
        """Refuse: an endpoint keeps no rows."""
        raise AssertionError("an endpoint keeps no rows to judge by")

    def more_tails(self, sid: int, position: int, drawn: int, epoch: int) -> Pairs:
        """Refuse: an endpoint keeps no rows."""
        raise AssertionError("an endpoint keeps no rows to draw from")

    def _complete(self, prompts: list[list[int]]) -> list[dict[str, Any]]:
        """Have each prompt read and continued by one token."""
        if not prompts:
            return []
        self.tokens_sent += sum(map(len, prompts))
        body = {
            "model": self.model,
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "prompt_logprobs": 1,
            "return_tokens_as_token_ids": True,
        }
        try:
            reply = self._client.post(f"{self.url.rstrip('/')}/completions", json=body)
            reply.raise_for_status()
            choices = sorted(reply.json()["choices"], key=lambda choice: int(choice["index"]))
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EndpointError(f"the endpoint {self.url} failed: {error!r}") from error
        if len(choices) != len(prompts):
            raise EndpointError(f"{len(choices)} answers to {len(prompts)} prompts")
        return choices


def _decide(work: Work, choice: dict[str, Any]) -> Outcome:
    """Compare drafted tokens with the likeliest ones, up to the first that differs."""
    try:
        told = choice["prompt_logprobs"]
        base = len(work.context)
        for index, token in enumerate(work.tokens):
            likeliest = _likeliest(told[base + index])
            if likeliest != token:
                return Outcome(index, likeliest)
        if not work.bonus:
            return Outcome(len(work.tokens), None)
        return Outcome(len(work.tokens), _token_id(choice["logprobs"]["tokens"][0]))
    except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
        raise EndpointError(
            "the endpoint's answer has no prompt_logprobs with ranks, or no token ids "
            f"({error!r}); it has to know prompt_logprobs and return_tokens_as_token_ids"
        ) from error


def _likeliest(entry: dict[str, Any]) -> int:
    """Find the token of rank 1 among those told for a position."""
    return next(int(token) for token, told in entry.items() if told["rank"] == 1)


def _token_id(text: str) -> int:
    if not text.startswith(_TOKEN_PREFIX):
        raise ValueError(f"'{text}' is no {_TOKEN_PREFIX}N")
    return int(text.removeprefix(_TOKEN_PREFIX))
