"""One resumable training stage of the pair: token streams, windows, optimisers, checkpoints.

Shapes: N windows per step, L tokens per window, V vocabulary entries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from experiments.pair.corpus import Document
from uara.files import whole_file

SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class TokenStream:
    """Hold documents end to end as token ids, and where each begins.

    Attributes:
        ids: Token ids of all documents, shape (tokens,), int64.
        starts: Offset of each document's first token, shape (documents,), int64.
    """

    ids: Tensor
    starts: Tensor

    @staticmethod
    def of(documents: Iterable[Sequence[int]], *, seed: int) -> TokenStream:
        """Lay tokenized documents end to end in an order drawn from the seed."""
        rows = list(documents)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        lengths = torch.tensor([0] + [len(rows[index]) for index in order])
        flat = [token for index in order for token in rows[index]]
        return TokenStream(torch.tensor(flat), lengths.cumsum(0)[:-1])

    def windows(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw windows that begin where a document begins and wrap at the end of the stream.

        Args:
            count: Number of windows N.
            length: Tokens per window L.
            generator: Source of the draw.

        Returns:
            Token ids, shape (N, L).
        """
        chosen = torch.randint(len(self.starts), (count,), generator=generator)
        offsets = self.starts[chosen].unsqueeze(1) + torch.arange(length)
        return self.ids[offsets % len(self.ids)]


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[list[int]]:
    """Turn documents into token ids, end token included."""
    return [encoding.ids for encoding in tokenizer.encode_batch([doc.text for doc in documents])]


def draw_batch(
    streams: Mapping[str, TokenStream],
    weights: Mapping[str, float],
    *,
    windows: int,
    length: int,
    seed: int,
) -> Tensor:
    """Draw one batch whose windows come from the streams in proportion to their weights.

    The draw depends on the seed alone, so a resumed run repeats it without saved generators.

    Returns:
        Token ids, shape (N, L).
    """
    generator = torch.Generator().manual_seed(seed)
    names = sorted(streams)
    law = torch.tensor([weights[name] for name in names])
    picked = torch.multinomial(law, windows, replacement=True, generator=generator)
    counts = torch.bincount(picked, minlength=len(names)).tolist()
    parts = [
        streams[name].windows(count, length, generator)
        for name, count in zip(names, counts, strict=True)
        if count
    ]
    return torch.cat(parts)


def build_optimizers(
    model: PreTrainedModel, *, matrix_rate: float, vector_rate: float
) -> list[torch.optim.Optimizer]:
    """Give the hidden matrices to Muon and the embedding and norms to AdamW.

    Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) needs far fewer tokens than
    AdamW at this size, and tokens are what a CPU has least of.
    """
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if is_matrix else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.05, momentum=0.95),
        torch.optim.AdamW(rest, lr=vector_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Return the learning-rate factor: warm-up, plateau, then a linear fall over the last 30 %."""
    warm_up = min(100, max(1, steps // 10))
    return min(1.0, (step + 1) / warm_up, (steps - step) / max(1.0, 0.3 * steps))


@dataclass
class Stage:
    """Train one model for a number of steps, with a checkpoint that resumes bitwise.

    Attributes:
        name: Names the checkpoint file and the progress bar.
        model: The model in training; changed in place.
        optimizers: Its optimisers; their initial rates are the peak rates.
        loss: Gives the loss (a scalar with gradient) of a step's number.
        steps: Number of steps of the whole stage.
        folder: Where the checkpoint lives.
        history: Mean loss of each 50 steps.
    """

    name: str
    model: PreTrainedModel
    optimizers: list[torch.optim.Optimizer]
    loss: Callable[[int], Tensor]
    steps: int
    folder: Path
    history: list[float] = field(default_factory=list)
    _window: list[float] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Return where the stage's checkpoint lies."""
        return self.folder / f"{self.name}.pt"

    def run(self, progress: Progress, *, stop_after: int | None = None) -> None:
        """Train from the last checkpoint, if there is one, to the last step.

        Args:
            progress: Where the bar is drawn.
            stop_after: Save and return once this many steps of the stage are done.
        """
        peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        step = self._restore()
        last = self.steps if stop_after is None else min(stop_after, self.steps)
        bar = progress.add_task(self.name, total=self.steps, completed=step)
        saved_at = time.monotonic()
        self.model.train()
        while step < last:
            self._step(step, peaks)
            step += 1
            shown = self.history[-1] if self.history else float("nan")
            progress.update(bar, completed=step, description=f"{self.name} loss {shown:.3f}")
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                self._save(step)
                saved_at = time.monotonic()
        self._save(step)
        self.model.eval()

    def _step(self, step: int, peaks: list[float]) -> None:
        for optimizer, peak in zip(self.optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_factor(step, self.steps)
            optimizer.zero_grad(set_to_none=True)
        loss = self.loss(step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._window.append(float(loss.detach()))
        if len(self._window) == 50:
            self.history.append(sum(self._window) / 50)
            self._window.clear()

    def _save(self, step: int) -> None:
        state: dict[str, Any] = {
            "step": step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "history": self.history,
            "window": self._window,
        }
        with whole_file(self.path) as temporary:
            torch.save(state, temporary)

    def _restore(self) -> int:
        if not self.path.is_file():
            return 0
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.history[:], self._window[:] = state["history"], state["window"]
        return int(state["step"])


def save_token_rows(path: Path, rows: Sequence[Sequence[int]]) -> None:
    """Store token rows of unequal length as two arrays."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            ids=np.array([token for row in rows for token in row], dtype=np.int32),
            lengths=np.array([len(row) for row in rows], dtype=np.int32),
        )


def load_token_rows(path: Path) -> list[list[int]]:
    """Read back what `save_token_rows` stored."""
    with np.load(path, allow_pickle=False) as stored:
        ids, lengths = stored["ids"], stored["lengths"]
    rows = np.split(ids, np.cumsum(lengths)[:-1])
    return [row.tolist() for row in rows]
