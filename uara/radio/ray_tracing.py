"""Builds a channel bank with Sionna RT: rays traced through a city at waypoints, then replayed.

It is a script for an environment of its own (`make channels-rt`), so it imports nothing of this
package; `uara.radio.backends` runs it.

Shape legend: W worlds, T slots, M devices, E sites, N waypoints, P paths, K candidate headings,
S snapshots per slot, F tones, H x V pixels of a map (rows to the north, columns to the east).
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SPEED_OF_LIGHT_M_S = 299_792_458.0
GAIN_FLOOR_DB = -160.0  # of a link without any path: 60 dB below the noise of a phone's 5 MHz

_PIXEL_M = 1.0
_MARGIN_M = 40.0  # how far beyond the devices' area a site may stand
_SITE_GAP_M = 20.0  # least distance of two sites
_SITE_SHIFT_M = 40.0  # how far from its place on the lattice a site may stand for a better view
_PLACE_SAMPLES, _STREET_SAMPLES = 200, 1000  # roofs tried per site, street points looked for
_ROOF_HEIGHTS_M = (6.0, 40.0)  # neither sheds nor church towers carry a site
_WAYPOINT_PIXELS = 3  # a waypoint stands for this many pixels squared

_PHENOMENA: dict[str, Any] = {"max_depth": 3, "refraction": False, "diffraction": True}
_SAMPLES_PER_SITE = 40_000  # rays that each site sends out to look for paths
_RECEIVERS_PER_CALL = 256  # one size for all calls, since each size compiles kernels anew
_MAP_CELL_M = 4.0
_MAP_SAMPLES = 1_000_000

# Turns that a device tries in this order where its way is barred.
_TURNS_RAD = np.radians([0.0] + [s * a for a in range(15, 180, 15) for s in (1, -1)] + [180.0])


class UnfitSceneError(ValueError):
    """Report what the user asked of a scene that it cannot give; the script exits with 2 on it."""


@dataclass(frozen=True)
class Ground:
    """The scene seen from above, in pixels of one metre."""

    height_m: Array  # (H, V) of the topmost surface above the street, NaN beside the scene
    is_street: Mask  # (H, V) connected open ground
    is_walkable: Mask  # (H, V) the part of it where devices move
    corner_m: float  # both coordinates of the south-west corner
    level_m: float  # height of the street in the scene's coordinates

    def pixel(self, position_m: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find rows and columns of positions (..., 2); beyond the map those of its border."""
        index = np.floor((position_m - self.corner_m) / _PIXEL_M).astype(np.int64)
        index = np.clip(index, 0, self.height_m.shape[0] - 1)
        return index[..., 1], index[..., 0]

    def centre_m(self, row: Any, column: Any) -> Array:
        """Compute the centres of pixels, (..., 2)."""
        return self.corner_m + _PIXEL_M * (np.stack([column, row], axis=-1) + 0.5)


@dataclass(frozen=True)
class TracedPaths:
    """The paths between waypoints and sites; P is the most of any link, the others have zeros."""

    amplitude: NDArray[np.complex64]  # (N, E, P) at the carrier, the site's antenna included
    delay_s: NDArray[np.float32]  # (N, E, P)
    direction: NDArray[np.float32]  # (N, E, P, 3) unit vectors from which waves reach the device
    is_los: Mask  # (N, E)


def main(arguments: list[str]) -> None:
    """Run `--probe`, or `build FOLDER`, or `map FOLDER`; a user's mistake exits with 2."""
    try:
        match arguments:
            case ["--probe"]:
                print(probe())
            case ["build", folder]:
                build(Path(folder))
            case ["map", folder]:
                draw_map(Path(folder))
            case _:
                raise UnfitSceneError(f"arguments are {arguments}: give build or map and a folder")
    except UnfitSceneError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def probe() -> str:
    """Trace one path; returns Sionna RT's version.

    An unsuitable LLVM ends the process here, not in the middle of a build.
    """
    import sionna.rt as rt

    scene = _load("simple_street_canyon", 3.5e9)
    scene.add(rt.Transmitter("site0", position=[0.0, 0.0, 10.0]))
    scene.add(rt.Receiver("device0", position=[5.0, 0.0, 1.5]))
    paths = rt.PathSolver()(scene, max_depth=1, samples_per_src=1000, diffraction=True)
    assert np.asarray(paths.valid).any(), "two points in one street see each other"
    return version("sionna-rt")


