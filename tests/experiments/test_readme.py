"""What the README says runs, exists, and equals the committed results."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import typer

from experiments.cli import app
from experiments.config import PROJECT, load_any
from experiments.results import TABLES, TableSpec
from experiments.results_markdown import BLOCK, fill_tables
from uara.radio.bank import BankConfig, ChannelBank

README = PROJECT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(r"`(uara [^`]+)`", TEXT)
    return sorted({line for line in [*lines, *inline] if line.startswith("uara ")})


def parse(line: str) -> click.Context:
    """Parse a line as the command line would, without running it."""
    words = shlex.split(line)[1:]
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command, info_name="uara")
    while (below := getattr(command, "commands", None)) is not None:
        assert words, f"{line} names no command"
        assert words[0] in below, f"{line}: there is no command {words[0]}"
        command = below[words[0]]
        context, words = click.Context(command, parent=context, info_name=words[0]), words[1:]
    return command.make_context(context.info_name, words)


def test_the_readme_shows_commands() -> None:
    assert len(command_lines()) >= 5


@pytest.mark.parametrize("line", command_lines())
def test_every_command_of_the_readme_exists_with_its_options(line: str) -> None:
    given = parse(line).params if " " in line.removeprefix("uara ") else {}
    config = given.get("config") or given.get("task")
    for path in given.get("configs") or ([config] if config else []):
        if path.parent.name == "papers":  # of kinds of their own, tested where these are
            assert (PROJECT / path).is_file()
        else:
            load_any(PROJECT / path, list(given.get("overrides") or []))


def test_python_blocks_run(
    tmp_path: Path,
    made_bank: Callable[[BankConfig], ChannelBank],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = blocks("python")
    assert found
    # In a checkout of its own, with made-up gains: Sionna takes longer than the rest.
    for folder in ("experiments", "checkpoints"):
        (tmp_path / folder).symlink_to(PROJECT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "experiments.evaluation.build_or_load", lambda config, *_, **__: made_bank(config)
    )
    names: dict[str, object] = {"__name__": "readme"}
    for code in found:
        exec(compile(code, str(README), "exec"), names)


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join([*blocks("bash"), *_code_spans()])))
    assert {"quickstart", "test"} <= named <= set(targets)


def _code_spans() -> list[str]:
    return re.findall(r"`([^`\n]+)`", TEXT)


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
def test_every_table_of_the_results_is_shown(spec: TableSpec) -> None:
    assert spec.name in {block[2] for block in BLOCK.finditer(TEXT)}


@pytest.mark.parametrize("page", ["README.md", "docs/control.md"])
def test_tables_are_those_of_the_committed_results(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    assert BLOCK.search(text)
    assert fill_tables(text, PROJECT / "docs" / "results") == text


def test_links_and_pictures_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    local = [target for target in targets if "://" not in target]
    missing = [target for target in local if not Path(PROJECT / target).exists()]
    assert not missing
