"""Where sites stand and how devices move between them.

Shape legend: T slots, M devices, E servers (one per site), C candidate headings.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SITE_DISTANCE_MIN_M = 10.0  # TR 38.901 Table 7.2-1: least horizontal distance in UMi

# Turns that a device tries beyond a mirrored heading that is barred too, the smallest first.
_TURNS_RAD = np.radians([0.0] + [s * a for a in range(15, 180, 15) for s in (1, -1)] + [180.0])


def site_positions_m(num_servers: int, inter_site_distance_m: float) -> Array:
    """Place sites compactly on a triangular lattice, their centroid at the origin.

    Three sites make a triangle, four a rhombus, seven a hexagon with its centre.

    Returns:
        (E, 2), in metres.
    """
    reach = math.ceil(math.sqrt(num_servers)) + 1
    index = np.arange(-reach, reach + 1)
    a, b = (grid.ravel() for grid in np.meshgrid(index, index))
    lattice = np.stack([a + b / 2, b * math.sqrt(3) / 2], axis=-1)
    # Start from the point about which the wanted number of sites is most compact: a site, the
    # middle of two, or the middle of three.
    starts = np.array([[0.0, 0.0], [0.5, 0.0], [0.5, math.sqrt(3) / 6]])
    best: Array | None = None
    best_spread = math.inf
    for start in starts:
        away = lattice - start
        radius = np.hypot(away[:, 0], away[:, 1])
        angle = np.mod(np.arctan2(away[:, 1], away[:, 0]) + 1e-9, 2 * math.pi)
        chosen = lattice[np.lexsort((angle.round(6), radius.round(6)))[:num_servers]]
        chosen = chosen - chosen.mean(axis=0)
        spread = float(np.square(chosen).sum())
        if spread < best_spread - 1e-9:
            best, best_spread = chosen, spread
    assert best is not None, "one of the starts is always chosen"
    return best * inter_site_distance_m


def area_radius_m(site_m: Array, inter_site_distance_m: float) -> float:
    """Radius of the disc about the origin in which devices move: as far as the outermost site."""
    farthest = float(np.hypot(site_m[:, 0], site_m[:, 1]).max())
    return max(farthest, inter_site_distance_m / 2)


def is_allowed(
    position_m: Array, site_m: Array, radius_m: float, clearance_m: float = SITE_DISTANCE_MIN_M
) -> NDArray[np.bool_]:
    """Tell whether positions (..., 2) lie in the area and keep their distance from all sites."""
    inside = np.hypot(position_m[..., 0], position_m[..., 1]) <= radius_m
    gap = position_m[..., None, :] - site_m
    clear = np.hypot(gap[..., 0], gap[..., 1]) >= clearance_m
    allowed: NDArray[np.bool_] = inside & clear.all(axis=-1)
    return allowed


def draw_start_m(
    rng: np.random.Generator,
    num_devices: int,
    site_m: Array,
    radius_m: float,
    clearance_m: float = SITE_DISTANCE_MIN_M,
) -> Array:
    """Draw allowed positions uniformly over the area, (M, 2)."""
    start = np.empty((num_devices, 2))
    todo = np.arange(num_devices)
    while todo.size:
        start[todo] = rng.uniform(-radius_m, radius_m, (todo.size, 2))
        todo = todo[~is_allowed(start[todo], site_m, radius_m, clearance_m)]
    return start


def draw_clustered_start_m(
    rng: np.random.Generator,
    num_devices: int,
    num_clusters: int,
    cluster_radius_m: float,
    site_m: Array,
    radius_m: float,
    clearance_m: float = SITE_DISTANCE_MIN_M,
) -> Array:
    """Draw allowed positions in hot spots, (M, 2).

    The centres lie uniformly over the area; a device picks one at random, and a place uniformly
    over the disc about it.
    """
    centre = draw_start_m(rng, num_clusters, site_m, radius_m, clearance_m)
    about = centre[rng.integers(num_clusters, size=num_devices)]
    start = np.empty((num_devices, 2))
    todo = np.arange(num_devices)
    while todo.size:
        away = cluster_radius_m * np.sqrt(rng.random(todo.size))
        heading = rng.uniform(0.0, 2 * math.pi, todo.size)
        start[todo] = about[todo] + away[:, None] * _direction(heading)
        todo = todo[~is_allowed(start[todo], site_m, radius_m, clearance_m)]
    return start


def draw_tracks(
    rng: np.random.Generator,
    speed_m_s: Array,
    num_slots: int,
    slot_s: float,
    turn_rad: float,
    site_m: Array,
    radius_m: float,
    *,
    start_m: Array | None = None,
    clearance_m: float = SITE_DISTANCE_MIN_M,
) -> tuple[Array, Array]:
    """Move devices at constant speed with a slowly turning heading.

    The heading is a random walk. Where the next step would leave the area or come too near to a
    site, the heading is mirrored there.

    Args:
        rng: source of starts and headings.
        speed_m_s: (M,).
        num_slots: T.
        slot_s: length of a slot.
        turn_rad: standard deviation of the change of heading in one second.
        site_m: (E, 2).
        radius_m: radius of the area.
        start_m: (M, 2); drawn uniformly over the area where it is not given.
        clearance_m: least horizontal distance of a device and a site.

    Returns:
        position_m (T, M, 2) and velocity_m_s (T, M, 2); position t + 1 is position t plus
        velocity t times the slot.
    """
    num_devices = speed_m_s.shape[0]
    position = np.empty((num_slots, num_devices, 2))
    velocity = np.empty((num_slots, num_devices, 2))
    if start_m is None:
        start_m = draw_start_m(rng, num_devices, site_m, radius_m, clearance_m)
    here = start_m
    heading = rng.uniform(0.0, 2 * math.pi, num_devices)
    turns = rng.normal(0.0, turn_rad * math.sqrt(slot_s), (num_slots, num_devices))
    for t in range(num_slots):
        ahead = heading + turns[t]
        mirrored = _mirrored_heading(here, ahead, speed_m_s * slot_s, site_m, radius_m)
        candidate = np.concatenate([ahead[:, None], mirrored[:, None] + _TURNS_RAD], axis=1)
        step = _direction(candidate) * (speed_m_s * slot_s)[:, None, None]
        allowed = np.asarray(is_allowed(here[:, None] + step, site_m, radius_m, clearance_m))
        # A pocket without any way out exists only for steps as long as the area: stay there.
        step *= allowed.max(axis=1, keepdims=True)[..., None]
        rows, first = np.arange(num_devices), allowed.argmax(axis=1)
        heading = candidate[rows, first]
        position[t] = here
        velocity[t] = step[rows, first] / slot_s
        here = here + step[rows, first]
    return position, velocity


def _direction(heading: Array) -> Array:
    """Unit vectors of headings, (..., 2)."""
    return np.stack([np.cos(heading), np.sin(heading)], axis=-1)


def _mirrored_heading(
    here_m: Array, heading: Array, step_m: Array, site_m: Array, radius_m: float
) -> Array:
    """Mirror headings on the border, or on the circle about the nearest site within it, (M,)."""
    there = here_m + _direction(heading) * step_m[:, None]
    gap = site_m - there[:, None]  # (M, E, 2)
    nearest = np.hypot(gap[..., 0], gap[..., 1]).argmin(axis=1)
    leaves = np.hypot(there[:, 0], there[:, 1]) > radius_m
    normal = np.where(leaves[:, None], here_m, site_m[nearest] - here_m)
    return 2 * np.arctan2(normal[:, 1], normal[:, 0]) + math.pi - heading