def build(folder: Path) -> None:
    """Read `plan.json` in a folder and leave `bank.npz` there."""
    start_s = time.perf_counter()
    plan = json.loads((folder / "plan.json").read_text())
    config = plan["metadata"]["config"]
    scene, ground, site_m = _city(plan)
    tracks = [draw_tracks(np.random.default_rng(seed), config, ground) for seed in plan["seeds"]]
    position, velocity = (np.stack(arrays) for arrays in zip(*tracks, strict=True))
    waypoint_m, nearest = waypoints_of(position, ground)
    paths = trace(scene, waypoint_m, site_m, ground, config["device_height_m"])
    gain_db, is_los = replay(paths, waypoint_m, nearest, position, velocity, config)
    metadata = plan["metadata"] | {
        "sionna_version": version("sionna-rt"),
        "build_s": round(time.perf_counter() - start_s, 3),
    }
    np.savez(
        folder / "bank.npz",
        metadata=np.array(json.dumps(metadata)),
        gain_db=gain_db.astype(np.float16),
        position_m=position.astype(np.float32),
        velocity_m_s=velocity.astype(np.float32),
        is_los=is_los,
        site_position_m=site_m[:, :2].astype(np.float32),
    )


def draw_map(folder: Path) -> None:
    """Read `plan.json` in a folder and leave `map.npz` there: path gains over the whole area."""
    import mitsuba as mi
    import sionna.rt as rt

    plan = json.loads((folder / "plan.json").read_text())
    scene, ground, site_m = _city(plan, sectors=True)
    for e, (site, yaw) in enumerate(zip(site_m, first_yaw(site_m), strict=True)):
        for k in range(3):
            orientation = [float(yaw) + k * 2 * math.pi / 3, 0.0, 0.0]
            position = [float(x) for x in site]
            scene.add(rt.Transmitter(f"site{e}.{k}", position=position, orientation=orientation))
    side_m = _PIXEL_M * ground.height_m.shape[0]
    height_m = ground.level_m + plan["metadata"]["config"]["device_height_m"]
    solved = rt.RadioMapSolver()(
        scene,
        center=mi.Point3f(0.0, 0.0, height_m),
        orientation=mi.Point3f(0.0, 0.0, 0.0),
        size=mi.Point2f(side_m, side_m),
        cell_size=mi.Point2f(_MAP_CELL_M, _MAP_CELL_M),
        samples_per_tx=_MAP_SAMPLES,
        **_PHENOMENA,
    )
    gain = np.asarray(solved.path_gain.numpy(), float)
    gain = gain.reshape(len(site_m), 3, *gain.shape[1:]).max(axis=1)
    np.savez(
        folder / "map.npz",
        gain_db=10 * np.log10(np.maximum(gain, 10 ** (GAIN_FLOOR_DB / 10))),
        height_m=ground.height_m,
        site_m=site_m,
        extent_m=np.array(side_m / 2),
    )


def _city(plan: dict[str, Any], *, sectors: bool = False) -> tuple[Any, Ground, Array]:
    """Load the plan's scene, look at it from above, and place the sites (E, 3)."""
    import drjit

    drjit.set_thread_count(plan["workers"])
    scene = _load(plan["scene"], plan["metadata"]["config"]["carrier_hz"], sectors=sectors)
    ground = survey(scene, plan)
    return scene, ground, place_sites(scene, ground, plan)


