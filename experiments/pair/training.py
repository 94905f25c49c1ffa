"""Train the shipped pair: tokenizer, target, the target's own texts, and the distilled draft.

Shapes: N windows per step, L tokens per window, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from experiments.pair.acceptance import (
    MAX_PROMPT_TOKENS,
    held_out_prompts,
    sample_continuations,
)
from experiments.pair.corpus import (
    END,
    PAD,
    TEXT_TASKS,
    Corpus,
    Document,
    TextTask,
    build_corpus,
    corpus_facts,
    train_tokenizer,
)
from experiments.pair.publishing import (
    CALIBRATION_PER_TASK,
    FROZEN_PER_TASK,
    publish,
    save_pair,
)
from experiments.pair.stages import (
    Stage,
    TokenStream,
    build_optimizers,
    draw_batch,
    encode_documents,
    load_token_rows,
    save_token_rows,
)
from experiments.runs import write_text
from uara.errors import UserError
from uara.files import whole_file

_GENERATION_BATCH = 64


class ModelShape(BaseModel):
    """Give the size of one Llama-style model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(256, gt=0, description="Width of the hidden state.")
    layers: int = Field(6, gt=0, description="Number of layers.")
    heads: int = Field(4, gt=0, description="Attention heads; they divide the width.")
    feed_forward: int = Field(704, gt=0, description="Width of the feed-forward layers.")


class PairTrainingConfig(BaseModel):
    """Say how the shipped pair is made; the defaults are those of the shipped pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    library: Path | None = Field(
        None, description="Python sources to learn from; None: this Python's."
    )
    vocab_size: int = Field(1024, ge=300, description="Entries of the tokenizer's vocabulary.")
    context: int = Field(512, ge=16, description="Longest text in tokens that the pair takes.")
    target: ModelShape = Field(ModelShape(), description="Shape of the target.")
    draft_layers: int = Field(
        2, ge=1, description="Layers of the draft, which is else shaped like the target."
    )
    target_steps: int = Field(800, ge=1, description="Training steps of the target.")
    draft_steps: int = Field(1000, ge=1, description="Distillation steps of the draft.")
    step_tokens: int = Field(3072, ge=16, description="Tokens per step.")
    short_window: int = Field(
        256, ge=8, description="Tokens per window in the first 70 % of steps."
    )
    matrix_rate: float = Field(0.02, gt=0, description="Peak learning rate of the matrices (Muon).")
    vector_rate: float = Field(3e-3, gt=0, description="Peak learning rate of the rest (AdamW).")
    temperature: float = Field(0.7, gt=0, description="Temperature at which the pair is served.")
    task_weights: dict[TextTask, float] = Field(
        {"code": 0.5, "summarise": 0.25, "chat": 0.25},
        description="Share of each task in the target's training.",
    )
    draft_weights: dict[TextTask, float] = Field(
        {"code": 0.05, "summarise": 0.02, "chat": 0.93},
        description="Share of each task in the draft's distillation.",
    )
    generated_share: float = Field(
        0.3, ge=0, le=1, description="Share of the target's own texts in the distillation."
    )
    generated_prompts: int = Field(
        192, ge=0, description="Texts of each task that the target writes for the distillation."
    )
    generated_tokens: int = Field(128, ge=1, description="Longest continuation in such a text.")
    precision: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Arithmetic of the matrix products in training."
    )
    threads: int = Field(1, ge=1, description="CPU threads.")
    seed: int = Field(0, ge=0, description="Seed of everything that is drawn.")

    @field_validator("task_weights", "draft_weights")
    @classmethod
    def _weigh_every_task(cls, weights: dict[TextTask, float]) -> dict[TextTask, float]:
        if set(weights) != set(TEXT_TASKS) or min(weights.values()) <= 0:
            raise ValueError(
                f"weights {weights} are not one positive number for each of {TEXT_TASKS}; "
                "give all of them"
            )
        return weights

    @model_validator(mode="after")
    def _keep_the_draft_smaller(self) -> PairTrainingConfig:
        if self.draft_layers >= self.target.layers:
            raise ValueError(
                f"draft_layers {self.draft_layers} is not below the target's "
                f"{self.target.layers} layers; give fewer"
            )
        return self


@dataclass(frozen=True)
class Material:
    """Hold what all stages share: the corpus, the tokenizer and the token streams by task."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: Mapping[str, TokenStream]
    held_out: Mapping[str, TokenStream]


def prepare_material(config: PairTrainingConfig, work: Path) -> Material:
    """Build corpus, tokenizer and streams; the tokenizer is kept in the work folder."""
    corpus = build_corpus(config.library)
    path = work / "tokenizer.json"
    if not path.is_file():
        fresh = train_tokenizer(corpus.train, config.vocab_size)
        with whole_file(path) as temporary:
            fresh.save(str(temporary))
    tokenizer = Tokenizer.from_file(str(path))

    def streams(documents: tuple[Document, ...]) -> dict[str, TokenStream]:
        by_task = {task: [doc for doc in documents if doc.task == task] for task in TEXT_TASKS}
        return {
            task: TokenStream.of(encode_documents(tokenizer, docs), seed=config.seed)
            for task, docs in by_task.items()
            if docs
        }

    return Material(corpus, tokenizer, streams(corpus.train), streams(corpus.held_out))


