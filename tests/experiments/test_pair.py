"""How the shipped pair is made: the split, the measurement of acceptance, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.progress import Progress
from scipy import stats
from torch import Tensor

from experiments.pair.acceptance import (
    RATES,
    acceptance_rates,
    coupled_overlap,
    held_out_prompts,
    measure_acceptance,
    overlap,
    rounded_overlap,
    sample_continuations,
)
from experiments.pair.corpus import TEXT_TASKS, Corpus, build_corpus, is_held_out
from experiments.pair.training import (
    ModelShape,
    PairTrainingConfig,
    distillation_loss,
    draft_stage,
    prepare_material,
    target_stage,
    train_pair,
)
from uara.decoding.models import (
    SHIPPED_PAIR_FOLDER,
    ModelPair,
    Prompt,
    load_pair,
    load_prompts,
    shipped_pair,
)
from uara.decoding.randomness import Draws, Purpose
from uara.errors import UserError

MODULE = '''"""Count the {name} of a garden, one bed after another, and report them all."""


def count_{name}(beds, skip=None):
    """Return how many {name} grow in the beds, without those of the beds that are skipped."""
    total = 0
    for bed in beds:
        if bed is not skip:
            total += len(bed.{name})
    return total
'''


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    for number in range(40):
        (folder / f"plant{number}.py").write_text(MODULE.format(name=f"plant{number}"))
    (folder / "tests").mkdir()
    (folder / "tests" / "never_read.py").write_text(MODULE.format(name="weed"))
    (folder / "broken.py").write_text("def (:")
    return folder


@pytest.fixture(scope="module")
def corpus(library: Path) -> Corpus:
    return build_corpus(library)


def tiny_config(library: Path) -> PairTrainingConfig:
    return PairTrainingConfig(
        library=library,
        vocab_size=300,
        context=320,
        target=ModelShape(width=16, layers=3, heads=2, feed_forward=16),
        draft_layers=1,
        target_steps=6,
        draft_steps=4,
        step_tokens=64,
        short_window=32,
        generated_prompts=4,
        generated_tokens=8,
    )


class FixedLaw:
    """A model whose next token follows one law, whatever stands before it."""

    def __init__(self, probabilities: list[float]) -> None:
        self.logits = torch.tensor(probabilities).log()
        self.config = SimpleNamespace(max_position_embeddings=512)

    def __call__(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Return the law's logits at each position."""
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1), past_key_values=0)


class Characters:
    """A tokenizer of one id per character; id 0 ends a text."""

    eos_token_id = 0

    def encode(self, text: str, **_: Any) -> list[int]:
        """Return id 1 or 2 for each character."""
        return [1 + ord(character) % 2 for character in text]


def hand_made_pair(draft: list[float], target: list[float]) -> ModelPair:
    parts = (FixedLaw(draft), FixedLaw(target), Characters())
    return ModelPair(*cast(Any, parts), name="hand-made")


def prompts_of_each_task(count: int) -> list[Prompt]:
    return [
        Prompt(id=f"{task}{index}", task=task, text="ab")
        for task in TEXT_TASKS
        for index in range(count)
    ]


def test_no_unit_is_on_both_sides_of_the_split(corpus: Corpus) -> None:
    train = {doc.unit for doc in corpus.train}
    held_out = {doc.unit for doc in corpus.held_out}
    assert train
    assert held_out
    assert train.isdisjoint(held_out)
    assert train | held_out == {f"plant{number}.py" for number in range(40)}


def test_the_corpus_is_the_same_each_time(library: Path, corpus: Corpus) -> None:
    assert build_corpus(library) == corpus


def test_the_corpus_hash_sees_a_changed_letter(library: Path, tmp_path: Path) -> None:
    source = (library / "plant0.py").read_text()
    digests = []
    for text in (source, source.replace("garden", "Garden")):
        (tmp_path / "plant0.py").write_text(text)
        digests.append(build_corpus(tmp_path).sha256)
    assert digests[0] != digests[1]


def test_the_split_does_not_move() -> None:
    # Were the hash to change, prompts of the shipped decode set would be training text.
    assert [is_held_out(unit) for unit in ("argparse.py", "pickle.py", "ast.py")] == [
        True,
        True,
        False,
    ]


def test_a_summary_prompt_does_not_hold_its_answer(corpus: Corpus) -> None:
    summaries = [doc for doc in corpus.train if doc.task == "summarise"]
    assert summaries
    assert all("Return how many" in doc.answer for doc in summaries)
    assert not any("Return how many" in doc.prompt for doc in summaries)


