"""Builds a channel bank with Sionna: a scenario of 3GPP TR 38.901 along moving devices.

Shape legend: D devices of one chunk (Sionna's batch), M devices, E servers, T slots.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uara.errors import UserError
from uara.radio.bank import BankConfig, ChannelBank, Progress
from uara.radio.rays import draw_rays
from uara.radio.scenario import SCENARIOS
from uara.radio.topology import (
    SPEED_OF_LIGHT_M_S,
    Chunk,
    draw_topology,
    snapshot_offsets_s,
    tone_offsets_hz,
)
from uara.radio.tracks import (
    area_radius_m,
    draw_clustered_start_m,
    draw_tracks,
    site_positions_m,
)
from uara.radio.waves import draw_waves

# Links (device, slot, server) computed at once: more of them fall out of the processor's caches.
_LINKS_PER_CHUNK = 2048

# Sionna filters seven parameters along a track by dense matrices of slots x slots per link, and
# some nine copies of them live at once (measured).
_FILTER_BYTES = 4 * 7 * 9
_FILTER_BYTES_MAX = 4e9

# Clause 7.4.3.2: mean and standard deviation of the loss into a car with ordinary windows.
_CAR_LOSS_DB = (9.0, 5.0)


@dataclass(frozen=True)
class World:
    """One world of a bank."""

    gain_db: NDArray[np.float16]  # (T, M, E)
    position_m: NDArray[np.float32]  # (T, M, 2)
    velocity_m_s: NDArray[np.float32]  # (T, M, 2)
    is_los: NDArray[np.bool_]  # (T, M, E)


def build_bank(
    config: BankConfig, *, progress: Progress | None = None, workers: int = 2
) -> ChannelBank:
    """Build all worlds of a bank.

    Sionna draws path loss, line of sight, shadowing and the rays of every link (TR 38.901 steps
    1 to 10), spatially consistent along each device's track: the waypoints of one device are the
    terminals of one topology. Tracks are short against the network, so devices are drawn apart
    from each other: two devices at one place have independent shadowing. The config says whether
    the rays themselves fade the gains, or plane waves of the same spreads.

    A site has three sectors, each one vertically polarised element of TR 38.901 Table 7.3-1
    (8 dBi, 65 degrees) without tilt; the first looks at the centre of the network. A device uses
    the sector of a site in whose direction it lies. Its own antenna is isotropic.

    A world depends on the config's seed and its own key alone, not on `workers`.

    Args:
        config: what to build.
        progress: called with (worlds done, worlds in all).
        workers: processes; 1 builds in this process.

    Raises:
        UserError: fewer than one worker, tracks too long for memory, Sionna is not installed, or
            a worker died.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}: give at least 1")
    _check_memory(config)
    sionna_version = _sionna_version()
    start_s = time.perf_counter()
    keys = config.world_keys()
    workers = min(workers, len(keys))
    worlds: list[World | None] = [None] * len(keys)
    if workers == 1:
        with _one_thread():
            for k, key in enumerate(keys):
                worlds[k] = build_world(config, key)
                _report(progress, k + 1, len(keys))
    else:
        _build_in_processes(config, keys, worlds, workers, progress)
    built = [w for w in worlds if w is not None]
    assert len(built) == len(keys), "every world is built"
    return ChannelBank(
        gain_db=np.stack([w.gain_db for w in built]),
        position_m=np.stack([w.position_m for w in built]),
        velocity_m_s=np.stack([w.velocity_m_s for w in built]),
        is_los=np.stack([w.is_los for w in built]),
        site_position_m=_sites_m(config).astype(np.float32),
        config=config,
        sionna_version=sionna_version,
        build_s=round(time.perf_counter() - start_s, 3),
    )


