"""Caches that can be rolled back, and one forward over sequences of different lengths.

Shape legend: n sequences, H key/value heads, L cached tokens, Q new tokens, D head size, V tokens
of the vocabulary. Each sequence owns an exact cache; a batch gathers the caches left-padded, feeds
the new tokens right-padded, and scatters the new keys and values back (padding is never kept).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uara.errors import UserError

if TYPE_CHECKING:
    from transformers import DynamicCache

Floats = NDArray[np.float64]


class Cache(Protocol):
    """What a model remembers of one sequence."""

    @property
    def length(self) -> int:
        """Tokens remembered."""

    def roll_back(self, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def fork(self) -> Cache:
        """Make a cache that remembers the same and goes its own way."""


class Feed(msgspec.Struct, frozen=True, gc=False):
    """New tokens for one sequence, and from which of them on logits are wanted."""

    cache: Cache
    tokens: Sequence[int]
    logits_from: int = 0


class SequenceModel(Protocol):
    """A language model as the runtime sees it."""

    @property
    def vocab_size(self) -> int:
        """V."""

    def new_cache(self) -> Cache:
        """Start a sequence."""

    def forward(self, feeds: Sequence[Feed]) -> list[Floats]:
        """Extend each cache by its tokens; return logits (Q_i - logits_from, V) per sequence."""


@dataclass
class KeyValueCache:
    """Keys and values of one sequence, per layer (1, H, L, D)."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """L."""
        return int(self.layers[0][0].shape[2]) if self.layers else 0

    def roll_back(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        surplus = self.length - length
        assert 0 <= surplus <= self.length, f"cannot roll {self.length} tokens back to {length}"
        if surplus:
            self.layers = [(k[:, :, :-surplus], v[:, :, :-surplus]) for k, v in self.layers]

    def fork(self) -> KeyValueCache:
        """Share what is remembered: keys and values are never changed in place."""
        return KeyValueCache(list(self.layers))

    def append(self, new: list[tuple[Tensor, Tensor]]) -> None:
        """Add keys and values of new tokens, per layer (1, H, Q, D)."""
        if not self.layers:
            self.layers = new
            return
        self.layers = [
            (torch.cat([k, nk], dim=2), torch.cat([v, nv], dim=2))
            for (k, v), (nk, nv) in zip(self.layers, new, strict=True)
        ]


class TransformerModel:
    """A causal transformer with full attention in all layers."""

    def __init__(self, model: Any, vocab_size: int | None = None) -> None:
        """Wrap a `transformers` model.

        Args:
            model: a `PreTrainedModel` for causal language modelling, in eval mode.
            vocab_size: ids in use, where the model's rows beyond them are padding.

        Raises:
            UserError: if a layer attends to a sliding window or keeps a recurrent state, which a
                left-padded batch would get wrong without any error.
        """
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        window = getattr(model.config, "sliding_window", None)
        if kinds != {"full_attention"} or (window and not hasattr(model.config, "layer_types")):
            given = ", ".join(sorted(kinds - {"full_attention"})) or f"sliding_window={window}"
            raise UserError(
                f"model '{type(model).__name__}' has {given} layers; batched verification allows "
                "full attention only: choose a model without sliding windows"
            )
        self._model = model
        self.vocab_size = vocab_size or int(model.config.vocab_size)
        self.context_tokens = int(model.config.max_position_embeddings)

    def new_cache(self) -> KeyValueCache:
        """Start a sequence."""
        return KeyValueCache()

    @torch.inference_mode()
    def forward(self, feeds: Sequence[Feed]) -> list[Floats]:
        """Extend each cache by its tokens in one forward; see `SequenceModel`."""
        caches = [_key_value_cache(feed) for feed in feeds]
        if len(feeds) == 1:
            return [self._forward_alone(feeds[0], caches[0])]
        past = [cache.length for cache in caches]
        new = [len(feed.tokens) for feed in feeds]
        assert min(new) > 0, "a forward needs at least one token per sequence"
        longest_past, longest_new = max(past), max(new)
        device = self._model.device
        ids = torch.zeros(len(feeds), longest_new, dtype=torch.long, device=device)
        mask = torch.zeros(len(feeds), longest_past + longest_new, dtype=torch.long, device=device)
        for i, feed in enumerate(feeds):
            ids[i, : new[i]] = torch.as_tensor(list(feed.tokens))
            mask[i, longest_past - past[i] : longest_past + new[i]] = 1
        offsets = torch.tensor(past, device=device)[:, None]
        positions = offsets + torch.arange(longest_new, device=device)[None]
        # Padded queries are thrown away; a clamped position keeps them inside the model's table.
        positions = positions.clamp(max=self.context_tokens - 1)
        ragged = len(set(past)) > 1 or len(set(new)) > 1
        cache = _gather(caches, longest_past) if longest_past else _dynamic_cache()
        output = self._model(
            input_ids=ids,
            attention_mask=mask if ragged else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        for i, own in enumerate(caches):
            end = longest_past + new[i]
            own.append(
                [
                    (
                        layer.keys[i : i + 1, :, longest_past:end],
                        layer.values[i : i + 1, :, longest_past:end],
                    )
                    for layer in output.past_key_values.layers
                ]
            )
        logits = output.logits[..., : self.vocab_size]
        return [
            logits[i, feed.logits_from : new[i]].double().cpu().numpy()
            for i, feed in enumerate(feeds)
        ]

    def _forward_alone(self, feed: Feed, own: KeyValueCache) -> Floats:
        """Extend one cache: nothing is padded, and the model joins old and new keys itself."""
        assert feed.tokens, "a forward needs at least one token per sequence"
        output = self._model(
            input_ids=torch.tensor([list(feed.tokens)], device=self._model.device),
            past_key_values=_dynamic_cache(own.layers),
            use_cache=True,
        )
        layers = output.past_key_values.layers
        own.layers = [(layer.keys, layer.values) for layer in layers]
        logits: Floats = (
            output.logits[0, feed.logits_from :, : self.vocab_size].double().cpu().numpy()
        )
        return logits


def _key_value_cache(feed: Feed) -> KeyValueCache:
    assert isinstance(feed.cache, KeyValueCache), "a transformer needs its own caches"
    return feed.cache


def _gather(caches: Sequence[KeyValueCache], longest: int) -> DynamicCache:
    """Join caches left-padded with zeros to `longest` tokens, per layer (n, H, longest, D)."""
    template = next(cache for cache in caches if cache.length)
    joined = []
    for index, (key, _) in enumerate(template.layers):
        pair = []
        for part in (0, 1):
            rows = key.new_zeros(len(caches), key.shape[1], longest, key.shape[3])
            for i, cache in enumerate(caches):
                if cache.length:
                    rows[i, :, longest - cache.length :] = cache.layers[index][part][0]
            pair.append(rows)
        joined.append((pair[0], pair[1]))
    return _dynamic_cache(joined)


def _dynamic_cache(layers: list[tuple[Tensor, Tensor]] | None = None) -> DynamicCache:
    """Make a cache of keys and values per layer, empty without."""
    # Loading transformers takes seconds, which commands without a model should not pay.
    from transformers import DynamicCache

    return DynamicCache(layers or None)
