"""How a picture reaches its file."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from uara.files import whole_file

DPI = 150


def write_png(figure: Figure, path: Path, dpi: float = DPI) -> None:
    """Write a figure as PNG, whole or not at all."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