def survey(scene: Any, plan: dict[str, Any]) -> Ground:
    """Look at the scene from above.

    Raises:
        UnfitSceneError: the sites' lattice is larger than the scene, or it has no open ground.
    """
    import mitsuba as mi

    radius_m = plan["radius_m"]
    box = scene.mi_scene.bbox()
    low, high = (np.asarray(corner, float).ravel() for corner in (box.min, box.max))
    reach = np.abs(np.asarray(plan["lattice_m"])).max(axis=0)
    room = np.minimum(-low[:2], high[:2])
    if (reach > room).any():
        distance_m = plan["metadata"]["config"]["inter_site_distance_m"]
        most_m = math.floor(distance_m * float((room / np.maximum(reach, 1e-9)).min()))
        raise UnfitSceneError(
            f"inter_site_distance_m is {distance_m:g} but scene {plan['scene']} is "
            f"{high[0] - low[0]:.0f} m x {high[1] - low[1]:.0f} m: give at most {most_m}, or "
            "another scene"
        )
    half = math.ceil((radius_m + _MARGIN_M) / _PIXEL_M)
    axis = (np.arange(-half, half) + 0.5) * _PIXEL_M
    east, north = np.meshgrid(axis, axis)
    eyes = mi.Point3f(
        mi.Float(east.ravel()), mi.Float(north.ravel()), mi.Float(float(high[2] + 10.0))
    )
    seen = scene.mi_scene.ray_intersect(mi.Ray3f(eyes, mi.Vector3f(0.0, 0.0, -1.0)))
    height = np.where(np.asarray(seen.is_valid()), np.asarray(seen.p.z, float), np.nan)
    level_m = float(np.nanmin(height))
    return _ground_of(height.reshape(east.shape) - level_m, -half * _PIXEL_M, level_m, radius_m)


def _ground_of(height_m: Array, corner_m: float, level_m: float, radius_m: float) -> Ground:
    """Find the streets of a height map: the largest open ground, a pixel away from walls."""
    from scipy import ndimage

    is_open = np.nan_to_num(height_m, nan=np.inf) < 0.5
    away = ndimage.binary_erosion(is_open, np.ones((3, 3), bool))  # bars the map's border too
    axis = corner_m + _PIXEL_M * (np.arange(len(height_m)) + 0.5)
    inside = np.hypot(axis[:, None], axis) <= radius_m
    label, count = ndimage.label(away & inside)
    if count == 0:
        raise UnfitSceneError("the scene has no open ground about its middle: give another scene")
    walkable = label == np.bincount(label.ravel())[1:].argmax() + 1
    street, _ = ndimage.label(away)
    is_street = np.isin(street, np.unique(street[walkable]))
    return Ground(height_m, is_street, walkable, corner_m, level_m)


def place_sites(scene: Any, ground: Ground, plan: dict[str, Any]) -> Array:
    """Stand sites near their places on the lattice, on the roof edges that see most streets.

    Returns:
        (E, 3) in the scene's coordinates; antennas are `site_height_m` above their roof.

    Raises:
        UnfitSceneError: there are fewer such places than sites.
    """
    from scipy import ndimage

    config = plan["metadata"]["config"]
    low, high = _ROOF_HEIGHTS_M
    beside = ndimage.binary_dilation(ground.is_street, np.ones((3, 3), bool), iterations=3)
    row, column = np.nonzero((ground.height_m > low) & (ground.height_m < high) & beside)
    antenna_m = ground.level_m + ground.height_m[row, column] + config["site_height_m"]
    place_m = np.column_stack([ground.centre_m(row, column), antenna_m])
    street_m = ground.centre_m(*np.nonzero(ground.is_walkable))
    street_m = street_m[:: math.ceil(len(street_m) / _STREET_SAMPLES)]
    seen_m = np.column_stack(
        [street_m, np.full(len(street_m), ground.level_m + config["device_height_m"])]
    )
    chosen: list[Array] = []
    for target in np.asarray(plan["lattice_m"]):
        if not len(place_m):
            raise UnfitSceneError(
                f"scene {plan['scene']} has roofs for {len(chosen)} sites and "
                f"{len(plan['lattice_m'])} are asked: give fewer num_servers or another scene"
            )
        away_m = np.hypot(*(place_m[:, :2] - target).T)
        near = np.argsort(away_m, kind="stable")
        near = near[away_m[near] <= max(_SITE_SHIFT_M, float(away_m.min()))]
        near = near[:: math.ceil(len(near) / _PLACE_SAMPLES)]
        chosen.append(place_m[near[_streets_in_sight(scene, place_m[near], seen_m).argmax()]])
        place_m = place_m[np.hypot(*(place_m - chosen[-1])[:, :2].T) >= _SITE_GAP_M]
    return np.stack(chosen)


