"""Builds a channel bank with Sionna: 3GPP TR 38.901 urban micro street canyon along moving devices.

Shape legend: D devices of one chunk (Sionna's batch), E servers, T slots (the waypoints of a track,
Sionna's user terminals), C clusters, R rays per cluster, S snapshots per slot, F tones.
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
from uara.radio.tracks import area_radius_m, draw_tracks, site_positions_m

SPEED_OF_LIGHT_M_S = 299_792_458.0

# Links (device, slot, server) computed at once: more of them fall out of the processor's caches.
_LINKS_PER_CHUNK = 2048

# TR 38.901 Table 7.5-5: rays of the three sub-clusters of a strong cluster, and their delays in
# units of the cluster delay spread.
_SUBCLUSTER_RAYS = ((0, 1, 2, 3, 4, 5, 6, 7, 18, 19), (8, 9, 10, 11, 16, 17), (12, 13, 14, 15))
_SUBCLUSTER_DELAYS = (0.0, 1.28, 2.56)


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
    from each other: two devices at one place have independent shadowing.

    A site has three sectors, each one vertically polarised element of TR 38.901 Table 7.3-1
    (8 dBi, 65 degrees) without tilt; the first looks at the centre of the network. A device uses
    the sector of a site in whose direction it lies. Its own antenna is isotropic.

    A world depends on the config's seed and its own key alone, not on `workers`.

    Args:
        config: what to build.
        progress: called with (worlds done, worlds in all).
        workers: processes; 1 builds in this process.

    Raises:
        UserError: fewer than one worker, Sionna is not installed, or a worker died.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}: give at least 1")
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
    tracks_seed, channel_seed = np.random.SeedSequence([config.seed, *key]).spawn(2)
    rng = np.random.default_rng(tracks_seed)
    site_m = _sites_m(config)
    radius_m = area_radius_m(site_m, config.inter_site_distance_m)
    is_indoor = rng.random(config.num_devices) < config.indoor_share
    speed = rng.uniform(config.speed_min_m_s, config.speed_max_m_s, config.num_devices)
    speed = np.where(is_indoor, config.speed_min_m_s, speed)
    position, velocity = draw_tracks(
        rng, speed, config.num_slots, config.slot_s, config.turn_rad, site_m, radius_m
    )
    return WorldTracks(position, velocity, is_indoor, int(channel_seed.generate_state(1)[0]))


def build_world(config: BankConfig, key: tuple[int, int]) -> World:
    """Build one world; it depends on `config.seed` and `key` (split, number) alone."""
    from sionna.phy import config as sionna_config

    tracks = draw_world_tracks(config, key)
    position, velocity = tracks.position_m, tracks.velocity_m_s
    site_m = _sites_m(config)
    sionna_config.seed = tracks.channel_seed
    per_chunk = max(1, _LINKS_PER_CHUNK // (config.num_slots * config.num_servers))
    gain_db, is_los = [], []
    for first in range(0, config.num_devices, per_chunk):
        chunk = slice(first, first + per_chunk)
        gain, los = _chunk_gain(
            config, site_m, position[:, chunk], velocity[:, chunk], tracks.is_indoor[chunk]
        )
        gain_db.append(10 * np.log10(gain))
        is_los.append(los)
    return World(
        gain_db=np.concatenate(gain_db, axis=1).astype(np.float16),
        position_m=position.astype(np.float32),
        velocity_m_s=velocity.astype(np.float32),
        is_los=np.concatenate(is_los, axis=1),
    )


def _chunk_gain(
    config: BankConfig,
    site_m: NDArray[np.float64],
    position_m: NDArray[np.float64],
    velocity_m_s: NDArray[np.float64],
    is_indoor: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw the channels of some devices along their tracks (T, D, 2): gain and LoS (T, D, E)."""
    import torch

    with torch.no_grad():
        links = draw_links(config, site_m, position_m, velocity_m_s, is_indoor)
        gain = links.mean_gain(config)
    return (
        gain.permute(2, 0, 1).numpy().astype(np.float64),
        links.is_los.permute(2, 0, 1).numpy(),
    )


