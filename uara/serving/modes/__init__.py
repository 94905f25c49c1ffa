"""Serving modes by name; a new one is a file in this folder and a row here."""

from __future__ import annotations

from uara.serving.modes.asynchronous import AsynchronousSpeculation
from uara.serving.modes.auto import CANDIDATES, BestOfLossless
from uara.serving.modes.device_only import DeviceOnly
from uara.serving.modes.parts import RoundParts, ServingMode
from uara.serving.modes.psd import ParallelSpeculation
from uara.serving.modes.sd import SequentialSpeculation
from uara.serving.modes.server_ar import ServerAutoregressive

MODES: dict[str, ServingMode] = {
    mode.name: mode
    for mode in (
        SequentialSpeculation(),
        ServerAutoregressive(),
        DeviceOnly(),
        ParallelSpeculation(),
        AsynchronousSpeculation(),
        BestOfLossless(),
    )
}
MODE_INDEX: dict[str, int] = {name: index for index, name in enumerate(MODES)}

__all__ = ["CANDIDATES", "MODES", "MODE_INDEX", "RoundParts", "ServingMode"]
