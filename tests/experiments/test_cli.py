"""The error contract of the command line, and what its commands leave behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from experiments.config import PROJECT, TaskConfig
from uara.radio.bank import bank_path

Uara = Callable[..., tuple[int, str, str]]

EVALUATE = ("evaluate", "task.yaml")
BUILD = ("channels", "build", "task.yaml")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(uara: Uara, *words: object) -> str:
    """Run a command that must end in one line and status 2, with no file more than before."""
    before = files(Path.cwd())
    status, _, err = uara(*words)
    assert status == 2, err
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert files(Path.cwd()) == before
    return err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # what was given, what is allowed, how to mend it
        ((*EVALUATE, "bank.spede=1"), ["bank.spede", "given: 1", "`uara schema` lists"]),
        ((*EVALUATE, "world.bandwidth_hz=-1"), ["world.bandwidth_hz", "greater than 0", "-1"]),
        ((*EVALUATE, "physics.codec=morse"), ["physics.codec", "'topk'", "morse"]),
        ((*EVALUATE, "episodes"), ["'episodes'", "key=value", "seed=1"]),
        ((*EVALUATE, "=3"), ["'=3'", "key=value"]),
        ((*EVALUATE, "name.first=x"), ["name.first=x", "'name' is no group of options"]),
        ((*EVALUATE, "world.servers=[a"), ["world.servers=[a", "not YAML"]),
        ((*EVALUATE, "world.servers=[4xA100-40GB, 4xH900]"), ["4xH900", "4xA100-40GB, ", "4xA40"]),
        ((*EVALUATE, "world.devices=[brick]"), ["brick", "snapdragon-865"]),
        ((*EVALUATE, "world.servers=[4xA40]"), ["bank.num_servers is 2", "names 1", "make them"]),
        ((*EVALUATE, "world.horizon_slots=17"), ["17", "16 slots", "shorten"]),
        ((*EVALUATE, "acceptance=none.json"), ["none.json", "uara pair calibrate"]),
        ((*EVALUATE, "--controller", "psychic"), ["psychic", "max_sinr", "greedy_latency"]),
        ((*EVALUATE, "--controller", "max_sinr+psychic"), ["psychic", "bandwidth: equal", "ucb"]),
        ((*EVALUATE, "--policy", "none.pt"), ["none.pt", "does not exist", "uara train"]),
        ((*EVALUATE, "--policy", "none.zip"), ["none.zip", "does not exist", "uara train"]),
        (("evaluate", "none.yaml"), ["none.yaml", "does not exist", "ls experiments/"]),
        (("evaluate", "."), ["config .", "does not exist"]),
        (("train", "task.yaml"), ["task.yaml names no task", "experiments/quickstart.yaml"]),
        (("train", "experiment.yaml", "learner.kind=dqn"), ["learner", "'mappo'", "'sb3_ppo'"]),
        (("train", "experiment.yaml", "--resume"), ["runs/tiny/seed0", "config.yaml", "give the"]),
        (("decode", "task.yaml", "--draft", "here"), ["--draft", "--target", "both"]),
        (("decode", "task.yaml", "world.outages={}"), ["world.outages is set, allowed: null"]),
        (("decode", "task.yaml", "physics.service=fluid"), ["physics.service is 'fluid'"]),
        (("decode", "task.yaml", "decode.world=3"), ["decode.world is 3", "0 to 2"]),
        (("decode", "task.yaml", "decode.requests=0"), ["decode.requests", "greater than 0"]),
        (("channels", "build", "task.yaml", "bank.train=-1"), ["bank.train", "-1"]),
        ((*BUILD, "--backend", "smoke"), ["bank.backend", "'rt'", "smoke"]),
        ((*BUILD, "--backend", "rt"), ["`make channels-rt`", "--python"]),
        ((*BUILD, "--backend", "tensorflow"), ["`make channels-tf`", "--python"]),
        ((*BUILD, "--backend", "rt", "--python", "none"), ["cannot run none", "channels-rt"]),
        ((*BUILD, "--backend", "rt", "bank.scene=rome"), ["bank.scene", "'munich'", "rome"]),
        ((*BUILD, "--radio-map", "map.png"), ["radio maps", "--backend rt"]),
        (("pair", "train", "target.width=-1"), ["target", "`uara schema`"]),
        (("pair", "calibrate", "--prompts", "none.jsonl"), ["none.jsonl", "JSONL"]),
        (("pair", "calibrate", "--machine", "task.yaml"), ["task.yaml exists", "--overwrite"]),
        (("pair", "calibrate", "--times-only", "--json", "a.json"), ["--json", "drop one"]),
        (("pair", "calibrate", "new_tokens=[600]"), ["add up to 984", "allowed: 512"]),
        (("pair", "calibrate", "rows=[1]"), ["four coefficients", "give two values"]),
        (("sweep", "experiment.yaml", "--override", "speed"), ["'speed'", "key=value"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_mistake_ends_in_one_line(uara: Uara, words: tuple[str, ...], told: list[str]) -> None:
    line = refused(uara, *words)
    for text in told:
        assert text in line


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00"], ids=["cut", "list", "empty", "zero"])
def test_a_config_that_is_no_mapping_is_named(uara: Uara, project: Path, text: str) -> None:
    (project / "task.yaml").write_text(text)
    assert "task.yaml" in refused(uara, *EVALUATE)


def test_a_config_of_bytes_is_named(uara: Uara, project: Path) -> None:
    (project / "task.yaml").write_bytes(b"name: \xff\xfe")
    assert "task.yaml is not YAML" in refused(uara, *EVALUATE)


@pytest.mark.parametrize("name", ["policy.pt", "policy.zip"])
@pytest.mark.parametrize("content", [b"", b"no policy", b"PK\x03\x04cut"])
def test_a_corrupt_policy_is_named(uara: Uara, project: Path, name: str, content: bytes) -> None:
    (project / name).write_bytes(content)
    line = refused(uara, *EVALUATE, "--policy", name)
    assert name in line
    assert "give a file that `uara train` wrote" in line


def test_a_corrupt_bank_is_named(uara: Uara, task: TaskConfig) -> None:
    path = bank_path(task.bank, "banks")
    path.write_bytes(path.read_bytes()[:-100])
    line = refused(uara, *EVALUATE)
    assert str(path) in line
    assert "--force" in line


def test_a_bank_of_another_config_is_refused(uara: Uara, task: TaskConfig) -> None:
    other = task.bank.model_copy(update={"seed": 5})
    shutil.copy(bank_path(task.bank, "banks"), bank_path(other, "banks"))
    line = refused(uara, *EVALUATE, "bank.seed=5")
    assert "seed 0 (asked: 5)" in line
    assert "build the bank" in line


def test_two_tokenizers_are_refused(uara: Uara, project: Path) -> None:
    for name, letters in (("draft", "abc"), ("target", "abcd")):
        vocabulary = {letter: number for number, letter in enumerate(letters)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        )
        tokenizer.save_pretrained(project / name)
        (project / name / "config.json").write_text('{"model_type": "llama"}')
    line = refused(uara, "decode", "task.yaml", "--draft", "draft", "--target", "target")
    for text in ("draft", "target", "3 and 4 tokens", "choose two models of one family"):
        assert text in line


def test_a_name_on_a_hub_is_taken_as_such(
    uara: Uara, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str, **options: object) -> object:
        asked.append(name)
        raise OSError("offline")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", load)
    small, big = (f"hub:a/{name}@{'0' * 40}" for name in ("small", "big"))
    line = refused(uara, "decode", "task.yaml", "--draft", small, "--target", big)
    assert asked == ["a/small"]
    assert "hub:a/small" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "none.yaml"], "none.yaml"),
        pytest.param(
            ["evaluate", "task.yaml", "world.bandwidth_hz=-1"],
            "greater than 0",
            marks=pytest.mark.slow,
        ),
        pytest.param(["train", "task.yaml"], "names no task", marks=pytest.mark.slow),
    ],
)
def test_the_real_command_exits_with_two(project: Path, words: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uara", *words],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert done.stdout == ""


def test_evaluate_leaves_table_picture_and_json(uara: Uara, project: Path) -> None:
    status, out, err = uara(
        *EVALUATE, "evaluation.episodes=6", "--controller", "max_sinr",
        "--controller", "max_sinr+equal_finish+ucb", "--csv", "out/rows.csv",
        "--figure", "out/bars.png", "--json", "out/rows.json",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert "max_sinr" in out
    assert "greedy_latency" not in out
    assert sorted(os.listdir("out")) == ["bars.png", "rows.csv", "rows.json"]
    content = json.loads(Path("out/rows.json").read_text())
    assert content["command"] == "evaluate"
    assert content["config"]["evaluation"]["episodes"] == 6
    assert {row["controller"] for row in content["rows"]} == {
        "max_sinr", "max_sinr+equal_finish+ucb",
    }  # fmt: skip
    assert content["provenance"]["threads"] == 1


def test_what_is_unknown_is_null_in_json(uara: Uara, project: Path) -> None:
    # One world is one cluster: there is no interval.
    raw = yaml.safe_load(Path("task.yaml").read_text())
    raw["evaluation"]["episodes"] = 1
    Path("task.yaml").write_text(yaml.safe_dump(raw))
    assert uara(*EVALUATE, "--json", "rows.json", "--csv", "r.csv", "--figure", "r.png")[0] == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(Path("rows.json").read_text(), parse_constant=refuse)
    assert content["rows"][0]["e2e_latency_s"]["ci95"] == [None, None]


def test_schema_is_json_with_a_description_of_every_option(uara: Uara) -> None:
    status, out, _ = uara("schema")
    assert status == 0
    schemas = json.loads(out)
    assert set(schemas) == {"task", "experiment", "plan", "uara-p1"}
    groups = [
        group
        for name in ("experiment", "plan")
        for group in (schemas[name], *schemas[name]["$defs"].values())
    ]
    options = {name for group in groups for name in group["properties"]}
    # One of each floor, by its name in the YAML.
    assert {"carrier_hz", "bandwidth_hz", "codec", "arrivals_per_s", "draft_length", "view",
            "energy_weight", "rollout_slots", "env_steps", "episodes"} <= options  # fmt: skip
    for group in groups:
        for name, option in group["properties"].items():
            assert option.get("description"), f"{group['title']}.{name}"
            assert group["additionalProperties"] is False
