"""The models of a draft/verify run: a pair with one tokenizer, and the prompts it answers."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from uara.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHIPPED_PAIR_FOLDER = Path(__file__).resolve().parents[2] / "checkpoints" / "pair"
HUB_PREFIX = "hub:"
HUB_FORM = f"{HUB_PREFIX}OWNER/NAME@COMMIT"


@dataclass(frozen=True)
class ModelPair:
    """Hold a draft and the target that verifies it; both read the same tokens.

    Attributes:
        draft: The small model of the device, in evaluation mode.
        target: The large model of the server, in evaluation mode.
        tokenizer: Turns text into the ids that both models read.
        name: Names the pair in records.
    """

    draft: PreTrainedModel
    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids in use; a model's rows beyond it are padding."""
        return len(self.tokenizer)

    @property
    def context_tokens(self) -> int:
        """Return the longest text, in tokens, that both models take."""
        return min(int(model.config.max_position_embeddings) for model in (self.draft, self.target))

    @property
    def end_token_id(self) -> int:
        """Return the id of the token that ends an answer."""
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int), "load_pair admits only tokenizers with one end token"
        return end

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, with no token added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hold one prompt of a decode set.

    Attributes:
        id: Unique name of the prompt in its set.
        task: Task type that it belongs to.
        text: The text, special tokens included.
    """

    id: str
    task: str
    text: str


def load_pair(
    draft: Path | str, target: Path | str, *, dtype: torch.dtype = torch.float32
) -> ModelPair:
    """Load any two causal language models that share one tokenizer.

    Args:
        draft: Folder of the small model in the transformers format, or `hub:OWNER/NAME@COMMIT`.
        target: Folder of the large model, or `hub:OWNER/NAME@COMMIT`.
        dtype: Type of the weights in memory; float64 makes runs comparable across batch sizes.

    Returns:
        The pair, in evaluation mode.

    Raises:
        UserError: If a model is missing or unreadable, or the two do not share one vocabulary.
    """
    draft_tokenizer = load_tokenizer(draft)
    target_tokenizer = load_tokenizer(target)
    if tokenizer_hash(draft_tokenizer) != tokenizer_hash(target_tokenizer):
        raise UserError(
            f"draft '{draft}' and target '{target}' have two tokenizers ({len(draft_tokenizer)} "
            f"and {len(target_tokenizer)} tokens); a pair needs one vocabulary, so choose two "
            "models of one family"
        )
    if not isinstance(target_tokenizer.eos_token_id, int):
        raise UserError(
            f"the tokenizer of '{target}' names no end token; set eos_token in its "
            "tokenizer_config.json"
        )
    models = [load_model(source, dtype) for source in (draft, target)]
    for source, model in zip((draft, target), models, strict=True):
        rows = int(model.config.vocab_size)
        if rows < len(target_tokenizer):
            raise UserError(
                f"'{source}' knows {rows} tokens, its tokenizer has {len(target_tokenizer)}; "
                "give a model whose vocab_size covers its tokenizer"
            )
    name = f"{_short_name(draft)}+{_short_name(target)}"
    return ModelPair(draft=models[0], target=models[1], tokenizer=target_tokenizer, name=name)


def shipped_pair(*, dtype: torch.dtype = torch.float32) -> ModelPair:
    """Load the pair that comes with the project; see `checkpoints/pair/card.md`.

    Raises:
        UserError: If the checkout has no shipped pair.
    """
    folder = SHIPPED_PAIR_FOLDER
    pair = load_pair(folder / "draft", folder / "target", dtype=dtype)
    card = msgspec.json.decode((folder / "card.json").read_bytes(), type=dict[str, object])
    return ModelPair(pair.draft, pair.target, pair.tokenizer, name=str(card["pair"]))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return 64 bits that two tokenizers share exactly if each id stands for the same token."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    text = json.dumps(vocabulary, ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def load_prompts(path: Path | str) -> list[Prompt]:
    """Read a decode set: one JSON object with `id`, `task` and `text` per line.

    Raises:
        UserError: If the file is missing or empty, a line is not a prompt, or an id comes twice.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no prompts file at '{file}'; give a JSONL file of id, task and text")
    prompts: list[Prompt] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            prompts.append(msgspec.json.decode(line, type=Prompt))
        except msgspec.DecodeError as error:
            raise UserError(
                f"line {number} of '{file}' is no prompt ({error}); each line must be "
                'an object {"id": ..., "task": ..., "text": ...}'
            ) from error
    if not prompts:
        raise UserError(f"'{file}' holds no prompt; give at least one line of id, task and text")
    names = [prompt.id for prompt in prompts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"id '{twice}' comes twice in '{file}'; give each prompt an id of its own")
    return prompts


def _is_hub_name(source: Path | str) -> bool:
    return isinstance(source, str) and source.startswith(HUB_PREFIX)


def _short_name(source: Path | str) -> str:
    return _hub_name_and_commit(source)[0] if _is_hub_name(source) else Path(source).name


def _hub_name_and_commit(source: Path | str) -> tuple[str, str]:
    """Split a hub name; what is behind a branch or a tag may change, so only commits are taken."""
    name, _, commit = str(source).removeprefix(HUB_PREFIX).partition("@")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise UserError(
            f"hub model '{source}' names no commit, and what a hub holds may change; give "
            f"{HUB_FORM} with the 40 hex digits of a commit"
        )
    return name, commit


def _revision(source: Path | str) -> str | None:
    return _hub_name_and_commit(source)[1] if _is_hub_name(source) else None


def _location(source: Path | str) -> str:
    """Return what transformers is asked for: a hub name, or a folder that holds a model."""
    if _is_hub_name(source):
        return _hub_name_and_commit(source)[0]
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"no model at '{source}': a folder with config.json and model.safetensors is "
            f"expected; give such a folder, or {HUB_FORM}"
        )
    return str(folder)


def load_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, from its folder or from the folder around a pair.

    Raises:
        UserError: if it is missing or unreadable.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    location = _location(source)
    shared = Path(location).parent / "tokenizer.json"
    own = (Path(location) / name for name in ("tokenizer.json", "tokenizer_config.json"))
    if not _is_hub_name(source) and shared.is_file() and not any(path.is_file() for path in own):
        config = json.loads((Path(location) / "config.json").read_text(encoding="utf-8"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(shared))
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config["eos_token_id"])
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config["pad_token_id"])
        return tokenizer
    try:
        return AutoTokenizer.from_pretrained(
            location, revision=_revision(source) or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _unreadable("tokenizer", source, error) from error


def load_model(source: Path | str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load one model of a pair, in evaluation mode.

    Raises:
        UserError: if it is missing or unreadable.
    """
    # Loading transformers takes seconds, which commands without a model should not pay.
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            _location(source),
            revision=_revision(source) or "main",
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise _unreadable("model", source, error) from error
    finally:
        if was_shown:
            logging.enable_progress_bar()
    return model.eval().requires_grad_(False)


def _unreadable(part: str, source: Path | str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"the {part} of '{source}' cannot be read ({reason}); give a folder or hub name of a "
        "causal language model in safetensors with its tokenizer"
    )
