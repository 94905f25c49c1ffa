"""Builds the UMi channel bank with Sionna 1.2 on TensorFlow: a second opinion on the first.

It is a script for an environment of its own (`make channels-tf`), so it imports nothing of this
package; `uara.radio.backends` runs it. The tracks come from there, and so are those of the first
builder. Basic path loss, large-scale parameters, rays and the sum of the rays are all Sionna 1.2's.

Shape legend: W worlds, T slots (the users of one topology), D devices of one chunk (Sionna's
batch), M devices, E servers, C clusters, R rays per cluster, P paths, S snapshots, F tones.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Distance over which the line-of-sight state of a moving user hangs together: 3GPP TR 38.901
# Table 7.6.3.1-2, LOS/NLOS state, UMi.
LOS_CORRELATION_M = 50.0

_LINKS_PER_CHUNK = 2048


class UnfitPlanError(ValueError):
    """Report what the user asked and this builder cannot give; the script exits with 2 on it."""


def main(arguments: list[str]) -> None:
    """Run `--probe` or `build FOLDER`; a user's mistake exits with 2."""
    # Read when TensorFlow is imported: no log of its start-up, no accelerator.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        match arguments:
            case ["--probe"]:
                print(probe())
            case ["build", folder]:
                build(Path(folder))
            case _:
                raise UnfitPlanError(f"arguments are {arguments}: give build and a folder")
    except UnfitPlanError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def probe() -> str:
    """Import what the builder needs; returns Sionna's version."""
    import tensorflow
    from sionna.phy.channel.tr38901 import UMiScenario

    version = _version()
    if not version.startswith("1."):
        raise UnfitPlanError(
            f"Sionna is {version}: 1.2 is the last with TensorFlow, make its environment with "
            "`make channels-tf`"
        )
    assert tensorflow.constant(1.0) is not None, "TensorFlow computes"
    assert UMiScenario is not None, "Sionna has the street canyon"
    return version


def build(folder: Path) -> None:
    """Read `plan.json` and `tracks.npz` in a folder and leave `bank.npz` there."""
    import tensorflow as tf

    start_s = time.perf_counter()
    plan = json.loads((folder / "plan.json").read_text())
    tf.config.threading.set_intra_op_parallelism_threads(plan["workers"])
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with np.load(folder / "tracks.npz", allow_pickle=False) as file:
        position, velocity, is_indoor, site = (
            file[name] for name in ("position_m", "velocity_m_s", "is_indoor", "site_position_m")
        )
    num_worlds = len(position)
    gain_db, is_los = [], []
    for w in range(num_worlds):
        gain, los = build_world(
            plan["metadata"]["config"], plan["seeds"][w], site, position[w], velocity[w],
            is_indoor[w],
        )  # fmt: skip
        gain_db.append(10 * np.log10(gain))
        is_los.append(los)
        print(json.dumps({"done": w + 1, "total": num_worlds}), flush=True)
    metadata = plan["metadata"] | {
        "sionna_version": _version(),
        "build_s": round(time.perf_counter() - start_s, 3),
    }
    np.savez(
        folder / "bank.npz",
        metadata=np.array(json.dumps(metadata)),
        gain_db=np.stack(gain_db).astype(np.float16),
        position_m=position.astype(np.float32),
        velocity_m_s=velocity.astype(np.float32),
        is_los=np.stack(is_los),
        site_position_m=site.astype(np.float32),
    )


