"""Names that users write: they do not change silently."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import click
import pytest
import typer

import envs
from agents.learners import LEARNERS, LearnerConfig
from agents.policy import load_policy
from experiments.cli import app
from experiments.evaluation import METRICS
from uara.control.allocation import AllocationConfig
from uara.control.association import ASSOCIATION_RULES
from uara.control.bandwidth import BANDWIDTH_RULES
from uara.control.compute_share import COMPUTE_RULES
from uara.control.controllers import CONTROLLERS
from uara.control.mode import BEST, FIXED_MODES
from uara.control.p1.allocators import ALLOCATORS
from uara.control.p1.associations import ASSOCIATIONS
from uara.control.plan.baselines import BASELINES
from uara.control.plan.model_cost import MODELS
from uara.control.power import POWER_RULES
from uara.control.registry import RULES
from uara.decoding.models import load_pair, load_prompts, shipped_pair
from uara.decoding.run import RULE_CODES, DecodingConfig, run_decoding
from uara.errors import UserError
from uara.network import Controller, Decision, NetworkState, SlotOutcome
from uara.prediction import PhysicsConfig
from uara.radio.bank import SPLITS
from uara.serving.hardware import PHONES, RACKS
from uara.serving.modes import MODES

ROOT = Path(__file__).resolve().parent.parent


def test_the_names_of_envs() -> None:
    assert sorted(envs.__all__) == [
        "Action", "BatchedEnv", "ControlConfig", "EnvRecipe", "NetworkEnv", "NetworkParallelEnv",
        "NetworkVecEnv", "Observation", "ObservationConfig", "ObservationSchema", "RewardConfig",
        "Step", "observe", "parallel_env", "schema",
    ]  # fmt: skip
    for name in envs.__all__:
        assert hasattr(envs, name)


def test_the_names_of_learners() -> None:
    assert list(LEARNERS) == ["mappo", "ippo", "bandit", "masac", "sb3_ppo", "sb3_sac"]
    kinds = {get_args(c.model_fields["kind"].annotation)[0] for c in get_args(LearnerConfig)}
    assert kinds == set(LEARNERS)
    assert list(inspect.signature(load_policy).parameters) == [
        "path", "physics", "name", "deterministic",
    ]  # fmt: skip


def test_the_names_of_rules() -> None:
    assert list(ASSOCIATION_RULES) == [
        "random", "max_sinr", "max_compute", "least_loaded", "greedy_latency", "max_gain",
        "bias_cre", "max_compute_share", "max_rate_share", "gs_quota", "hungarian", "tma",
        "tma_moves", "best_response", "exhaustive", "sticky_max_gain", "sticky_max_rate_share",
        "sticky_greedy_latency",
    ]  # fmt: skip
    assert list(BANDWIDTH_RULES) == [
        "equal", "demand", "square_root", "least_sum", "equal_finish", "goodput",
        "proportional_fair", "joint_min_max",
    ]  # fmt: skip
    assert list(POWER_RULES) == ["full", "open_loop", "min_energy_deadline", "wmmse"]
    assert RULES["draft_length"] == ("argmin", "log_threshold", "ucb")
    assert RULES["mode"] == ("sd", "server_ar", "device_only", "psd", "async", "best_mode")
    assert list(CONTROLLERS) == [
        "completion_greedy", "local_greedy", "joint_greedy", "joint_moves", "oracle",
    ]  # fmt: skip
    assert list(COMPUTE_RULES) == [
        "equal_compute", "square_root_compute", "proportional_compute", "joint_min_max",
    ]  # fmt: skip


def test_only_the_joint_rule_is_of_two_kinds() -> None:
    names = [
        *ASSOCIATION_RULES,
        *CONTROLLERS,
        *(name for rules in RULES.values() for name in rules),
    ]
    assert {name for name in names if names.count(name) > 1} == {"joint_min_max"}


def test_the_names_of_the_planner() -> None:
    assert list(BASELINES) == [
        "uniform_bandwidth", "no_pipeline", "series_of_the_plan", "no_batching", "static", "max",
        "max_sorted", "heuristic", "fixed_length", "decoding_in_batches", "decoding_at_once",
    ]  # fmt: skip
    assert list(MODELS) == ["68m", "1.1b", "7b", "13b"]


def test_the_names_of_problem_p1() -> None:
    assert list(ASSOCIATIONS) == [
        "random", "max_sinr", "max_compute", "least_loaded", "greedy", "tma", "tma_moves",
        "exhaustive",
    ]  # fmt: skip
    assert list(ALLOCATORS) == ["uniform", "square_root", "exact", "min_max"]


@pytest.mark.parametrize(
    ("field", "registry", "more"),
    [
        ("bandwidth", BANDWIDTH_RULES, set()),
        ("power", POWER_RULES, set()),
        ("compute_share", COMPUTE_RULES, {"undecided"}),
        ("mode", (*FIXED_MODES, BEST), {"task"}),
    ],
)
def test_a_config_allows_what_its_registry_holds(
    field: str, registry: Iterable[str], more: set[str]
) -> None:
    allowed = set(get_args(AllocationConfig.model_fields[field].annotation))
    assert allowed == set(registry) | more


def test_the_names_of_serving() -> None:
    assert list(MODES) == ["sd", "server_ar", "device_only", "psd", "async", "auto"]
    assert set(get_args(PhysicsConfig.model_fields["mode"].annotation)) == set(MODES)
    codecs = get_args(PhysicsConfig.model_fields["codec"].annotation)
    assert codecs == ("ids", "id_prob", "topk", "full")
    assert set(RULE_CODES) == set(codecs)
    assert set(RACKS) == {"4xA100-40GB", "4xRTX6000Ada", "4xL40S", "4xRTXA6000", "4xA40"}
    assert set(PHONES) == {
        "snapdragon-8-gen-3", "snapdragon-8-gen-2", "snapdragon-8-gen-1", "snapdragon-865",
    }  # fmt: skip


def test_the_names_of_decoding() -> None:
    assert list(inspect.signature(run_decoding).parameters) == [
        "pair", "requests", "gains", "controller", "world", "physics", "acceptance", "config",
        "foreign",
    ]  # fmt: skip
    assert list(inspect.signature(load_pair).parameters) == ["draft", "target", "dtype"]
    assert list(inspect.signature(shipped_pair).parameters) == ["dtype"]
    assert list(inspect.signature(load_prompts).parameters) == ["path"]
    assert sorted(DecodingConfig.model_fields) == [
        "check_draws", "drain_slots", "fallback", "read_token_s", "records", "sample_top_k",
        "sample_top_p", "seed", "tail_draws", "temperature",
    ]  # fmt: skip


def test_the_names_of_the_network() -> None:
    assert [field.name for field in dataclasses.fields(Decision)] == [
        "server", "bandwidth_hz", "power_w", "draft_length", "mode", "compute_share",
    ]  # fmt: skip
    assert {"gain", "reachable", "phase", "server", "kv_tokens", "expected_remaining_tokens"} <= {
        field.name for field in dataclasses.fields(NetworkState)
    }
    assert {"finished", "e2e_s", "ttft_s", "handover", "alive_s"} <= {
        field.name for field in dataclasses.fields(SlotOutcome)
    }
    asked = {name for name in vars(Controller) if not name.startswith("_")}
    assert asked == {"name", "observes", "reset", "decide", "observe"}
    assert SPLITS == ("train", "tuning", "validation", "evaluation")
    assert issubclass(UserError, ValueError)


def test_the_metrics_of_tables() -> None:
    assert list(METRICS) == [
        "e2e_latency_s", "ttft_s", "tpot_s", "device_energy_j", "uplink_kbit_per_token",
        "handovers", "capped_requests",
    ]  # fmt: skip


COMMANDS = {
    "channels build": [
        "--backend",
        "--folder",
        "--force",
        "--json",
        "--preview",
        "--python",
        "--radio-map",
        "--workers",
    ],
    "decode": [
        "--controller",
        "--draft",
        "--json",
        "--kernel",
        "--policy",
        "--records",
        "--target",
    ],
    "device": [
        "--authority",
        "--count",
        "--downlink-bps",
        "--draft",
        "--draft-length",
        "--mode",
        "--pace",
        "--pair",
        "--patience-s",
        "--payload",
        "--prompts",
        "--read-token-s",
        "--records",
        "--rtt-s",
        "--seed",
        "--server",
        "--temperature",
        "--tls",
        "--token-file",
        "--tokens",
        "--uplink-bps",
        "--window",
    ],
    "diagnose": ["--episodes", "--figure", "--foresight", "--json"],
    "evaluate": ["--by-part", "--controller", "--csv", "--figure", "--jobs", "--json", "--policy"],
    "pair branches": ["--draft", "--json", "--prompts", "--target", "--temperature", "--tokens"],
    "pair calibrate": [
        "--draft",
        "--json",
        "--machine",
        "--overwrite",
        "--prompts",
        "--target",
        "--temperature",
        "--times-only",
        "--traces",
    ],
    "pair train": ["--out"],
    "plan": ["--draft", "--drops", "--execute", "--gantt", "--json", "--target"],
    "quickstart": ["--folder", "--json", "--seed"],
    "report": ["--decoded", "--episodes", "--json", "--out"],
    "results": ["--seeds", "--workers"],
    "schema": [],
    "scores": ["--learner", "--render", "--seeds", "--workers"],
    "serve": [
        "--certificate",
        "--context-tokens",
        "--endpoint",
        "--endpoint-model",
        "--frame-overhead-bytes",
        "--insecure",
        "--key",
        "--listen",
        "--metrics-port",
        "--pace",
        "--pair",
        "--target",
        "--token-file",
    ],
    "sweep": ["--override", "--seeds", "--workers"],
    "tasks": ["--episodes", "--mode"],
    "train": ["--resume", "--run"],
    "tune": [
        "--controller",
        "--episodes",
        "--fresh",
        "--json",
        "--out",
        "--seed",
        "--trials",
    ],
}


def commands() -> dict[str, click.Command]:
    """Collect the commands of the command line by their full names."""
    found: dict[str, click.Command] = {}
    waiting: list[tuple[str, click.Command]] = [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop()
        below = getattr(command, "commands", None)
        if below is None:
            found[name] = command
        else:
            waiting += [(f"{name} {word}".strip(), child) for word, child in below.items()]
    return found


def test_the_commands_and_their_options() -> None:
    found = {
        name: sorted(
            option
            for parameter in command.params
            for option in parameter.opts
            if option.startswith("--") and option != "--help"
        )
        for name, command in commands().items()
    }
    assert found == COMMANDS


def test_every_command_says_what_it_does() -> None:
    for name, command in commands().items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_the_command_is_called_uara() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"uara": "uara.__main__:main"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