def _streets_in_sight(scene: Any, place_m: Array, seen_m: Array) -> NDArray[np.int64]:
    """Count the points (Q, 3) in direct sight of each place (C, 3)."""
    import mitsuba as mi

    eyes = np.repeat(place_m, len(seen_m), axis=0)
    away = np.tile(seen_m, (len(place_m), 1)) - eyes
    origin, direction = (mi.Point3f(*(mi.Float(c) for c in v.T)) for v in (eyes, away))
    # A ray as long as the gap, but for its very end.
    blocked = scene.mi_scene.ray_test(mi.Ray3f(origin, mi.Vector3f(direction), 0.999, 0.0, []))
    count: NDArray[np.int64] = (~np.asarray(blocked)).reshape(len(place_m), -1).sum(axis=1)
    return count


def draw_tracks(
    rng: np.random.Generator, config: dict[str, Any], ground: Ground
) -> tuple[Array, Array]:
    """Move devices along the streets at constant speed with a slowly turning heading.

    Where the next step would meet a wall or leave the area, a device turns as little as it must,
    and so walks along walls; in a dead end it waits for a slot.

    Returns:
        position_m (T, M, 2) and velocity_m_s (T, M, 2); position t + 1 is position t plus
        velocity t times the slot.
    """
    num_slots, num_devices, slot_s = (config[k] for k in ("num_slots", "num_devices", "slot_s"))
    length = slot_s * rng.uniform(config["speed_min_m_s"], config["speed_max_m_s"], num_devices)
    row, column = np.nonzero(ground.is_walkable)
    start = rng.integers(len(row), size=num_devices)
    here = ground.centre_m(row[start], column[start])
    heading = rng.uniform(0.0, 2 * math.pi, num_devices)
    turns = rng.normal(0.0, config["turn_rad"] * math.sqrt(slot_s), (num_slots, num_devices))
    position = np.empty((num_slots, num_devices, 2))
    velocity = np.empty((num_slots, num_devices, 2))
    # Looked at every half pixel, so that no step cuts a corner.
    fractions = np.linspace(0.0, 1.0, 2 + math.ceil(2 * float(length.max()) / _PIXEL_M))[1:]
    rows = np.arange(num_devices)
    for t in range(num_slots):
        candidate = (heading + turns[t])[:, None] + _TURNS_RAD  # (M, K)
        direction = np.stack([np.cos(candidate), np.sin(candidate)], axis=-1)
        step = direction * length[:, None, None]
        on_the_way = here[:, None, None] + step[:, :, None] * fractions[:, None]
        is_free = np.all(ground.is_walkable[ground.pixel(on_the_way)], axis=-1)  # (M, K)
        step *= np.any(is_free, axis=1)[:, None, None]
        first = np.argmax(is_free, axis=1)
        heading = candidate[rows, first]
        position[t] = here
        velocity[t] = step[rows, first] / slot_s
        here = here + step[rows, first]
    return position, velocity


