"""The picture of agreement is written whole."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np

from uara.figures.agreement import draw_agreement


def test_agreement_is_drawn(tmp_path: Path) -> None:
    times_s = np.array([0.05, 0.1, 0.2])
    path = tmp_path / "judge.png"
    draw_agreement(["sd", "psd", "sd"], 1.01 * times_s, times_s, np.array([0.1, 0.2, 0.9]), path)
    assert matplotlib.image.imread(path).shape[:2] == (600, 1350)
    assert [file.name for file in tmp_path.iterdir()] == ["judge.png"]
