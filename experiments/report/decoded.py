"""The part of a report on real draft/verify runs: their timelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.report.page import Part, Picture, Section
from uara.errors import UserError

TIMELINES = "*-timeline.png"


def decode_section(folders: Sequence[Path]) -> Section:
    """Show the timelines of real runs.

    Raises:
        UserError: if a folder holds none.
    """
    parts = []
    for folder in folders:
        pictures = sorted(folder.glob(TIMELINES)) if folder.is_dir() else []
        if not pictures:
            raise UserError(
                f"{folder} holds no {TIMELINES}; give the folder that uara decode --records wrote"
            )
        parts += [
            Part(
                title=path.name.removesuffix(TIMELINES[1:]),
                pictures=[Picture.from_png(path, f"rounds of real runs, {folder}")],
                is_wide=True,
            )
            for path in pictures
        ]
    text = "Real tokens under the virtual clock; every bar is a part of a round of one device."
    return Section("rounds", "Rounds of real runs", text, parts)