def waypoints_of(position_m: Array, ground: Ground) -> tuple[Array, NDArray[np.int64]]:
    """List the waypoints that tracks pass, one for each square of the ground that is entered.

    A waypoint is the walkable pixel nearest to the middle of its square, so that it does not
    depend on who enters it.

    Returns:
        waypoint_m (N, 2) and the number of its waypoint for each position, (W, T, M).
    """
    row, column = ground.pixel(position_m)
    width = -(-ground.height_m.shape[1] // _WAYPOINT_PIXELS)
    square = (row // _WAYPOINT_PIXELS) * width + column // _WAYPOINT_PIXELS
    entered, number = np.unique(square, return_inverse=True)
    inner = np.arange(_WAYPOINT_PIXELS)
    off_row, off_column = (a.ravel() for a in np.meshgrid(inner, inner, indexing="ij"))
    rows = (entered // width)[:, None] * _WAYPOINT_PIXELS + off_row
    columns = (entered % width)[:, None] * _WAYPOINT_PIXELS + off_column
    beyond = [(0, _WAYPOINT_PIXELS)] * 2  # the last squares reach over the map
    walkable = np.pad(ground.is_walkable, beyond)[rows, columns]
    middle = (_WAYPOINT_PIXELS - 1) / 2
    apart = np.hypot(off_row - middle, off_column - middle)
    best = np.where(walkable, apart, np.inf).argmin(axis=1)
    n = np.arange(len(entered))
    return ground.centre_m(rows[n, best], columns[n, best]), number.reshape(position_m.shape[:-1])


def trace(
    scene: Any,
    waypoint_m: Array,
    site_m: Array,
    ground: Ground,
    device_height_m: float,
) -> TracedPaths:
    """Trace reflected and diffracted paths from all sites to all waypoints."""
    import mitsuba as mi
    import sionna.rt as rt

    for e, site in enumerate(site_m):
        scene.add(rt.Transmitter(f"site{e}", position=[float(x) for x in site]))
    count = _RECEIVERS_PER_CALL
    receivers = [rt.Receiver(f"device{n}", position=[0.0, 0.0, 1.5]) for n in range(count)]
    for receiver in receivers:
        scene.add(receiver)
    solve = rt.PathSolver(deterministic=True)
    height_m = ground.level_m + device_height_m
    parts = []
    for first in range(0, len(waypoint_m), count):
        part = waypoint_m[first : first + count]
        for n, receiver in enumerate(receivers):
            x, y = (float(v) for v in part[min(n, len(part) - 1)])
            receiver.position = mi.Point3f(x, y, height_m)
        solved = solve(scene, samples_per_src=_SAMPLES_PER_SITE, **_PHENOMENA)
        away = part[:, None] - site_m[:, :2]
        bearing = np.arctan2(away[..., 1], away[..., 0])
        parts.append(_paths_of(solved, first_yaw(site_m), bearing))
        report = {"done": first + len(part), "total": len(waypoint_m)}
        print(json.dumps(report), flush=True)
    return _joined(parts)


def _paths_of(solved: Any, yaw_rad: Array, bearing: Array) -> TracedPaths:
    """Copy paths out of Sionna's and apply the antennas of sites that see devices at (N, E)."""
    count = len(bearing)
    real, imaginary = (np.asarray(part)[:count, 0, :, 0] for part in solved.a)
    valid = np.asarray(solved.valid)[:count]
    zenith, azimuth = (np.asarray(a)[:count] for a in (solved.theta_r, solved.phi_r))
    pattern = sector_amplitude(
        np.asarray(solved.theta_t, float)[:count],
        np.asarray(solved.phi_t, float)[:count],
        yaw_rad[:, None],
        bearing[..., None],
    )
    amplitude = np.where(valid, (real + 1j * imaginary) * pattern, 0.0)
    is_direct = valid & (np.asarray(solved.interactions)[:, :count] == 0).all(axis=0)
    direction = np.stack(
        [np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth), np.cos(zenith)], -1
    )
    return TracedPaths(
        amplitude=amplitude.astype(np.complex64),
        delay_s=np.where(valid, np.asarray(solved.tau)[:count], 0.0).astype(np.float32),
        direction=np.where(valid[..., None], direction, 0.0).astype(np.float32),
        is_los=is_direct.any(axis=-1),
    )


def first_yaw(site_m: Array) -> Array:
    """Point each site's first sector at the middle of the network: azimuths (E,), radian."""
    yaw: Array = np.arctan2(0.0 - site_m[:, 1], 0.0 - site_m[:, 0])
    return yaw


def sector_amplitude(zenith: Array, azimuth: Array, yaw: Array, bearing: Array) -> Array:
    """Amplitude gain of one of three sectors in given directions (3GPP TR 38.901 Table 7.3-1).

    Args:
        zenith: of the departing path, radian.
        azimuth: likewise.
        yaw: azimuth of the site's first sector.
        bearing: azimuth of the device, which chooses the sector.
    """
    third = 2 * math.pi / 3
    boresight = yaw + np.round((bearing - yaw) / third) * third
    away = azimuth - boresight
    away = np.degrees(away - 2 * math.pi * np.round(away / (2 * math.pi)))
    vertical = np.minimum(12 * ((np.degrees(zenith) - 90) / 65) ** 2, 30)
    horizontal = np.minimum(12 * (away / 65) ** 2, 30)
    gain_db = 8.0 - np.minimum(vertical + horizontal, 30)
    amplitude: Array = 10 ** (gain_db / 20)
    return amplitude


def _joined(parts: list[TracedPaths]) -> TracedPaths:
    """Concatenate parts along waypoints, filling up with paths of no strength."""
    most = max(part.delay_s.shape[2] for part in parts)

    def joined(arrays: list[Any]) -> Any:
        fill = [((0, 0), (0, 0), (0, most - a.shape[2]), (0, 0))[: a.ndim] for a in arrays]
        return np.concatenate([np.pad(a, f) for a, f in zip(arrays, fill, strict=True)])

    return TracedPaths(
        joined([part.amplitude for part in parts]),
        joined([part.delay_s for part in parts]),
        joined([part.direction for part in parts]),
        np.concatenate([part.is_los for part in parts]),
    )


def replay(
    paths: TracedPaths,
    waypoint_m: Array,
    nearest: NDArray[np.int64],
    position_m: Array,
    velocity_m_s: Array,
    config: dict[str, Any],
) -> tuple[Array, Mask]:
    """Take a waypoint's paths as plane waves about it and average |H|^2 over tones and snapshots.

    Returns:
        gain_db and line of sight, (W, T, M, E).
    """
    shape = (*nearest.shape, paths.is_los.shape[1])
    index = nearest.ravel()
    apart = (position_m.reshape(-1, 2) - waypoint_m[index])[:, None]  # (L, 1, 2)
    snapshot = (np.arange(config["num_snapshots"]) + 0.5) / config["num_snapshots"] - 0.5
    drift = velocity_m_s.reshape(-1, 1, 2) * (snapshot * config["slot_s"])[:, None]
    moved = apart + drift  # (L, S, 2)
    tones = config["num_tones"]
    tone_hz = ((np.arange(tones) + 0.5) / tones - 0.5) * config["bandwidth_hz"]
    wavenumber = 2 * math.pi * config["carrier_hz"] / SPEED_OF_LIGHT_M_S
    gain = np.empty((len(index), shape[-1]))
    for first in range(0, len(index), 512):
        n = index[first : first + 512]
        towards = np.einsum("lepc,lsc->leps", paths.direction[n, ..., :2], moved[first:][: len(n)])
        ray = paths.amplitude[n][..., None] * np.exp(1j * wavenumber * towards)
        turn = np.exp(-2j * math.pi * paths.delay_s[n][..., None, :] * tone_hz[:, None])
        gain[first : first + 512] = np.square(np.abs(turn @ ray)).mean(axis=(-2, -1))
    gain_db = 10 * np.log10(np.maximum(gain, 10 ** (GAIN_FLOOR_DB / 10)))
    return gain_db.reshape(shape), paths.is_los[index].reshape(shape)


def _load(name: str, carrier_hz: float, *, sectors: bool = False) -> Any:
    """Load a built-in scene with one vertically polarised element at either end."""
    import sionna.rt as rt

    scene = rt.load_scene(getattr(rt.scene, name), merge_shapes=True)
    scene.frequency = carrier_hz
    element: dict[str, Any] = {"num_rows": 1, "num_cols": 1, "polarization": "V"}
    scene.tx_array = rt.PlanarArray(pattern="tr38901" if sectors else "iso", **element)
    scene.rx_array = rt.PlanarArray(pattern="iso", **element)
    return scene


if __name__ == "__main__":
    main(sys.argv[1:])
