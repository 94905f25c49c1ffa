"""Ships a trained policy: its file and a card that says how it was made and what it scores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from agents.training import best_policy_path
from experiments.config import PROJECT, ExperimentConfig
from experiments.evaluation import METRICS, EpisodeRows
from experiments.runs import provenance, write_json, write_text
from uara.files import whole_file

SHIPPED = PROJECT / "checkpoints" / "policies"
FILES = (PROJECT / "experiments", PROJECT / "experiments" / "learned")
OBSERVES = {
    "device": "a phone's own links, its own request and what servers broadcast",
    "network": "the whole state of the network",
}
SIZES = {
    "mappo": "the same weights take any number of devices and servers, without any claim there",
    "sb3_ppo": "it takes only as many devices and servers",
}


def experiment_file(name: str) -> Path:
    """Find the file of an experiment of this project; by its name, where there is none yet."""
    found = (folder / f"{name}.yaml" for folder in FILES)
    return next((path for path in found if path.is_file()), FILES[0] / f"{name}.yaml")


def ship_policy(
    config: ExperimentConfig, run_dir: Path, rows: EpisodeRows, folder: Path = SHIPPED
) -> Path:
    """Copy the best policy of a finished run to the checkpoints and write its card.

    Args:
        config: the experiment.
        run_dir: folder of the run.
        rows: its episodes on the evaluation worlds.
        folder: parent of the policy's folder.

    Returns:
        The policy file.
    """
    home = folder / config.name
    source = best_policy_path(run_dir, config.learner)
    target = home / source.name
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)
    card = {
        "policy": target.name,
        "experiment": config.model_dump(mode="json"),
        "observes": rows.observes,
        "task_hash": config.task.config_hash(),
        "bank_hash": config.task.bank.config_hash(),
        "row": {name: rows.interval(name).as_json() for name in METRICS},
        "episodes": len(rows.world),
        "provenance": provenance(),
    }
    write_json(home / "card.json", card)
    write_text(home / "card.md", card_text(config, card))
    return target


def card_text(config: ExperimentConfig, card: dict[str, Any]) -> str:
    """Write the card for people."""
    row = card["row"]
    scores = "\n".join(
        f"| {name} ({unit}) | {row[name]['mean']:.4g} |" for name, unit in METRICS.items()
    )
    return f"""# Policy `{config.name}`

Made by `uara train {experiment_file(config.name).relative_to(PROJECT)} seed={config.seed}`
(commit {card["provenance"]["commit"]}, torch {card["provenance"]["packages"]["torch"]});
chosen by validation among the policies of that run. It observes as `{card["observes"]}`:
{OBSERVES[card["observes"]]}. Learned heads: {", ".join(config.control.learned)}; the rest by closed
forms. Trained on the task `{config.task.name}` alone; {SIZES[config.learner.kind]}.

Means over {card["episodes"]} frozen episodes on worlds that training did not see:

| metric | mean |
| --- | --- |
{scores}
"""
