"""The channel bank: path gains of many worlds over time, kept in one file that numpy alone reads.

Shape legend: W worlds, T slots, M devices, E servers.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from uara.errors import UserError
from uara.files import whole_file
from uara.radio.scenario import SCENARIOS, ScenarioName

FORMAT_VERSION = 1

Split = Literal["train", "tuning", "validation", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)

Backend = Literal["sionna", "rt", "tensorflow"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Scene = Literal["munich", "etoile", "simple_street_canyon"]

Progress = Callable[[int, int], None]

# Fields that came after the first banks. At their defaults they are left out of what is written
# and hashed, so that earlier banks, tasks and policies keep their names.
_LATER_FIELDS = (
    *("scenario", "fading", "drop", "num_clusters", "cluster_radius_m"),
    *("car_share", "wall_loss", "indoor_depth"),
    *("backend", "scene"),
)

_OPTIONS_OF_THE_FIRST_BACKEND = (
    *("scenario", "fading", "drop", "car_share", "wall_loss", "indoor_depth"),
)

_ARRAYS: dict[str, type[np.generic]] = {
    "gain_db": np.float16,
    "position_m": np.float32,
    "velocity_m_s": np.float32,
    "is_los": np.bool_,
    "site_position_m": np.float32,
}


class BankConfig(BaseModel):
    """What a channel bank holds; equal configs give equal gains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_devices: int = Field(8, ge=1, description="devices per world")
    num_servers: int = Field(3, ge=1, le=37, description="sites per world, one server each")
    num_slots: int = Field(128, ge=1, description="slots per world")
    slot_s: float = Field(0.5, gt=0, description="length of a slot")
    carrier_hz: float = Field(3.5e9, ge=0.5e9, le=100e9, description="carrier frequency")
    inter_site_distance_m: float = Field(300.0, ge=60, description="distance of adjacent sites")
    site_height_m: float = Field(10.0, ge=5, le=150, description="antenna height of a site")
    device_height_m: float = Field(
        1.5, ge=1, le=22.5, description="antenna height of a device (its range is the scenario's)"
    )
    speed_min_m_s: float = Field(0.8, ge=0, description="lowest speed of a device")
    speed_max_m_s: float = Field(8.0, gt=0, description="highest speed of a device")
    turn_rad: float = Field(
        0.15, ge=0, description="standard deviation of the change of heading in one second"
    )
    indoor_share: float = Field(
        0.0, ge=0, le=1, description="probability that a device stays indoors, at the lowest speed"
    )
    bandwidth_hz: float = Field(5e6, gt=0, description="band over which the tones lie")
    num_tones: int = Field(8, ge=1, description="tones averaged in a gain")
    num_snapshots: int = Field(4, ge=1, description="instants of a slot averaged in a gain")
    train: int = Field(48, ge=0, description="worlds to learn on")
    tuning: int = Field(8, ge=0, description="worlds to tune controllers on")
    validation: int = Field(8, ge=0, description="worlds to choose checkpoints on")
    evaluation: int = Field(32, ge=0, description="worlds that tables are made on")
    seed: int = Field(0, ge=0, description="seed of all worlds")
    scenario: ScenarioName = Field(
        "umi",
        description="TR 38.901 scenario: urban micro, urban macro or rural macro; the latter two "
        "bring site heights, distances, speeds and cars of their own where none are given",
    )
    fading: Literal["cir", "large_scale"] = Field(
        "cir",
        description="`cir` sums the rays of TR 38.901; `large_scale` fades the same path loss, "
        "shadowing, K-factor and delay spread by plane waves, some ten times faster",
    )
    drop: Literal["uniform", "clustered"] = Field(
        "uniform", description="where devices start: anywhere, or in hot spots"
    )
    num_clusters: int = Field(3, ge=1, description="hot spots per world of a clustered drop")
    cluster_radius_m: float = Field(40.0, gt=0, description="radius of a hot spot")
    car_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that an outdoor device sits in a car (clause "
        "7.4.3.2: 9 dB on average, 5 dB standard deviation)",
    )
    wall_loss: Literal["low", "high"] = Field(
        "low",
        description="building penetration of clause 7.4.3.1; without effect in UMi and UMa below "
        "6 GHz, where it is 20 dB",
    )
    indoor_depth: Literal["slot", "track"] = Field(
        "slot",
        description="how long an indoor device keeps its depth in the building (0 to 25 m, "
        "0.5 dB/m) in UMi and UMa below 6 GHz: a slot, or the whole track",
    )
    backend: Backend = Field(
        "sionna",
        description="builder: UMi by Sionna on PyTorch, a traced city by Sionna RT, or UMi by "
        "Sionna on TensorFlow (the last two in environments of their own)",
    )
    scene: Scene | None = Field(
        None, description="city that `rt` traces, munich if none is named; for `rt` alone"
    )

    @model_validator(mode="before")
    @classmethod
    def _take_scenario_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        scenario = given.get("scenario", "umi")
        known = SCENARIOS.get(scenario) if isinstance(scenario, str) else None
        return {**known.defaults, **given} if known else given

    @model_serializer(mode="wrap")
    def _leave_out_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        known = SCENARIOS.get(self.scenario)
        # What a scenario sets itself must be written, or reading would set it again.
        kept = known.defaults if known else {}
        return {
            name: value
            for name, value in content.items()
            if name not in _LATER_FIELDS
            or name in kept
            or value != type(self).model_fields[name].default
        }

    @model_validator(mode="after")
    def _check_scenario(self) -> Self:
        ranges = SCENARIOS[self.scenario]
        limits: dict[str, tuple[float, float]] = {
            "site_height_m": ranges.site_height_m,
            "device_height_m": ranges.device_height_m,
            "inter_site_distance_m": (ranges.inter_site_distance_min_m, math.inf),
            "carrier_hz": (0.0, ranges.carrier_max_hz),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                span = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                raise ValueError(
                    f"{name} is {value} but {self.scenario} ({ranges.title}) holds for {span}: "
                    "change it, or choose another scenario"
                )
        if self.scenario == "rma" and self.wall_loss == "high":
            raise ValueError("wall_loss is high but rma knows low only: leave it out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _name_the_scene(cls, fields: Any) -> Any:
        if (
            isinstance(fields, dict)
            and fields.get("backend") == "rt"
            and fields.get("scene") is None
        ):
            return fields | {"scene": "munich"}
        return fields

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.speed_min_m_s > self.speed_max_m_s:
            raise ValueError(
                f"speed_min_m_s is {self.speed_min_m_s} but speed_max_m_s is "
                f"{self.speed_max_m_s}: raise the one or lower the other"
            )
        if self.device_height_m >= self.site_height_m:
            raise ValueError(
                f"device_height_m is {self.device_height_m} but site_height_m is "
                f"{self.site_height_m}: devices are below the sites"
            )
        if self.num_worlds == 0:
            raise ValueError(f"no worlds: give one of {', '.join(SPLITS)} at least 1")
        return self

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if self.scene is not None and self.backend != "rt":
            raise ValueError(
                f"scene is {self.scene} but backend is {self.backend}: scenes are for backend rt"
            )
        if self.backend == "rt" and self.indoor_share > 0:
            raise ValueError(
                f"indoor_share is {self.indoor_share} but backend rt traces devices in streets "
                "alone: set it to 0"
            )
        options = _OPTIONS_OF_THE_FIRST_BACKEND if self.backend != "sionna" else ()
        for name in options:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is {getattr(self, name)} but backend is {self.backend}, which does "
                    "not know it: leave it out, or take backend sionna"
                )
        return self

    @property
    def num_worlds(self) -> int:
        """W, over all splits."""
        return sum(self.worlds_in(split) for split in SPLITS)

    def worlds_in(self, split: Split) -> int:
        """Count the worlds of a split."""
        return int(getattr(self, split))

    def world_keys(self) -> list[tuple[int, int]]:
        """List (split number, number within the split) of each world, in the bank's order.

        Draws are keyed by it, so that a world does not change when other worlds come or go.
        """
        return [(k, j) for k, split in enumerate(SPLITS) for j in range(self.worlds_in(split))]

    def config_hash(self) -> str:
        """Hash everything that shapes the bank, the file format included: 16 hex digits."""
        content = {"format_version": FORMAT_VERSION, **self.model_dump(mode="json")}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class ChannelBank:
    """Path gains, tracks and sites of many worlds.

    A gain is the mean of |H|^2 over the tones of the band and the snapshots of the slot; path
    loss, shadowing, fast fading and antenna gain are in it. It holds in both directions.
    """

    gain_db: NDArray[np.float16]  # (W, T, M, E)
    position_m: NDArray[np.float32]  # (W, T, M, 2) in the middle of the slot
    velocity_m_s: NDArray[np.float32]  # (W, T, M, 2)
    is_los: NDArray[np.bool_]  # (W, T, M, E)
    site_position_m: NDArray[np.float32]  # (E, 2)
    config: BankConfig
    sionna_version: str
    build_s: float  # wall time that the builder took

    def __post_init__(self) -> None:
        misfits = _misfits(self.config, {name: getattr(self, name) for name in _ARRAYS})
        assert not misfits, "; ".join(misfits)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file says about itself, as JSON types."""
        return {
            "format_version": FORMAT_VERSION,
            "hash": self.config.config_hash(),
            "config": self.config.model_dump(mode="json"),
            "splits": {split: self.worlds(split).tolist() for split in SPLITS},
            "sionna_version": self.sionna_version,
            "build_s": self.build_s,
        }

    def worlds(self, split: Split) -> NDArray[np.int64]:
        """List the indices of a split's worlds.

        Raises:
            UserError: the split is none of the four.
        """
        if split not in SPLITS:
            raise UserError(f"split is '{split}': give one of {', '.join(SPLITS)}")
        k = SPLITS.index(split)
        start = sum(self.config.worlds_in(s) for s in SPLITS[:k])
        return np.arange(start, start + self.config.worlds_in(split))

    def gain(self) -> NDArray[np.float32]:
        """Compute the linear power gain, (W, T, M, E)."""
        exponent = self.gain_db.astype(np.float32) / np.float32(10.0)
        gain: NDArray[np.float32] = np.power(np.float32(10.0), exponent)
        return gain

    def check_fits(self, config: BankConfig) -> None:
        """Check that this is the bank of a config.

        Raises:
            UserError: naming the fields that differ, with the bank's and the asked values.
        """
        pairs = {k: (getattr(self.config, k), getattr(config, k)) for k in BankConfig.model_fields}
        differing = [
            f"{k} {mine} (asked: {asked})" for k, (mine, asked) in pairs.items() if mine != asked
        ]
        if differing:
            raise UserError(
                f"the channel bank has {', '.join(differing)}: "
                "build the bank of this config, or change the config"
            )

    def check_has(self, world: int) -> None:
        """Check that there is a world of this index.

        Raises:
            UserError: the bank has no such world.
        """
        if not 0 <= world < self.config.num_worlds:
            raise UserError(
                f"world is {world}: the bank has worlds 0 to {self.config.num_worlds - 1}"
            )

    def save(self, path: Path | str) -> None:
        """Write the bank to an npz file, whole or not at all."""
        with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
            # Uncompressed: noise-like gains hardly shrink and load several times faster.
            np.savez(
                file,
                metadata=np.array(json.dumps(self.metadata)),
                gain_db=self.gain_db,
                position_m=self.position_m,
                velocity_m_s=self.velocity_m_s,
                is_los=self.is_los,
                site_position_m=self.site_position_m,
            )

    @classmethod
    def load(cls, path: Path | str) -> ChannelBank:
        """Read a bank; numpy suffices, Sionna is not imported.

        Raises:
            UserError: there is no such file, it is no bank, or of another format version.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no channel bank at {path}: build it with `uara channels build`")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            metadata = json.loads(str(arrays.pop("metadata")))
            version = metadata["format_version"]
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise _unreadable(path, error) from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"channel bank {path} has format version {version}, this program reads "
                f"{FORMAT_VERSION}: rebuild it with `uara channels build --force`"
            )
        try:
            config = BankConfig(**metadata["config"])
            misfits = _misfits(config, arrays)
            if misfits:
                raise ValueError("; ".join(misfits))
            return cls(
                **arrays,
                config=config,
                sionna_version=str(metadata["sionna_version"]),
                build_s=float(metadata["build_s"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from error


def _misfits(config: BankConfig, arrays: dict[str, NDArray[Any]]) -> list[str]:
    """Say which arrays are missing, unknown, or not of the shape and type that the config asks."""
    slots = (config.num_worlds, config.num_slots, config.num_devices)
    last = {"gain_db": config.num_servers, "is_los": config.num_servers}
    found = {name: f"{array.dtype}{array.shape}" for name, array in arrays.items()}
    wanted = {
        name: f"{np.dtype(dtype)}{(*slots, last.get(name, 2))}" for name, dtype in _ARRAYS.items()
    }
    wanted["site_position_m"] = f"{np.dtype(np.float32)}{(config.num_servers, 2)}"
    return [
        f"{name} is {found.get(name, 'missing')} instead of {wanted.get(name, 'absent')}"
        for name in sorted(wanted.keys() | found.keys())
        if found.get(name) != wanted.get(name)
    ]


def _unreadable(path: Path, error: Exception) -> UserError:
    """Make the one line that a damaged file ends in."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"{path} is not a channel bank or is damaged ({reason}): "
        "rebuild it with `uara channels build --force`"
    )


def bank_path(config: BankConfig, folder: Path | str) -> Path:
    """Name the file that holds a config's bank."""
    return Path(folder) / f"{config.config_hash()}.npz"


def build_or_load(
    config: BankConfig,
    folder: Path | str,
    *,
    progress: Progress | None = None,
    workers: int = 2,
    force: bool = False,
    python: Path | str | None = None,
) -> ChannelBank:
    """Load the bank of a config from a folder, building and saving it first where it is missing.

    Args:
        config: what the bank holds.
        folder: folder of banks; the file is named after the config's hash.
        progress: called with (worlds done, worlds in all).
        workers: processes that build.
        force: build even where the file exists.
        python: interpreter of the environment that a backend other than `sionna` is built in.

    Raises:
        UserError: the file exists but is damaged, is the bank of another config, or cannot be
            built here.
    """
    path = bank_path(config, folder)
    if path.is_file() and not force:
        bank = ChannelBank.load(path)
        bank.check_fits(config)
        return bank
    # Loading must not need the builder's dependencies.
    if config.backend == "sionna":
        from uara.radio.sionna_bank import build_bank

        bank = build_bank(config, progress=progress, workers=workers)
    else:
        from uara.radio.backends import build_elsewhere

        bank = build_elsewhere(config, python, progress=progress, workers=workers)
    bank.save(path)
    return bank
