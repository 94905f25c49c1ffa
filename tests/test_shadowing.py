"""A foreign package under one of our names ends in one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uara.shadowing import check_packages

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["agents", "envs"])
def test_foreign_package_ends_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    run = subprocess.run(
        [sys.executable, "-m", "uara", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert f"the package '{name}' is found at {tmp_path}" in run.stderr


def test_our_own_packages_pass() -> None:
    check_packages()