def test_an_empty_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Python source"):
        build_corpus(tmp_path)


def test_acceptance_of_known_laws_is_their_overlap() -> None:
    pair = hand_made_pair(draft=[0.2, 0.7, 0.1], target=[0.1, 0.4, 0.5])
    table = measure_acceptance(pair, prompts_of_each_task(3), 1.0, max_tokens=8)
    # min(.2, .1) + min(.7, .4) + min(.1, .5)
    assert table["rules"]["maxc"]["code"] == {"mean": 0.6, "std": 0.0, "prompts": 3}
    assert table["rules"]["greedy"]["code"]["mean"] == 0.0
    assert table["rules"]["maxc"]["photo"] == table["rules"]["maxc"]["chat"]
    assert table["tasks"] == ["chat", "summarise", "code", "photo"]


def test_a_lower_temperature_sharpens_both_laws() -> None:
    pair = hand_made_pair(draft=[0.2, 0.8], target=[0.4, 0.6])
    rates = acceptance_rates(pair, [[1]], [[1]], 0.5, ["maxc"])["maxc"]
    # Squared and normalised: (.04, .64)/.68 and (.16, .36)/.52.
    assert rates[0].item() == pytest.approx(0.04 / 0.68 + 0.36 / 0.52)


def test_a_cut_draft_law_is_renormalised() -> None:
    draft, target = torch.tensor([[0.5, 0.3, 0.2]] * 2), torch.tensor([[0.6, 0.1, 0.3]] * 2)
    # Cut to (5/8, 3/8, 0): min(.6, .625) + min(.1, .375).
    assert overlap(target, draft, top=2).tolist() == pytest.approx([0.7, 0.7])


def test_onehot_keeps_the_drafts_likeliest_token_as_often_as_the_target_says_it() -> None:
    pair = hand_made_pair(draft=[0.2, 0.7, 0.1], target=[0.1, 0.4, 0.5])
    rates = acceptance_rates(pair, [[1]], [[1, 2]], 1.0, ["onehot", "greedy"])
    assert rates["onehot"][0].tolist() == pytest.approx([0.4, 0.4])


def test_probabilities_of_8_bits_are_tested_by_their_upper_neighbours() -> None:
    # Three significant bits: .3 rounds up to .3125, .7 to .75.
    draft, target = torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4])
    assert rounded_overlap(target, draft).item() == pytest.approx(0.3 + 0.7 * 0.4 / 0.75)


def test_races_under_one_noise_agree_as_often_as_computed() -> None:
    generator = np.random.default_rng(3)
    target, draft = generator.dirichlet([0.5] * 6, 2)
    draft[4] = 0.0
    draft /= draft.sum()
    rate = coupled_overlap(torch.tensor(target), torch.tensor(draft)).item()
    by_pairs = sum(
        1 / np.maximum(target / target[x], draft / draft[x]).sum() for x in np.flatnonzero(draft)
    )
    assert rate == pytest.approx(by_pairs)
    distance = np.abs(target - draft).sum() / 2
    assert (1 - distance) / (1 + distance) <= rate <= 1 - distance
    races = [Draws(seed) for seed in range(3000)]
    same = sum(d.race(Purpose.DRAFT, 0, draft) == d.race(Purpose.TARGET, 0, target) for d in races)
    assert stats.binomtest(same, 3000, rate).pvalue > 1e-3


def test_a_text_ends_at_the_end_token() -> None:
    texts = sample_continuations(
        cast(Any, FixedLaw([0.5, 0.5])),
        [[1, 1], [1]] * 20,
        max_tokens=4,
        temperature=1.0,
        end_token_id=0,
        generator=torch.Generator().manual_seed(0),
    )
    assert all(0 not in text[:-1] for text in texts)
    assert all(text[-1] == 0 or len(text) == 4 for text in texts)
    assert {len(text) for text in texts} == {1, 2, 3, 4}


def test_a_batch_writes_what_each_prompt_alone_writes(library: Path, tmp_path: Path) -> None:
    config = tiny_config(library)
    model = target_stage(config, prepare_material(config, tmp_path), tmp_path).model.double().eval()
    prompts = [[5, 6, 7, 8, 9], [40], [90, 80, 70]]
    texts = sample_continuations(
        model,
        prompts,
        max_tokens=6,
        temperature=0.0,
        end_token_id=299,
        generator=torch.Generator(),
    )
    for prompt, text in zip(prompts, texts, strict=True):
        written = list(prompt)
        for _ in range(6):
            logits = model(input_ids=torch.tensor([written]), use_cache=False).logits
            written.append(int(logits[0, -1].argmax()))
        assert written == prompt + text


