"""The picture of fading is written whole and shows what it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from uara.figures.fading import draw_fading

LAGS = np.linspace(0, 2, 21)


def test_the_picture_shows_each_scenario_and_both_ways_of_fading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1]
    )
    gain_db = np.array([-90.0, -120.0, -100.0])
    gains = {name: {"cir": gain_db, "large_scale": gain_db - 1} for name in ("umi", "uma")}
    path = tmp_path / "new" / "fading.png"
    draw_fading(gains, LAGS, {"cir": 1 - LAGS, "large_scale": np.cos(LAGS)}, path)
    assert [file.name for file in path.parent.iterdir()] == ["fading.png"]
    left, right = drawn[0].axes
    assert [line.get_label() for line in left.lines] == [
        "umi, cir", "umi, large_scale", "uma, cir", "uma, large_scale"
    ]  # fmt: skip
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [-120, -100, -90])
    np.testing.assert_allclose(left.lines[0].get_ydata(), [100 / 3, 200 / 3, 100])
    assert [line.get_label() for line in right.lines] == ["Clarke's model, J0", *gains["umi"]]
    np.testing.assert_allclose(right.lines[2].get_ydata(), np.cos(LAGS))
