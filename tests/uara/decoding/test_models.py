"""The pair of a decode run: what loads, what is refused, and what the shipped pair promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from uara.decoding.models import (
    SHIPPED_PAIR_FOLDER,
    ModelPair,
    load_model,
    load_pair,
    load_prompts,
    shipped_pair,
    tokenizer_hash,
)
from uara.errors import UserError


def write_model(folder: Path, words: list[str], *, rows: int | None = None) -> Path:
    """Write an untrained one-layer model whose vocabulary is a list of words."""
    config = LlamaConfig(
        vocab_size=rows or len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(words)}
    Tokenizer(models.WordLevel(vocabulary, unk_token=words[0])).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": words[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def shipped() -> ModelPair:
    return shipped_pair()


def assert_one_line(error: pytest.ExceptionInfo[UserError]) -> None:
    assert "\n" not in str(error.value)


def test_two_models_of_one_vocabulary_make_a_pair(tmp_path: Path) -> None:
    words = ["<end>", "a", "b"]
    draft, target = (write_model(tmp_path / name, words) for name in ("small", "large"))
    pair = load_pair(draft, str(target), dtype=torch.float64)
    assert pair.name == "small+large"
    assert pair.vocab_size == 3
    assert pair.context_tokens == 32
    assert pair.end_token_id == 0
    assert {parameter.dtype for parameter in pair.draft.parameters()} == {torch.float64}
    assert not pair.target.training


def test_same_words_under_other_ids_are_another_tokenizer(tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", ["<end>", "a", "b"])
    target = write_model(tmp_path / "target", ["<end>", "b", "a"])
    with pytest.raises(UserError, match="two tokenizers") as error:
        load_pair(draft, target)
    assert_one_line(error)


def test_a_model_smaller_than_its_vocabulary_is_refused(tmp_path: Path) -> None:
    words = ["<end>", "a", "b"]
    draft = write_model(tmp_path / "draft", words, rows=2)
    target = write_model(tmp_path / "target", words)
    with pytest.raises(UserError, match="knows 2 tokens") as error:
        load_pair(draft, target)
    assert_one_line(error)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    target = write_model(tmp_path / "target", ["<end>", "a"])
    with pytest.raises(UserError, match="nowhere") as error:
        load_pair(tmp_path / "nowhere", target)
    assert_one_line(error)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    words = ["<end>", "a"]
    draft, target = (write_model(tmp_path / name, words) for name in ("draft", "target"))
    (draft / "model.safetensors").unlink()
    torch.save({}, draft / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read") as error:
        load_pair(draft, target)
    assert_one_line(error)


def test_prompts_come_back_in_order(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"id": "1", "task": "chat", "text": "A?"}\n{"id": "2", "task": "code", "text": "x"}'
    )
    assert [(prompt.id, prompt.task) for prompt in load_prompts(file)] == [
        ("1", "chat"),
        ("2", "code"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no prompt"),
        ('{"id": "1", "task": "chat"}', "line 1"),
        ('{"id": "1", "task": "chat", "text": "A", "note": ""}', "line 1"),
        ('{"id": "1", "task": "chat", "text": "A"}\n' * 2, "'1' comes twice"),
    ],
)
def test_faulty_prompts_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_prompts(file)
    assert_one_line(error)


def test_a_missing_prompts_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompts file"):
        load_prompts(tmp_path / "prompts.jsonl")


def test_the_shipped_target_is_the_larger_model(shipped: ModelPair) -> None:
    sizes = [
        sum(parameter.numel() for parameter in model.parameters())
        for model in (shipped.draft, shipped.target)
    ]
    assert sizes[1] > 2 * sizes[0]
    assert shipped.draft.dtype == torch.float32


def test_the_shipped_tokenizer_returns_the_text_it_was_given(shipped: ModelPair) -> None:
    text = "def f(x):\n    return 'Grüße' # ≥ 1\t"
    assert shipped.tokenizer.decode(shipped.encode(text)) == text
    assert shipped.encode("<|end|>") == [shipped.end_token_id]
    assert 0 < tokenizer_hash(shipped.tokenizer) < 2**64


def test_the_frozen_prompts_leave_room_for_an_answer(shipped: ModelPair) -> None:
    prompts = load_prompts(SHIPPED_PAIR_FOLDER / "prompts.jsonl")
    for task in ("code", "summarise", "chat"):
        assert sum(prompt.task == task for prompt in prompts) >= 20
    assert max(len(shipped.encode(prompt.text)) for prompt in prompts) <= 160
    assert shipped.context_tokens >= 512


@pytest.mark.parametrize("name", ["hub:a/b", "hub:a/b@main", "hub:a/b@" + "0" * 39])
def test_a_hub_model_without_a_commit_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"names no commit.*give hub:OWNER/NAME@COMMIT") as caught:
        load_pair(name, name)
    assert "\n" not in str(caught.value)


def test_hub_models_are_loaded_at_their_commit_and_never_run_code_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def note(name: str, **options: object) -> None:
        asked.append((name, options))
        raise OSError("no hub here")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", note)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", note)
    commit = "0123456789abcdef" * 2 + "01234567"
    with pytest.raises(UserError, match=r"cannot be read \(no hub here\)"):
        load_pair(f"hub:own/small@{commit}", f"hub:own/big@{commit}")
    with pytest.raises(UserError, match=r"cannot be read \(no hub here\)"):
        load_model(f"hub:own/big@{commit}", torch.float32)
    assert [name for name, _ in asked] == ["own/small", "own/big"]
    for _, options in asked:
        assert options["revision"] == commit
        assert options["trust_remote_code"] is False