@dataclass(frozen=True)
class Links:
    """What Sionna drew for the links of some devices; every tensor begins with (D, E, T)."""

    rays: Any  # sionna.phy.channel.tr38901.Rays, tensors (D, E, T, C[, R])
    k_factor: Any  # Ricean factor, linear
    large_scale_gain: Any  # path loss and shadowing, linear
    cluster_delay_spread_s: Any
    is_los: Any  # bool
    distance_m: Any
    los_aod: Any  # azimuth of the direct path at the site, radian
    los_zod: Any  # its zenith angle there
    los_aoa: Any  # at the device
    los_zoa: Any
    velocity_m_s: Any  # (D, T, 3)
    site_yaw: Any  # (E,) azimuth of a site's first sector, radian
    pattern: Any  # antenna.field(zenith, azimuth) -> (field_theta, field_phi)

    def mean_gain(self, config: BankConfig) -> Any:
        """Average |H|^2 over tones and snapshots, (D, E, T)."""
        import torch

        response = self.frequency_response(
            tone_offsets_hz(config.bandwidth_hz, config.num_tones),
            snapshot_offsets_s(config.slot_s, config.num_snapshots),
            2 * math.pi * config.carrier_hz / SPEED_OF_LIGHT_M_S,
        )
        return response.abs().square().mean(dim=(-2, -1), dtype=torch.float64)

    def frequency_response(self, tone_hz: Any, offset_s: Any, wavenumber: float) -> Any:
        """Sum the rays coherently (TR 38.901 eq. 7.5-22 to 7.5-30), one antenna at either end.

        Both antennas are vertically polarised and upright, so that the polarisation matrix acts
        through its first entry alone; this is several times faster than the sum for any arrays.

        Args:
            tone_hz: (F,) offsets from the carrier.
            offset_s: (S,) offsets from the waypoint's time.
            wavenumber: 2 pi over the wavelength.

        Returns:
            complex response (D, E, T, F, S), path loss and shadowing included.
        """
        import torch

        coefficient, delay_s = self._diffuse_paths(offset_s, wavenumber)
        tones = torch.polar(
            torch.ones(()), -2 * math.pi * delay_s.unsqueeze(-2) * tone_hz.unsqueeze(-1)
        )  # (D, E, T, F, paths)
        diffuse = tones @ coefficient
        direct = self._direct_path(offset_s, wavenumber).unsqueeze(-2)
        k = torch.where(self.is_los, self.k_factor, 0.0)[..., None, None]
        response = (k / (k + 1)).sqrt() * direct + (1 / (k + 1)).sqrt() * diffuse
        return self.large_scale_gain.sqrt()[..., None, None] * response

    def _diffuse_paths(self, offset_s: Any, wavenumber: float) -> tuple[Any, Any]:
        """Sum rays to paths: coefficients (D, E, T, paths, S) and delays (D, E, T, paths)."""
        import torch

        rays = self.rays
        num_rays = rays.aoa.shape[-1]
        field = self._sector_field(rays.zod, rays.aod)
        amplitude = field * (rays.powers / num_rays).sqrt().unsqueeze(-1)
        doppler = wavenumber * self._speed_towards(rays.zoa, rays.aoa)  # rad/s
        phase = rays.phases[..., 0]
        strong = rays.strongest_cluster_indices  # (D, E, T, 2)
        weight = torch.ones_like(rays.powers).scatter(-1, strong, 0.0)
        index = strong.unsqueeze(-1).expand(*strong.shape, num_rays)
        snapshots = []
        for t in offset_s.tolist():
            ray = torch.polar(amplitude, phase + doppler * t)
            split = ray.gather(3, index)
            parts = [split[..., list(members)].sum(-1) for members in _SUBCLUSTER_RAYS]
            snapshots.append(torch.cat([ray.sum(-1) * weight, *parts], dim=-1))
        strong_delay_s = rays.delays.gather(3, strong)
        spread_s = self.cluster_delay_spread_s.unsqueeze(-1)
        delays = [rays.delays, *(strong_delay_s + x * spread_s for x in _SUBCLUSTER_DELAYS)]
        return torch.stack(snapshots, dim=-1), torch.cat(delays, dim=-1)

    def _direct_path(self, offset_s: Any, wavenumber: float) -> Any:
        """Compute the direct path (eq. 7.5-29), (D, E, T, S); it arrives with delay 0."""
        import torch

        field = self._sector_field(self.los_zod[..., None, None], self.los_aod[..., None, None])
        speed = self._speed_towards(self.los_zoa[..., None, None], self.los_aoa[..., None, None])
        phase = wavenumber * (speed[..., 0] * offset_s - self.distance_m.unsqueeze(-1))
        return torch.polar(field[..., 0].expand_as(phase).contiguous(), phase)

    def _sector_field(self, zenith: Any, azimuth: Any) -> Any:
        """Field of the sector that faces the device, at departure angles (D, E, T, C, R)."""
        third = 2 * math.pi / 3
        away = self.los_aod - self.site_yaw[:, None]
        boresight = self.site_yaw[:, None] + (away / third).round() * third
        local = azimuth - boresight[..., None, None]
        # The pattern takes azimuths between -pi and pi.
        local = local - 2 * math.pi * (local / (2 * math.pi)).round()
        return self.pattern(zenith, local)[0]

    def _speed_towards(self, zenith: Any, azimuth: Any) -> Any:
        """Speed of the device in the directions of arrival (D, E, T, C, R), in m/s."""
        vx, vy, vz = (v[:, None, :, None, None] for v in self.velocity_m_s.unbind(-1))
        return zenith.sin() * (vx * azimuth.cos() + vy * azimuth.sin()) + vz * zenith.cos()


