"""The picture of growth is written whole."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image

from uara.figures.growth import draw_growth


def test_growth_is_drawn_without_a_kind_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "growth.png"
    draw_growth({"native": [], "torch": [(24, 8.0, 450.0), (3600, 600.0, 640.0)]}, path)
    assert matplotlib.image.imread(path).shape[2] == 4
    assert [file.name for file in tmp_path.iterdir()] == ["growth.png"]