def _build_in_processes(
    config: BankConfig,
    keys: list[tuple[int, int]],
    worlds: list[World | None],
    workers: int,
    progress: Progress | None,
) -> None:
    """Fill `worlds` from a pool; fresh processes, since threads of torch do not survive a fork."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_use_one_thread) as pool:
        index = {pool.submit(build_world, config, key): k for k, key in enumerate(keys)}
        try:
            for done, future in enumerate(as_completed(index), start=1):
                worlds[index[future]] = future.result()
                _report(progress, done, len(keys))
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {workers} workers died, most likely for want of memory: "
                "give fewer workers, slots or servers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_memory(config: BankConfig) -> None:
    """Refuse tracks whose filters do not fit into memory for even one device.

    Raises:
        UserError: they do not.
    """
    needed = _FILTER_BYTES * config.num_slots**2 * config.num_servers
    if needed > _FILTER_BYTES_MAX:
        allowed = math.isqrt(int(_FILTER_BYTES_MAX / (_FILTER_BYTES * config.num_servers)))
        raise UserError(
            f"num_slots is {config.num_slots}: {config.num_servers} servers allow {allowed} at "
            "most; shorten the tracks, and let more worlds follow each other"
        )


def _use_one_thread() -> None:
    """Keep workers from competing for cores with each other's threads."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread for a while: many small tensors gain nothing from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _sionna_version() -> str:
    """Look Sionna up without importing it.

    Raises:
        UserError: it is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    for distribution in ("sionna-no-rt", "sionna"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    raise UserError("building a channel bank needs Sionna: `pip install sionna-no-rt`")


def _sites_m(config: BankConfig) -> NDArray[np.float64]:
    return site_positions_m(config.num_servers, config.inter_site_distance_m)


@dataclass(frozen=True)
class WorldTracks:
    """How the devices of one world move, and the seed of its channel."""

    position_m: NDArray[np.float64]  # (T, M, 2)
    velocity_m_s: NDArray[np.float64]  # (T, M, 2)
    is_indoor: NDArray[np.bool_]  # (M,)
    channel_seed: int


def draw_world_tracks(config: BankConfig, key: tuple[int, int]) -> WorldTracks:
    """Draw the tracks of one world; they depend on `config.seed` and `key` alone."""
    tracks_seed, channel_seed, _, shelter_seed = _seeds(config, key)
    chunk = _draw_chunk(config, _sites_m(config), tracks_seed, shelter_seed)
    seed = int(channel_seed.generate_state(1)[0])
    return WorldTracks(chunk.position_m, chunk.velocity_m_s, chunk.is_indoor, seed)


def _seeds(config: BankConfig, key: tuple[int, int]) -> list[np.random.SeedSequence]:
    """Seed tracks, channel, waves and shelter of one world."""
    return np.random.SeedSequence([config.seed, *key]).spawn(4)


def build_world(config: BankConfig, key: tuple[int, int]) -> World:
    """Build one world; it depends on `config.seed` and `key` (split, number) alone."""
    from sionna.phy import config as sionna_config

    tracks_seed, channel_seed, waves_seed, shelter_seed = _seeds(config, key)
    site_m = _sites_m(config)
    tracks = _draw_chunk(config, site_m, tracks_seed, shelter_seed)
    car_loss_db = _draw_car_loss_db(config, tracks.is_indoor, shelter_seed)
    sionna_config.seed = int(channel_seed.generate_state(1)[0])
    generator = _generator(waves_seed)
    per_chunk = max(1, _LINKS_PER_CHUNK // (config.num_slots * config.num_servers))
    gain_db, is_los = [], []
    for first in range(0, config.num_devices, per_chunk):
        some = slice(first, first + per_chunk)
        chunk = Chunk(
            tracks.position_m[:, some],
            tracks.velocity_m_s[:, some],
            tracks.is_indoor[some],
            tracks.depth_share[some],
        )
        gain, los = chunk_gain(config, site_m, chunk, generator)
        gain_db.append(10 * np.log10(gain) - car_loss_db[some, None])
        is_los.append(los)
    return World(
        gain_db=np.concatenate(gain_db, axis=1).astype(np.float16),
        position_m=tracks.position_m.astype(np.float32),
        velocity_m_s=tracks.velocity_m_s.astype(np.float32),
        is_los=np.concatenate(is_los, axis=1),
    )


def _generator(seed: np.random.SeedSequence) -> Any:
    """Make a torch generator."""
    import torch

    return torch.Generator().manual_seed(int(seed.generate_state(1)[0]))


def _draw_chunk(
    config: BankConfig,
    site_m: NDArray[np.float64],
    tracks_seed: np.random.SeedSequence,
    shelter_seed: np.random.SeedSequence,
) -> Chunk:
    """Draw who is indoors and where all devices of a world go."""
    rng = np.random.default_rng(tracks_seed)
    radius_m = area_radius_m(site_m, config.inter_site_distance_m)
    clearance_m = SCENARIOS[config.scenario].site_clearance_m
    is_indoor = rng.random(config.num_devices) < config.indoor_share
    speed = rng.uniform(config.speed_min_m_s, config.speed_max_m_s, config.num_devices)
    speed = np.where(is_indoor, config.speed_min_m_s, speed)
    start = None
    if config.drop == "clustered":
        start = draw_clustered_start_m(
            rng,
            config.num_devices,
            config.num_clusters,
            config.cluster_radius_m,
            site_m,
            radius_m,
            clearance_m,
        )
    position, velocity = draw_tracks(
        rng,
        speed,
        config.num_slots,
        config.slot_s,
        config.turn_rad,
        site_m,
        radius_m,
        start_m=start,
        clearance_m=clearance_m,
    )
    # Table 7.4.3-3: uniform, and drawn for each link.
    depth_share = np.random.default_rng(shelter_seed).random((config.num_devices, len(site_m)))
    return Chunk(position, velocity, is_indoor, depth_share)


def _draw_car_loss_db(
    config: BankConfig, is_indoor: NDArray[np.bool_], shelter_seed: np.random.SeedSequence
) -> NDArray[np.float64]:
    """Draw the loss into each device's car, (M,); 0 for who is indoors or on foot."""
    rng = np.random.default_rng(shelter_seed.spawn(1)[0])
    in_car = (rng.random(config.num_devices) < config.car_share) & ~is_indoor
    loss_db: NDArray[np.float64] = in_car * rng.normal(*_CAR_LOSS_DB, config.num_devices)
    return loss_db


def chunk_gain(
    config: BankConfig, site_m: NDArray[np.float64], chunk: Chunk, generator: Any
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw the channels of some devices along their tracks.

    Args:
        config: of the bank.
        site_m: (E, 2).
        chunk: D devices.
        generator: torch generator of plane waves; rays are drawn from Sionna's own.

    Returns:
        gain, the mean of |H|^2 over tones and snapshots, and is_los, (T, D, E).
    """
    import torch

    with torch.no_grad():
        topology = draw_topology(config, site_m, chunk)
        links = topology.links
        fading = draw_rays(topology) if config.fading == "cir" else draw_waves(topology, generator)
        offset_s = snapshot_offsets_s(config.slot_s, config.num_snapshots)
        wavenumber = 2 * math.pi * config.carrier_hz / SPEED_OF_LIGHT_M_S
        tone_hz = tone_offsets_hz(config.bandwidth_hz, config.num_tones)
        diffuse = fading.diffuse(links, tone_hz, offset_s, wavenumber)
        response = links.combine(diffuse, offset_s, wavenumber)
        gain = response.abs().square().mean(dim=(-2, -1), dtype=torch.float64)
    return gain.permute(2, 0, 1).numpy(), links.is_los.permute(2, 0, 1).numpy()
