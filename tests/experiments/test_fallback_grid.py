"""The grid of the fall-back: its settings, its file, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import fallback_grid
from experiments.fallback_grid import Cell, CellResult, finished, grid, main, oracle, write
from uara.errors import UserError

TINY = Cell(0.0, 0.0, 0.0, requests=2, tokens=20)


def test_the_grid_has_every_setting_once() -> None:
    cells = grid(TINY)
    assert len(set(cells)) == 8 * 14 * 2
    assert grid(TINY, 100) == [cells[0], cells[100], cells[200]]


def test_the_best_length_is_never_worth_less_than_the_server_alone() -> None:
    hopeless, easy = Cell(0.2, 0.3, 0.072), Cell(0.005, 0.95, 0.1456)
    assert oracle(hopeless) == 1.0
    assert 3 < oracle(easy) < 0.1456 / fallback_grid.DRAFT_S


def test_a_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.jsonl"
    first, *rest = grid(TINY, 80)
    write(path, [CellResult(first, [1.5, 0.9], 7)])
    played = []

    def play(cell: Cell) -> CellResult:
        played.append(cell)
        return CellResult(cell, [1.0, 1.2], 3)

    monkeypatch.setattr(fallback_grid, "measure", play)
    main(2, 20, TINY.confidence, every=80, jumps=False, file=path)
    assert played == rest
    assert finished(path)[first].mean == pytest.approx(1.2)
    assert "worst mean 1.100" in capsys.readouterr().out


def test_a_setting_below_the_bar_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_grid, "measure", lambda cell: CellResult(cell, [0.96], 1))
    with pytest.raises(Exception, match="1") as stopped:
        main(1, 20, TINY.confidence, every=200, jumps=False, file=tmp_path / "found.jsonl")
    assert stopped.type.__name__ == "Exit"


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text("nothing\n")
    with pytest.raises(UserError, match="give another --file"):
        finished(path)
