"""What is observed: physically scaled features of devices, (device, server) pairs and servers.

Shape legend: B networks, M devices, E servers, F features.

Two named sets: "device" (own row, own pairs, what servers broadcast) and "network" (everything).
The tensors are the same; the view says which of them an actor may read. All features are bounded,
and those of a request are zero while there is none.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.errors import UserError
from uara.local_prediction import LocalPrediction, ServerLoad, predict_locally, server_load
from uara.network import NetworkState, Phase
from uara.prediction import Physics

SCHEMA_VERSION = 1

View = Literal["device", "network"]
Group = Literal["device", "pair", "server"]


class ObservationConfig(BaseModel):
    """Which set of observations an actor may read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: View = Field(
        "device",
        description="device: own row, own pairs, server broadcasts; network: also pooled others",
    )


@dataclass(frozen=True)
class Feature:
    """One column of an observation."""

    name: str
    scale: str  # how the physical quantity becomes the feature
    low: float
    high: float


@dataclass(frozen=True)
class ObservationSchema:
    """Names, order, scale and bounds of every feature; stored with each checkpoint."""

    version: int
    device: tuple[Feature, ...]
    pair: tuple[Feature, ...]
    server: tuple[Feature, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and numbers."""
        groups = {
            group: [asdict(feature) for feature in getattr(self, group)]
            for group in ("device", "pair", "server")
        }
        return {"version": self.version, **groups}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ObservationSchema:
        """Rebuild a schema from `to_dict`.

        Raises:
            UserError: if the dict is no observation schema.
        """
        try:
            device, pair, server = (
                tuple(Feature(**feature) for feature in raw[group])
                for group in ("device", "pair", "server")
            )
            return cls(int(raw["version"]), device, pair, server)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"observation schema cannot be read ({error!r}); allowed: what "
                "ObservationSchema.to_dict wrote; use a checkpoint of this program"
            ) from error


_TIME = "log1p(seconds) / 3"

_SCHEMA = ObservationSchema(
    version=SCHEMA_VERSION,
    device=(
        Feature("has_request", "0 or 1", 0, 1),
        Feature("is_new", "0 or 1: no server chosen yet", 0, 1),
        Feature("is_uploading", "0 or 1", 0, 1),
        Feature("is_prefilling", "0 or 1", 0, 1),
        Feature("is_decoding", "0 or 1", 0, 1),
        Feature("expected_remaining_tokens", "tokens / 100", 0, 10),
        Feature("upload_bits", "log1p(bits / 1e6)", 0, 8),
        Feature("prompt_tokens", "tokens / 1000", 0, 20),
        Feature("tokens_so_far", "tokens / 100", 0, 10),
        Feature("acceptance", "running estimate of accepted / tested", 0, 1),
        Feature("draft_time_s", "seconds per draft token / 0.03", 0, 10),
        Feature("age_s", "seconds / 20", 0, 10),
        Feature("waiting_requests", "requests / 2", 0, 10),
    ),
    pair=(
        Feature("gain_db", "(dB + 100) / 20", -5, 5),
        Feature("spectral_efficiency", "bit/s/Hz / 5, at band / (others + 1)", 0, 4),
        Feature("is_serving", "0 or 1", 0, 1),
        Feature("held_tokens", "KV tokens of the request / 1000", 0, 20),
        Feature("upload_s", _TIME, 0, 4),
        Feature("prefill_s", _TIME, 0, 4),
        Feature("remaining_s", _TIME, 0, 4),
        Feature("regret_s", _TIME + " beyond the best server in reach", 0, 4),
        Feature("inflicted_s", _TIME + " taken from others by the prefill", 0, 4),
        Feature("tpot_s", "log1p(10 seconds) / 3", 0, 4),
    ),
    server=(
        Feature("forward_fixed_s", "seconds / 0.15", 0, 10),
        Feature("prefill_chunk_s", "seconds of 512 tokens / 0.15", 0, 10),
        Feature("requests", "requests / 5", 0, 20),
        Feature("uploading", "requests / 5", 0, 20),
        Feature("prefill_backlog_s", _TIME, 0, 4),
        Feature("foreign_rows", "rows / 8", 0, 20),
        Feature("kv_free_share", "free / capacity", 0, 1),
        Feature("uplink_bandwidth_hz", "hertz / 1e6", 0, 100),
        Feature("rtt_s", "seconds / 0.1", 0, 10),
    ),
)


def schema() -> ObservationSchema:
    """Tell names, order, scale and bounds of every feature."""
    return _SCHEMA


@dataclass(frozen=True)
class Observation:
    """What is observed of B networks; also the layout of (T, B, ...) rollouts."""

    device: Tensor  # (B, M, Fd)
    pair: Tensor  # (B, M, E, Fp)
    server: Tensor  # (B, E, Fs)
    mask: Tensor  # (B, M, E) bool, servers in reach; at least one per device
    active: Tensor  # (B, M) bool, has a request

    def select(self, rows: Tensor) -> Observation:
        """Take networks by index (K,) long or by mask (B,) bool."""
        return Observation(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def to(self, device: torch.device) -> Observation:
        """Move everything to a device; what is there already is not copied."""
        return Observation(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def observe(state: NetworkState, physics: Physics) -> Observation:
    """Observe B networks; no loop over networks, devices or servers.

    Args:
        state: what is known; of it, a device's row uses its own entries and server sums only.
        physics: for the times a device can reckon by itself.

    Returns:
        Features in the order of `schema()`.
    """
    load = server_load(state)
    local = predict_locally(state, load, physics)
    return Observation(
        device=device_rows(state),
        pair=_pair_rows(state, load, local),
        server=server_rows(state, load),
        mask=state.reachable,
        active=state.has_request,
    )


def device_rows(state: NetworkState) -> Tensor:
    """Gather what a device knows of itself, (B, M, Fd)."""
    dtype, phase = state.gain.dtype, state.phase
    active = state.has_request.to(dtype)
    rows = _bounded_rows(
        "device",
        (
            active,
            (state.server < 0).to(dtype),
            (phase == int(Phase.UPLOADING)).to(dtype),
            (phase == int(Phase.PREFILLING)).to(dtype),
            (phase == int(Phase.DECODING)).to(dtype),
            state.expected_remaining_tokens / 100,
            torch.log1p(state.upload_bits / 1e6),
            state.prompt_tokens / 1000,
            state.tokens_so_far / 100,
            state.acceptance,
            state.draft_time_s / 0.03,
            state.age_s / 20,
            state.waiting_requests / 2,
        ),
    )
    # A device without a request must not learn what its next one will be.
    return rows.mul_(active.unsqueeze(-1))


def _pair_rows(state: NetworkState, load: ServerLoad, local: LocalPrediction) -> Tensor:
    """Gather what a device knows of each server for itself, (B, M, E, Fp)."""
    in_reach = torch.where(state.reachable, local.remaining_s, torch.inf)
    regret_s = local.remaining_s - in_reach.amin(-1, keepdim=True)
    times = (
        local.upload_s,
        local.prefill_s,
        local.remaining_s,
        regret_s.clamp_min_(0),
        local.inflicted_s,
        10 * local.tpot_s,
    )
    active = state.has_request.to(state.gain.dtype)
    weight = (active / 3).unsqueeze(-1).expand(state.gain.shape).contiguous()
    gain_db = torch.log10(state.gain.clamp_min(1e-30)).mul_(10)
    return _bounded_rows(
        "pair",
        (
            gain_db.add_(100).div_(20),
            local.spectral_efficiency / 5,
            load.serves,
            local.held_tokens / 1000,
            *(torch.log1p(seconds).mul_(weight) for seconds in times),
        ),
    )


def server_rows(state: NetworkState, load: ServerLoad) -> Tensor:
    """Gather what servers broadcast, (B, E, Fs)."""
    capacity = state.kv_free_tokens + load.held_tokens
    return _bounded_rows(
        "server",
        (
            state.forward_fixed_s / 0.15,
            state.forward_per_token_s * 512 / 0.15,
            load.requests / 5,
            load.uploading / 5,
            torch.log1p(load.backlog_tokens * state.forward_per_token_s) / 3,
            state.foreign_rows / 8,
            state.kv_free_tokens / capacity.clamp_min(1),
            state.uplink_bandwidth_hz / 1e6,
            state.rtt_s / 0.1,
        ),
    )


@functools.cache
def bounds(group: Group) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest value of each feature of a group, (F,) each."""
    features: tuple[Feature, ...] = getattr(_SCHEMA, group)
    low = torch.tensor([feature.low for feature in features], dtype=torch.float32)
    high = torch.tensor([feature.high for feature in features], dtype=torch.float32)
    return low, high


def _bounded_rows(group: Group, columns: tuple[Tensor, ...]) -> Tensor:
    """Bound the features (...) of a group and put them side by side, (..., F)."""
    features: tuple[Feature, ...] = getattr(_SCHEMA, group)
    assert len(columns) == len(features), (
        f"{group} rows have {len(columns)} features, not {len(features)}"
    )
    rows = columns[0].new_empty((len(features), *columns[0].shape))
    for row, column, feature in zip(rows, columns, features, strict=True):
        torch.clamp(column, feature.low, feature.high, out=row)
    # Feature by feature in memory: side by side, writing them would take longer than making them.
    return rows.movedim(0, -1)
