"""Curves and bars that are written, whole, in their size and with what they claim."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from uara.figures import results

ROWS = [
    {"controller": "slow", "observes": "network", "kind": "rule",
     "e2e_latency_s": {"mean": 9.0, "ci95": [8.0, 10.5]}},
    {"controller": "quick", "observes": "device", "kind": "policy",
     "e2e_latency_s": {"mean": 4.0, "ci95": [3.5, 4.5]}},
]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Keep every figure that is written."""
    kept: list[Figure] = []
    write = results.write_png

    def keep(figure: Figure, path: Path) -> None:
        kept.append(figure)
        write(figure, path)

    monkeypatch.setattr(results, "write_png", keep)
    return kept


def test_bars_stand_best_on_top_with_their_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "new" / "bars.png"
    results.draw_latency_bars(ROWS, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["bars.png"]
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (round(0.45 * 2 * 150 + 150), 7 * 150)
    assert pixels[..., :3].std() > 0.05
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "slow (network)", "quick (device)",
    ]  # fmt: skip
    assert [bar.get_width() for bar in axes.patches] == [9.0, 4.0]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] != colours[1]
    segments = [part for lines in axes.collections for part in lines.get_segments()]
    spans = [segment[:, 0].tolist() for segment in segments]
    assert [8.0, 10.5] in spans
    assert [3.5, 4.5] in spans


def test_bars_without_a_known_interval_are_drawn(tmp_path: Path) -> None:
    cell = {"mean": 5.0, "ci95": [-math.inf, math.inf]}
    rows = [{"controller": "one", "observes": "network", "e2e_latency_s": cell}]
    results.draw_latency_bars(rows, tmp_path / "one.png")
    pixels = matplotlib.image.imread(tmp_path / "one.png")[..., :3]
    grey = np.isclose(pixels, 0.6, atol=0.01).all(-1)
    assert grey.mean() > 0.1


def test_curves_are_drawn_over_the_rules(tmp_path: Path, drawn: list[Figure]) -> None:
    results.draw_learning_curve(
        {"mappo": ([1000, 2000], [9.0, 7.0])}, {"random": 12.0, "greedy_latency": 6.5},
        tmp_path / "curve.png",
    )  # fmt: skip
    assert matplotlib.image.imread(tmp_path / "curve.png").shape[:2] == (4 * 150, 7 * 150)
    axes = drawn[0].axes[0]
    curve, random, greedy = axes.lines
    assert curve.get_xydata().tolist() == [[1, 9], [2, 7]]
    assert (random.get_ydata()[0], greedy.get_ydata()[0]) == (12.0, 6.5)
    assert random.get_color() != greedy.get_color()
    assert {text.get_text() for text in axes.texts} == {"random", "greedy_latency"}


def test_a_picture_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Figure, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        results.draw_latency_bars(ROWS, tmp_path / "bars.png")
    assert list(tmp_path.iterdir()) == []