def tone_offsets_hz(bandwidth_hz: float, num_tones: int) -> Any:
    """Space tones evenly over a band about its centre, (F,)."""
    import torch

    return (torch.arange(num_tones) + 0.5) * (bandwidth_hz / num_tones) - bandwidth_hz / 2


def snapshot_offsets_s(slot_s: float, num_snapshots: int) -> Any:
    """Space instants evenly over a slot about its middle, (S,)."""
    import torch

    return ((torch.arange(num_snapshots) + 0.5) / num_snapshots - 0.5) * slot_s


def draw_links(
    config: BankConfig,
    site_m: NDArray[np.float64],
    position_m: NDArray[np.float64],
    velocity_m_s: NDArray[np.float64],
    is_indoor: NDArray[np.bool_],
) -> Links:
    """Let Sionna draw the links of some devices along their tracks (T, D, 2)."""
    import torch
    from sionna.phy.channel.tr38901 import LSPGenerator, RaysGenerator

    scenario = _new_scenario(config.carrier_hz)
    draw_large_scale = LSPGenerator(scenario)
    draw_rays = RaysGenerator(scenario, enable_spatial_consistency=True)

    num_slots, num_devices = position_m.shape[:2]
    velocity = _with_height(velocity_m_s, 0.0).transpose(0, 1)  # (D, T, 3)
    site = _with_height(site_m, config.site_height_m)
    scenario.set_topology(
        ut_loc=_with_height(position_m, config.device_height_m).transpose(0, 1).contiguous(),
        bs_loc=site.expand(num_devices, -1, -1).contiguous(),
        ut_orientations=torch.zeros(num_devices, num_slots, 3),
        bs_orientations=torch.zeros(num_devices, len(site_m), 3),
        ut_velocities=velocity.contiguous(),
        in_state=torch.tensor(is_indoor)[:, None].expand(-1, num_slots).contiguous(),
        los="random",
        spatial_consistency_track_ids=torch.zeros(num_slots, dtype=torch.int64),
    )
    draw_large_scale.topology_updated_callback()
    draw_rays.topology_updated_callback()
    large_scale = draw_large_scale()
    radian = math.pi / 180
    return Links(
        rays=draw_rays(large_scale),
        k_factor=large_scale.k_factor,
        large_scale_gain=10 ** (-large_scale.pathloss / 10) * large_scale.sf,
        cluster_delay_spread_s=scenario.get_param("cDS") * 1e-9,
        is_los=scenario.los,
        distance_m=scenario.distance_3d,
        los_aod=scenario.los_aod * radian,
        los_zod=scenario.los_zod * radian,
        los_aoa=scenario.los_aoa * radian,
        los_zoa=scenario.los_zoa * radian,
        velocity_m_s=velocity,
        site_yaw=torch.atan2(0.0 - site[:, 1], 0.0 - site[:, 0]),
        pattern=scenario.bs_array.ant_pol1.field,
    )


def _new_scenario(carrier_hz: float) -> Any:
    """Make Sionna's street canyon with one element of TR 38.901 per site, spatially consistent."""
    from sionna.phy.channel.tr38901 import PanelArray, UMiScenario

    antenna: dict[str, Any] = {
        "num_rows_per_panel": 1,
        "num_cols_per_panel": 1,
        "polarization": "single",
        "polarization_type": "V",
        "carrier_frequency": carrier_hz,
        "device": "cpu",
    }
    scenario = UMiScenario(
        carrier_hz,
        o2i_model="low",
        ut_array=PanelArray(antenna_pattern="omni", **antenna),
        bs_array=PanelArray(antenna_pattern="38.901", **antenna),
        direction="downlink",
        device="cpu",
    )
    scenario.set_spatial_consistency_enabled(True)
    return scenario


def _with_height(horizontal: NDArray[np.float64], height: float) -> Any:
    """Append a third coordinate to (..., 2), as a float32 tensor (..., 3)."""
    import torch

    plane = torch.tensor(horizontal, dtype=torch.float32)
    return torch.cat([plane, torch.full((*plane.shape[:-1], 1), height)], dim=-1)