def build_world(
    config: dict[str, Any],
    seed: int,
    site_m: Array,
    position_m: Array,
    velocity_m_s: Array,
    is_indoor: Mask,
) -> tuple[Array, Mask]:
    """Draw the channels of one world along its tracks (T, M, 2).

    Returns:
        linear gain and line of sight, (T, M, E).

    Raises:
        UnfitPlanError: a device stands still, so that its waypoints cannot be told apart.
    """
    from sionna.phy import config as sionna_config

    sionna_config.seed = seed
    rng = np.random.default_rng(seed)
    num_slots, num_devices = position_m.shape[:2]
    per_chunk = max(1, _LINKS_PER_CHUNK // (num_slots * len(site_m)))
    gain, is_los = [], []
    for first in range(0, num_devices, per_chunk):
        chunk = slice(first, first + per_chunk)
        g, los = _chunk_gain(
            config, rng, site_m, position_m[:, chunk], velocity_m_s[:, chunk], is_indoor[chunk]
        )
        gain.append(g)
        is_los.append(los)
    joined = np.concatenate(gain, axis=1)
    if not np.isfinite(joined).all():
        raise UnfitPlanError(
            f"speed_min_m_s is {config['speed_min_m_s']:g}: slow devices have waypoints at one "
            "place, which this builder cannot draw; give at least 0.1, or backend sionna"
        )
    return joined, np.concatenate(is_los, axis=1)


def draw_los_quantile(
    rng: np.random.Generator, position_m: Array, num_servers: int
) -> NDArray[np.float32]:
    """Draw uniform numbers that decide the line of sight, correlated along tracks (T, D, 2).

    A Gaussian process with correlation exp(-distance / 50 m) (TR 38.901 clause 7.6.3.3), mapped to
    its own quantiles; line of sight holds where the number is below its probability.

    Returns:
        (D, E, T).
    """
    from scipy.special import ndtr

    num_slots, num_devices = position_m.shape[:2]
    step_m = np.hypot(*np.moveaxis(np.diff(position_m, axis=0), -1, 0))  # (T - 1, D)
    likeness = np.exp(-step_m / LOS_CORRELATION_M)[..., None]
    normal = rng.standard_normal((num_slots, num_devices, num_servers))
    for t in range(1, num_slots):
        rho = likeness[t - 1]
        normal[t] = rho * normal[t - 1] + np.sqrt(1 - rho**2) * normal[t]
    quantile: NDArray[np.float32] = ndtr(normal).transpose(1, 2, 0).astype(np.float32)
    return quantile


def draw_penetration_db(
    rng: np.random.Generator, carrier_hz: float, is_indoor: Mask, num_servers: int
) -> Array:
    """Draw the losses of devices (D,) that stay indoors, 0 outdoors; constant along a track.

    3GPP TR 38.901 clause 7.4.3.1: below 6 GHz Table 7.4.3-3, else the low-loss walls of Table
    7.4.3-2; half a decibel per metre of the way indoors.

    Returns:
        (D, E, 1).
    """
    shape = (len(is_indoor), num_servers)
    if carrier_hz < 6e9:
        loss_db = 20.0 + 0.5 * rng.uniform(0.0, 25.0, shape)
    else:
        ghz = carrier_hz / 1e9
        glass, concrete = 10 ** (-(2 + 0.2 * ghz) / 10), 10 ** (-(5 + 4 * ghz) / 10)
        wall_db = 5 - 10 * math.log10(0.3 * glass + 0.7 * concrete)
        way_m = rng.uniform(0.0, 25.0, (2, len(is_indoor), 1)).min(axis=0)
        loss_db = wall_db + 0.5 * way_m + rng.normal(0.0, 4.4, (len(is_indoor), 1))
        loss_db = np.broadcast_to(loss_db, shape)
    kept: Array = np.where(is_indoor[:, None], loss_db, 0.0)[..., None]
    return kept


def _chunk_gain(
    config: dict[str, Any],
    rng: np.random.Generator,
    site_m: Array,
    position_m: Array,
    velocity_m_s: Array,
    is_indoor: Mask,
) -> tuple[Array, Mask]:
    """Draw the channels of some devices along their tracks (T, D, 2): gain and LoS (T, D, E)."""
    import tensorflow as tf
    from sionna.phy.channel.tr38901 import LSPGenerator, RaysGenerator

    num_slots, num_devices = position_m.shape[:2]
    site = np.tile(_with_height(site_m, config["site_height_m"]), (num_devices, 1, 1))
    topology = {
        "ut_loc": tf.constant(_with_height(position_m, config["device_height_m"]).swapaxes(0, 1)),
        "bs_loc": tf.constant(site),
        "ut_orientations": tf.zeros([num_devices, num_slots, 3]),
        "bs_orientations": tf.zeros([num_devices, len(site_m), 3]),
        "ut_velocities": tf.constant(_with_height(velocity_m_s, 0.0).swapaxes(0, 1)),
    }
    quantile = draw_los_quantile(rng, position_m, len(site_m))
    scenario, in_the_open = (_new_scenario(config["carrier_hz"], quantile) for _ in range(2))
    scenario.set_topology(**topology, in_state=tf.constant(np.tile(is_indoor[:, None], num_slots)))
    outdoors = tf.zeros([num_devices, num_slots], tf.bool)
    in_the_open.set_topology(**topology, in_state=outdoors, los=True)
    draw_large_scale = LSPGenerator(scenario)
    draw_rays = RaysGenerator(scenario)
    draw_large_scale.topology_updated_callback()
    draw_rays.topology_updated_callback()
    large_scale = draw_large_scale()
    rays = draw_rays(large_scale)
    coefficient, delay_s = _paths(config, scenario, large_scale, rays, site_m)
    # Clause 7.4.3.1: what is indoors has the basic path loss of the street outside, where there may
    # be line of sight.
    basic_db = tf.where(
        scenario.los_probability > 0.5, in_the_open.basic_pathloss, scenario.basic_pathloss
    )
    loss_db = basic_db.numpy() + draw_penetration_db(
        rng, config["carrier_hz"], is_indoor, len(site_m)
    )
    power = 10 ** (-loss_db / 10) * large_scale.sf.numpy()  # (D, E, T)
    gain = _mean_power(config, coefficient, delay_s) * power
    is_los: Mask = scenario.los.numpy()
    return gain.transpose(2, 0, 1), is_los.transpose(2, 0, 1)


def _paths(
    config: dict[str, Any], scenario: Any, large_scale: Any, rays: Any, site_m: Array
) -> tuple[Any, Any]:
    """Let Sionna sum rays to paths: coefficients (D, E, T, P, S) and delays (D, E, T, P).

    Each site's sector is the one that faces the device. All of them are upright, so that turning a
    site is the same as turning its departure angles back.
    """
    import tensorflow as tf
    from sionna.phy.channel.tr38901 import ChannelCoefficientsGenerator, Topology

    radian = math.pi / 180
    third = 2 * math.pi / 3
    yaw = np.arctan2(0.0 - site_m[:, 1], 0.0 - site_m[:, 0]).astype(np.float32)[:, None]
    los_aod = scenario.los_aod * radian
    boresight = yaw + tf.round((los_aod - yaw) / third) * third
    rays.aod = rays.aod - boresight[..., None, None]
    topology = Topology(
        velocities=scenario.ut_velocities,
        moving_end="rx",
        los_aoa=scenario.los_aoa * radian,
        los_aod=los_aod - boresight,
        los_zoa=scenario.los_zoa * radian,
        los_zod=scenario.los_zod * radian,
        los=scenario.los,
        distance_3d=scenario.distance_3d,
        tx_orientations=scenario.bs_orientations,
        rx_orientations=scenario.ut_orientations,
    )
    add_rays = ChannelCoefficientsGenerator(
        config["carrier_hz"], scenario.bs_array, scenario.ut_array, subclustering=True
    )
    coefficient, delay_s = add_rays(
        config["num_snapshots"],
        config["num_snapshots"] / config["slot_s"],
        large_scale.k_factor,
        rays,
        topology,
        scenario.get_param("cDS") * 1e-9,
    )
    # Between P and S stand the antennas of either end, one each.
    return coefficient[:, :, :, :, 0, 0], delay_s


def _mean_power(config: dict[str, Any], coefficient: Any, delay_s: Any) -> Array:
    """Average |H|^2 over tones and snapshots, (D, E, T)."""
    tones = config["num_tones"]
    tone_hz = ((np.arange(tones) + 0.5) / tones - 0.5) * config["bandwidth_hz"]
    turn = np.exp(-2j * math.pi * delay_s.numpy()[..., None, :] * tone_hz[:, None])
    response = turn.astype(np.complex64) @ coefficient.numpy()  # (D, E, T, F, S)
    power: Array = np.square(np.abs(response)).mean(axis=(-2, -1), dtype=np.float64)
    return power


def _new_scenario(carrier_hz: float, los_quantile: NDArray[np.float32]) -> Any:
    """Make Sionna's street canyon whose line of sight is decided by given quantiles (D, E, T)."""
    import tensorflow as tf
    from sionna.phy.channel.tr38901 import PanelArray, UMiScenario

    class ConsistentScenario(UMiScenario):  # type: ignore[misc]
        """A street canyon in which the line of sight persists along a track."""

        @property
        def los_probability(self) -> Any:
            """1 where the link is in line of sight and 0 elsewhere, (D, E, T)."""
            return tf.cast(los_quantile < super().los_probability, tf.float32)

    antenna: dict[str, Any] = {
        "num_rows_per_panel": 1,
        "num_cols_per_panel": 1,
        "polarization": "single",
        "polarization_type": "V",
        "carrier_frequency": carrier_hz,
    }
    return ConsistentScenario(
        carrier_hz,
        o2i_model="low",
        ut_array=PanelArray(antenna_pattern="omni", **antenna),
        bs_array=PanelArray(antenna_pattern="38.901", **antenna),
        direction="downlink",
    )


def _with_height(horizontal: Array, height: float) -> NDArray[np.float32]:
    """Append a third coordinate to (..., 2)."""
    last = np.full((*horizontal.shape[:-1], 1), height)
    return np.concatenate([horizontal, last], axis=-1).astype(np.float32)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sionna-no-rt")
    except PackageNotFoundError:
        return version("sionna")


if __name__ == "__main__":
    main(sys.argv[1:])
