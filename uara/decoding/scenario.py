"""What a run is given: requests, machines, foreign load, and the plan of a slot; data only.

Shape legend: M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uara.decoding.protocol import NO_TOKEN
from uara.serving.hardware import ForwardTime


@dataclass(frozen=True)
class Request:
    """A request as it arrives.

    Attributes:
        sid: its number, unique in a run.
        device: index.
        arrival_s: when.
        text: token ids that the models read, the end of the prompt.
        prompt_tokens: priced: upload, prefill time, KV memory; at least the text's.
        max_new: answer tokens at most.
        task: index of its task type.
        attachment_bits: sent along with the prompt.
        eos: token that ends the answer, or `NO_TOKEN`.
    """

    sid: int
    device: int
    arrival_s: float
    text: tuple[int, ...]
    prompt_tokens: int
    max_new: int
    task: int = 0
    attachment_bits: float = 0.0
    eos: int = NO_TOKEN


@dataclass(frozen=True)
class DeviceProfile:
    """Times of one device.

    Attributes:
        draft_time_s: per drafted token.
        read_token_s: per further token that a draft step reads.
        branch_share: of `draft_time_s`, per branch that grows in the same draft step.
    """

    draft_time_s: float
    read_token_s: float = 0.0
    branch_share: float = 0.0


@dataclass(frozen=True)
class ServerProfile:
    """Times and memory of one server."""

    forward: ForwardTime
    kv_capacity_tokens: int
    rtt_s: float = 0.0


@dataclass(frozen=True)
class SlotPlan:
    """What holds until the next slot; every array has shape (M,).

    A request keeps the mode in which it begins (an index into `uara.serving.modes.MODES`; without
    any, that of the run), and draft length 0 is server decoding in every mode but `device_only`.
    """

    server: NDArray[np.int64]
    draft_length: NDArray[np.int64]
    uplink_bps: NDArray[np.float64]
    downlink_bps: NDArray[np.float64]
    mode: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ForeignArrival:
    """Load of another network that begins at a time: rows in every forward, prompt tokens once."""

    time_s: float
    server: int
    rows: int
    prefill_tokens: int = 0
