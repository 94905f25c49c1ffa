"""The floors of the house: a package imports only from those below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ["uara", "envs", "agents", "experiments"]
# Bottom up; a module may import from its own line and from those above it in this list.
UARA = [
    [
        *("uara.errors", "uara.files", "uara.native", "uara.network", "uara.shadowing"),
        "uara.young_fields",
    ],
    ["uara.radio"],
    ["uara.serving"],
    ["uara.rates"],
    ["uara.prediction"],
    ["uara.local_prediction"],
    ["uara.control"],
    ["uara.world"],
    ["uara.decoding"],
    ["uara.figures"],
]


def modules() -> list[Path]:
    return sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def level(name: str) -> int | None:
    for number, names in enumerate(UARA):
        if any(name == n or name.startswith(n + ".") for n in names):
            return number
    return None


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_module_imports_only_from_floors_below(path: Path) -> None:
    own = FLOORS.index(name_of(path).split(".")[0])
    above = {name for name in imports_of(path) if name.split(".")[0] in FLOORS[own + 1 :]}
    assert not above, f"{name_of(path)} imports from floors above it: {above}"


@pytest.mark.parametrize(
    "path", [p for p in modules() if level(name_of(p)) is not None], ids=name_of
)
def test_module_of_uara_respects_the_order(path: Path) -> None:
    own = level(name_of(path))
    assert own is not None
    above = {n for n in imports_of(path) if (other := level(n)) is not None and other > own}
    assert not above, f"{name_of(path)} imports from modules above it: {above}"


def test_only_figures_import_matplotlib() -> None:
    users = {
        name_of(p) for p in modules() if any(n.split(".")[0] == "matplotlib" for n in imports_of(p))
    }
    assert users
    assert all(user.startswith("uara.figures") for user in users), users


def test_nothing_is_unpickled() -> None:
    for path in modules():
        assert not imports_of(path) & {"pickle", "cloudpickle", "joblib", "dill"}, path


def test_files_and_functions_stay_short() -> None:
    for path in modules():
        text = path.read_text()
        assert len(text.splitlines()) <= 500, f"{path} is too long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{name_of(path)}.{node.name} has {lines} lines"
