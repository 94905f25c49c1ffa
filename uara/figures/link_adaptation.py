"""A picture of link adaptation: what arrives over the SINR, by formula and by tables.

Run as `python -m uara.figures.link_adaptation docs/pictures/mcs.png`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uara.figures.png import write_png
from uara.radio.link import LinkConfig, spectral_efficiency

SINR_DB = torch.arange(-800, 3001, dtype=torch.float64) / 100


def draw_link_adaptation(path: Path, config: LinkConfig | None = None) -> None:
    """Draw bit/s/Hz of both adaptations over the SINR.

    Args:
        path: PNG to write, whole or not at all.
        config: gap and cap; None: the default.
    """
    config = LinkConfig() if config is None else config
    formula = config.model_copy(update={"adaptation": "shannon"})
    tables = config.model_copy(update={"adaptation": "mcs"})
    sinr = 10 ** (SINR_DB / 10)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    ax.plot(SINR_DB, torch.log2(1 + sinr), color="#999999", linestyle="--", label="Shannon's bound")
    name = f"shannon: gap {config.snr_gap_db:g} dB, cap {config.spectral_efficiency_max:g} bit/s/Hz"
    ax.plot(SINR_DB, spectral_efficiency(sinr, formula), color="#0072B2", label=name)
    ax.plot(
        SINR_DB, spectral_efficiency(sinr, tables, "downlink"), color="#D55E00",
        label="mcs, downlink (PDSCH)",
    )  # fmt: skip
    ax.plot(
        SINR_DB, spectral_efficiency(sinr, tables, "uplink"), color="#009E73",
        label="mcs, uplink (PUSCH)",
    )  # fmt: skip
    ax.set_xlim(-8, 30)
    ax.set_ylim(0, 7)
    ax.set_xlabel("SINR (dB)")
    ax.set_ylabel("bit/s/Hz that arrive")
    ax.grid(color="#e5e5e5")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, loc="upper left")
    write_png(figure, path)


if __name__ == "__main__":
    draw_link_adaptation(Path(sys.argv[1]))