def build_model(
    config: PairTrainingConfig, shape: ModelShape, tokenizer: Tokenizer, *, seed: int
) -> LlamaForCausalLM:
    """Build an untrained Llama-style model whose embedding is also its output layer."""
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    llama = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama)


def _batch(
    config: PairTrainingConfig,
    streams: Mapping[str, TokenStream],
    weights: Mapping[str, float],
    step: int,
    steps: int,
    seed: int,
) -> Tensor:
    """Draw the windows of one step: short ones first, then whole contexts."""
    length = config.short_window if step < 0.7 * steps else config.context
    length = min(length, config.context)
    return draw_batch(
        streams,
        {name: weights[name] for name in streams},
        windows=max(1, config.step_tokens // length),
        length=length,
        seed=seed * 1_000_003 + step,
    )


def _logits(config: PairTrainingConfig, model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Run a model over windows, shape (N, L), and return float32 logits, shape (N, L, V)."""
    half = config.precision == "bfloat16"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()


def target_stage(config: PairTrainingConfig, material: Material, work: Path) -> Stage:
    """Set up the target's training: next-token cross-entropy on the corpus."""
    model = build_model(config, config.target, material.tokenizer, seed=config.seed)

    def loss(step: int) -> Tensor:
        ids = _batch(
            config,
            material.train,
            config.task_weights,  # type: ignore[arg-type]
            step,
            config.target_steps,
            config.seed + 1,
        )
        logits = _logits(config, model, ids[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    optimizers = build_optimizers(
        model, matrix_rate=config.matrix_rate, vector_rate=config.vector_rate
    )
    return Stage("target", model, optimizers, loss, config.target_steps, work)


def distillation_loss(draft_logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """Return what the draft is trained on: cross-entropy with the target's law, and lost overlap.

    The second term is the total variation distance between the two laws as they are served, which
    is the chance that a drafted token is turned down (Leviathan et al. 2023, Corollary 3.6).

    Args:
        draft_logits: Shape (N, L, V).
        target_logits: Shape (N, L, V), without gradient.
        temperature: Temperature at which both are served.

    Returns:
        Scalar loss.
    """
    draft_log_law = functional.log_softmax(draft_logits / temperature, dim=-1)
    target_law = functional.softmax(target_logits / temperature, dim=-1)
    cross_entropy = -(target_law * draft_log_law).sum(-1).mean()
    overlap = torch.minimum(target_law, draft_log_law.exp()).sum(-1).mean()
    return 0.3 * cross_entropy + (1.0 - overlap)


def write_texts(
    config: PairTrainingConfig, material: Material, target: PreTrainedModel, work: Path
) -> dict[str, TokenStream]:
    """Let the target write texts from training prompts; the draft will meet such texts when served.

    Returns:
        One stream of prompts with their continuations per task; also kept in the work folder.
    """
    end = material.tokenizer.token_to_id(END)
    assert end is not None, "train_tokenizer puts every special token into the vocabulary"
    streams: dict[str, TokenStream] = {}
    for index, task in enumerate(TEXT_TASKS if config.generated_prompts else ()):
        path = work / f"texts-{task}.npz"
        if not path.is_file():
            generator = torch.Generator().manual_seed(config.seed + 100 + index)
            prompts = _training_prompts(config, material, task, generator)
            rows = []
            for start in range(0, len(prompts), _GENERATION_BATCH):
                batch = prompts[start : start + _GENERATION_BATCH]
                texts = sample_continuations(
                    target,
                    batch,
                    max_tokens=config.generated_tokens,
                    temperature=config.temperature,
                    end_token_id=end,
                    generator=generator,
                )
                rows += [[*prompt, *text] for prompt, text in zip(batch, texts, strict=True)]
            save_token_rows(path, rows)
        streams[task] = TokenStream.of(load_token_rows(path), seed=config.seed)
    return streams


def _training_prompts(
    config: PairTrainingConfig, material: Material, task: TextTask, generator: torch.Generator
) -> list[list[int]]:
    """Draw prompts of training documents, cut so that the continuation fits the context."""
    room = min(MAX_PROMPT_TOKENS, config.context - config.generated_tokens)
    documents = [doc for doc in material.corpus.train if doc.task == task]
    chosen = torch.randperm(len(documents), generator=generator)[: config.generated_prompts]
    texts = [documents[index].prompt for index in chosen.tolist()]
    # Prompts of like length share a batch, which wastes little on padding.
    return sorted((enc.ids[:room] for enc in material.tokenizer.encode_batch(texts)), key=len)


def draft_stage(
    config: PairTrainingConfig,
    material: Material,
    target: PreTrainedModel,
    texts: Mapping[str, TokenStream],
    work: Path,
) -> Stage:
    """Set up the draft's training: distillation from the target's full law at each token."""
    shape = config.target.model_copy(update={"layers": config.draft_layers})
    model = build_model(config, shape, material.tokenizer, seed=config.seed)
    start_from_target(model, target)
    share = config.generated_share if texts else 0.0
    streams = dict(material.train) | {f"texts-{task}": stream for task, stream in texts.items()}

    shares = config.draft_weights
    weights = {str(task): (1 - share) * weight for task, weight in shares.items()}
    weights |= {f"texts-{task}": share * weight for task, weight in shares.items()}

    def loss(step: int) -> Tensor:
        ids = _batch(config, streams, weights, step, config.draft_steps, config.seed + 4)
        with torch.no_grad():
            target_logits = _logits(config, target, ids)
        draft_logits = _logits(config, model, ids)
        return distillation_loss(draft_logits, target_logits, config.temperature)

    optimizers = build_optimizers(
        model, matrix_rate=config.matrix_rate, vector_rate=config.vector_rate
    )
    return Stage("draft", model, optimizers, loss, config.draft_steps, work)


@torch.no_grad()
def start_from_target(draft: PreTrainedModel, target: PreTrainedModel) -> None:
    """Give a draft the target's embedding, last norm, and layers spread over its depth.

    A draft that begins as a thinned target (Sanh et al. 2019, arXiv 1910.01108, section 3) needs a
    fraction of the distillation that a fresh one does.
    """
    kept, deep = draft.config.num_hidden_layers, target.config.num_hidden_layers
    for index, layer in enumerate(draft.model.layers):
        source = round(index * (deep - 1) / max(1, kept - 1))
        layer.load_state_dict(target.model.layers[source].state_dict())
    draft.model.embed_tokens.load_state_dict(target.model.embed_tokens.state_dict())
    draft.model.norm.load_state_dict(target.model.norm.state_dict())


@torch.no_grad()
def held_out_loss(
    config: PairTrainingConfig, model: PreTrainedModel, streams: Mapping[str, TokenStream]
) -> dict[str, float]:
    """Return the cross-entropy in nats per token on held-out documents, by task."""
    losses = {}
    for task, stream in streams.items():
        generator = torch.Generator().manual_seed(config.seed + 5)
        ids = stream.windows(24, min(config.short_window, config.context), generator)
        logits = _logits(config, model, ids[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        losses[task] = round(float(loss), 4)
    return losses


def train_pair(config: PairTrainingConfig, out: Path, *, work: Path | None = None) -> None:
    """Make the pair from nothing: corpus, tokenizer, target, texts, draft, measurement, card.

    Stopped at any point, a second call with the same config and folders goes on where the first
    one stopped, and ends with the same weights (to the bit, for the same number of threads).

    Args:
        config: How the pair is made.
        out: Folder that receives models, tokenizer, prompts, acceptance and card.
        work: Folder of the checkpoints of unfinished stages; `runs/pair` if None.
    """
    folder = Path("runs") / "pair" if work is None else work
    folder.mkdir(parents=True, exist_ok=True)
    _claim(config, folder)
    torch.set_num_threads(config.threads)
    material = prepare_material(config, folder)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    ) as progress:
        target = target_stage(config, material, folder)
        target.run(progress)
        # Unlike the target in training, the teacher gives no gradient.
        target.model.requires_grad_(False)
        texts = write_texts(config, material, target.model, folder)
        draft = draft_stage(config, material, target.model, texts, folder)
        draft.run(progress)
    losses = {
        "target": held_out_loss(config, target.model, material.held_out),
        "draft": held_out_loss(config, draft.model, material.held_out),
    }
    save_pair(
        out,
        target=target.model,
        draft=draft.model,
        tokenizer=material.tokenizer,
        prompts=held_out_prompts(material.corpus.held_out, material.tokenizer, FROZEN_PER_TASK),
    )
    publish(
        out,
        config=config.model_dump(mode="json"),
        corpus=corpus_facts(material.corpus),
        losses=losses,
        calibration=held_out_prompts(
            material.corpus.held_out,
            material.tokenizer,
            CALIBRATION_PER_TASK,
            skip=FROZEN_PER_TASK,
        ),
        temperature=config.temperature,
    )


def _claim(config: PairTrainingConfig, work: Path) -> None:
    """Bind a work folder to one config, so that no stage resumes under another.

    Raises:
        UserError: If the folder belongs to another config.
    """
    path = work / "config.json"
    text = config.model_dump_json(indent=1, exclude={"threads"})
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"'{work}' holds a training with another config; give that config to resume it, or "
            "another work folder to begin anew"
        )
    write_text(path, text)
