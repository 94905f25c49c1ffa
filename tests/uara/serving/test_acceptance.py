"""The file of measured acceptance: what is read from it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uara.errors import UserError
from uara.serving.acceptance import TaskAcceptance, load_acceptance

CONTENT = {
    "format_version": 1,
    "pair": "small",
    "temperature": 0.7,
    "rules": {"maxc": {"chat": {"mean": 0.7, "std": 0.1}, "code": {"mean": 0.8, "std": 0.05}}},
}


def write(folder: Path, content: object) -> Path:
    path = folder / "acceptance.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_table_holds_what_the_file_says(tmp_path: Path) -> None:
    table = load_acceptance(write(tmp_path, CONTENT))
    assert table.pair == "small"
    assert table.temperature == 0.7
    assert table.tasks == ("chat", "code")
    assert table.of("maxc", "code") == TaskAcceptance(mean=0.8, std=0.05)


@pytest.mark.parametrize(
    ("rule", "task", "text"), [("greedy", "chat", "measured: maxc"), ("maxc", "poem", "chat, code")]
)
def test_what_was_not_measured_is_refused(tmp_path: Path, rule: str, task: str, text: str) -> None:
    table = load_acceptance(write(tmp_path, CONTENT))
    with pytest.raises(UserError, match=text):
        table.of(rule, task)


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        {key: value for key, value in CONTENT.items() if key != "pair"},
        {**CONTENT, "rules": {"maxc": {"chat": {"mean": 0.7}}}},
        {**CONTENT, "rules": {"maxc": {"chat": {"mean": "high", "std": 0.1}}}},
        {**CONTENT, "rules": {"maxc": 0.7}},
        {**CONTENT, "format_version": 2},
    ],
)
def test_what_is_no_table_of_this_version_is_refused_in_one_line(
    tmp_path: Path, content: object
) -> None:
    with pytest.raises(UserError, match=r"acceptance\.json") as refusal:
        load_acceptance(write(tmp_path, content))
    assert "\n" not in str(refusal.value)


def test_missing_file_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uara pair calibrate"):
        load_acceptance(tmp_path / "none.json")
