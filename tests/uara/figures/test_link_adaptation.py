"""The picture of link adaptation is written whole and shows four different curves."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from uara.figures.link_adaptation import draw_link_adaptation


def test_four_curves_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **kwargs: object) -> None:
        drawn.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    path = tmp_path / "new" / "mcs.png"
    draw_link_adaptation(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["mcs.png"]
    assert matplotlib.image.imread(path).shape[:2] == (600, 1050)
    lines = drawn[0].axes[0].get_lines()
    bound, shannon, downlink, uplink = (np.asarray(line.get_ydata()) for line in lines)
    assert (shannon < bound).all()
    assert (downlink < bound).all()
    assert (uplink < bound).all()
    assert shannon.max() == pytest.approx(5.55)
    assert (downlink != uplink).any()
    assert (downlink[:500] == 0).all()  # up to -3 dB no table has a scheme
    assert (shannon[:500] > 0).all()
