"""Refuses to run when a foreign package hides one of the project's top-level packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGES = ("envs", "agents", "experiments")


def check_packages(root: Path | None = None) -> None:
    """Check that `envs`, `agents` and `experiments` are the ones that stand beside `uara`.

    Args:
        root: folder that holds the project's packages; the parent of `uara` by default.

    Raises:
        ImportError: in one line, when another distribution's package of that name is found first.
    """
    root = root if root is not None else Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = spec.origin if spec is not None else None
        found = Path(origin).resolve().parent if origin else None
        if found != root / name:
            raise ImportError(
                f"the package '{name}' is found at {found}, but uara needs its own at "
                f"{root / name}: uninstall or rename the other one, or put uara's folder first "
                "on the Python path"
            )