@pytest.mark.parametrize(
    ("temperature", "max_tokens", "count", "message"),
    [(0.0, 8, 1, "not positive"), (1.0, 511, 1, "context of 512"), (1.0, 8, 0, "no prompt")],
)
def test_a_measurement_that_cannot_be_made_is_refused(
    temperature: float, max_tokens: int, count: int, message: str
) -> None:
    pair = hand_made_pair([0.5, 0.5], [0.5, 0.5])
    with pytest.raises(UserError, match=message):
        measure_acceptance(pair, prompts_of_each_task(count), temperature, max_tokens=max_tokens)


def test_the_distillation_loss_is_least_at_the_target_itself() -> None:
    target = torch.tensor([[[1.0, 0.0, -2.0]]])
    own = distillation_loss(target, target, 0.7)
    for other in ([1.0, 0.1, -2.0], [0.0, 0.0, 0.0], [-2.0, 0.0, 1.0]):
        assert distillation_loss(torch.tensor([[other]]), target, 0.7) > own


def test_a_draft_begins_with_the_first_and_last_layer_of_its_target(
    library: Path, tmp_path: Path
) -> None:
    config = tiny_config(library).model_copy(update={"draft_layers": 2})
    material = prepare_material(config, tmp_path)
    target = target_stage(config, material, tmp_path).model
    draft = draft_stage(config, material, target, {}, tmp_path).model
    for mine, its in ((0, 0), (1, 2)):
        weights = target.model.layers[its].state_dict()
        for name, weight in draft.model.layers[mine].state_dict().items():
            assert torch.equal(weight, weights[name])
    assert torch.equal(draft.model.embed_tokens.weight, target.model.embed_tokens.weight)


def test_an_interrupted_stage_ends_with_the_same_weights(library: Path, tmp_path: Path) -> None:
    config = tiny_config(library)
    weights = []
    for name, stops in (("straight", [None]), ("interrupted", [2, 5, None])):
        for stop_after in stops:
            work = tmp_path / name
            stage = target_stage(config, prepare_material(config, work), work)
            stage.run(Progress(disable=True), stop_after=stop_after)
        weights.append(stage.model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_all_stages_give_a_pair_that_loads(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.pair.training.FROZEN_PER_TASK", 1)
    out = tmp_path / "pair"
    train_pair(tiny_config(library), out, work=tmp_path / "work")
    pair = load_pair(out / "draft", out / "target")
    table = json.loads((out / "acceptance.json").read_text())
    assert pair.context_tokens == 320
    assert set(table["rules"]) == set(RATES)
    assert {prompt.task for prompt in load_prompts(out / "prompts.jsonl")} == set(TEXT_TASKS)
    assert (out / "card.md").read_text().startswith("# uara-stdlib")
    with pytest.raises(UserError, match="another config"):
        train_pair(PairTrainingConfig(seed=7), out, work=tmp_path / "work")


def test_calibration_and_decode_set_do_not_overlap(library: Path, corpus: Corpus) -> None:
    tokenizer = prepare_material(tiny_config(library), library.parent / "tokens").tokenizer
    first = held_out_prompts(corpus.held_out, tokenizer, 1)
    later = held_out_prompts(corpus.held_out, tokenizer, 9, skip=1)
    assert {prompt.id for prompt in first}.isdisjoint(prompt.id for prompt in later)
    assert {prompt.text for prompt in first}.isdisjoint(prompt.text for prompt in later)


def test_the_shipped_pair_accepts_what_its_card_says() -> None:
    frozen = load_prompts(SHIPPED_PAIR_FOLDER / "prompts.jsonl")
    card = json.loads((SHIPPED_PAIR_FOLDER / "card.json").read_text())
    few = [
        prompt
        for task in TEXT_TASKS
        for prompt in [each for each in frozen if each.task == task][:8]
    ]
    table = measure_acceptance(shipped_pair(), few, card["temperature"], max_tokens=32)
    rates = {task: table["rules"]["maxc"][task]["mean"] for task in TEXT_TASKS}
    said = card["acceptance"]["maxc"]
    for task in TEXT_TASKS:
        assert rates[task] == pytest.approx(said[task], abs=0.12)
    assert sum(said[task] for task in TEXT_TASKS) / 3 >= 0.70
