"""Lets Sionna place devices in a TR 38.901 scenario and draw the large-scale side of their links.

Shape legend: D devices of one chunk (Sionna's batch), E servers, T slots (the waypoints of a track,
Sionna's user terminals), S snapshots per slot, C clusters, R rays per cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uara.radio.bank import BankConfig

SPEED_OF_LIGHT_M_S = 299_792_458.0

_RADIAN = math.pi / 180


@dataclass(frozen=True)
class Chunk:
    """Some devices along their tracks, as a topology needs them."""

    position_m: NDArray[np.float64]  # (T, D, 2)
    velocity_m_s: NDArray[np.float64]  # (T, D, 2)
    is_indoor: NDArray[np.bool_]  # (D,)
    depth_share: NDArray[np.float64]  # (D, E) depth in the building over the largest depth


@dataclass(frozen=True)
class Links:
    """Geometry and large-scale parameters of links; tensors begin with (D, E, T)."""

    large_scale_gain: Any  # path loss and shadowing, linear
    k_factor: Any  # Ricean factor, linear; it counts where there is line of sight
    delay_spread_s: Any  # root mean square, direct path included
    departure_spread_rad: Any  # root mean square azimuth spread at the site
    delay_scaling: Any  # r_tau of Table 7.5-6
    cluster_shadowing_db: Any  # zeta of Table 7.5-6, standard deviation
    angle_scaling: Any  # C_phi of eq. 7.5-10
    num_clusters: Any  # Table 7.5-6, of the state that the link is in
    is_los: Any  # bool
    distance_m: Any
    los_aod: Any  # azimuth of the direct path at the site, radian
    los_zod: Any  # its zenith angle there
    los_aoa: Any  # at the device
    los_zoa: Any
    zod_offset: Any  # zenith at the site of what is not the direct path, against `los_zod`, radian
    position_m: NDArray[np.float64]  # (D, T, 2), in double precision for the phases of waves
    velocity_m_s: Any  # (D, T, 3)
    site_yaw: Any  # (E,) azimuth of a site's first sector, radian
    pattern: Any  # antenna.field(zenith, azimuth) -> (field_theta, field_phi)

    def combine(self, diffuse: Any, offset_s: Any, wavenumber: float) -> Any:
        """Add the direct path to the diffuse ones (TR 38.901 eq. 7.5-30), and the path loss.

        Args:
            diffuse: complex (D, E, T, F, S), of unit mean power for an isotropic site.
            offset_s: (S,) offsets from the waypoint's time.
            wavenumber: 2 pi over the wavelength.

        Returns:
            complex response (D, E, T, F, S), path loss, shadowing and antenna gain included.
        """
        import torch

        direct = self._direct_path(offset_s, wavenumber).unsqueeze(-2)
        k = torch.where(self.is_los, self.k_factor, 0.0)[..., None, None]
        response = (k / (k + 1)).sqrt() * direct + (1 / (k + 1)).sqrt() * diffuse
        return self.large_scale_gain.sqrt()[..., None, None] * response

    def _direct_path(self, offset_s: Any, wavenumber: float) -> Any:
        """Compute the direct path (eq. 7.5-29), (D, E, T, S); it arrives with delay 0."""
        import torch

        field = self.sector_field(self.los_zod[..., None, None], self.los_aod[..., None, None])
        speed = self.speed_towards(self.los_zoa[..., None, None], self.los_aoa[..., None, None])
        phase = wavenumber * (speed[..., 0] * offset_s - self.distance_m.unsqueeze(-1))
        return torch.polar(field[..., 0].expand_as(phase).contiguous(), phase)

    def sector_field(self, zenith: Any, azimuth: Any) -> Any:
        """Field of the sector that faces the device, at departure angles (D, E, T, C, R)."""
        third = 2 * math.pi / 3
        away = self.los_aod - self.site_yaw[:, None]
        boresight = self.site_yaw[:, None] + (away / third).round() * third
        local = azimuth - boresight[..., None, None]
        # The pattern takes azimuths between -pi and pi.
        local = local - 2 * math.pi * (local / (2 * math.pi)).round()
        return self.pattern(zenith, local)[0]

    def speed_towards(self, zenith: Any, azimuth: Any) -> Any:
        """Speed of the device in the directions of arrival (D, E, T, C, R), in m/s."""
        vx, vy, vz = (v[:, None, :, None, None] for v in self.velocity_m_s.unbind(-1))
        return zenith.sin() * (vx * azimuth.cos() + vy * azimuth.sin()) + vz * zenith.cos()


@dataclass(frozen=True)
class Topology:
    """Sionna's scenario with devices placed in it, and what was drawn for their links."""

    scenario: Any  # sionna.phy.channel.tr38901.SystemLevelScenario
    large_scale: Any  # sionna.phy.channel.tr38901.LSP
    links: Links


def tone_offsets_hz(bandwidth_hz: float, num_tones: int) -> Any:
    """Space tones evenly over a band about its centre, (F,)."""
    import torch

    return (torch.arange(num_tones) + 0.5) * (bandwidth_hz / num_tones) - bandwidth_hz / 2


def snapshot_offsets_s(slot_s: float, num_snapshots: int) -> Any:
    """Space instants evenly over a slot about its middle, (S,)."""
    import torch

    return ((torch.arange(num_snapshots) + 0.5) / num_snapshots - 0.5) * slot_s


def draw_topology(config: BankConfig, site_m: NDArray[np.float64], chunk: Chunk) -> Topology:
    """Let Sionna draw path loss, line of sight, shadowing and spreads along the tracks."""
    import torch
    from sionna.phy.channel.tr38901 import LSPGenerator

    scenario = _new_scenario(config)
    draw_large_scale = LSPGenerator(scenario)
    num_slots, num_devices = chunk.position_m.shape[:2]
    velocity = _with_height(chunk.velocity_m_s, 0.0).transpose(0, 1)  # (D, T, 3)
    site = _with_height(site_m, config.site_height_m)
    is_indoor = torch.tensor(chunk.is_indoor)[:, None].expand(-1, num_slots).contiguous()
    scenario.set_topology(
        ut_loc=_with_height(chunk.position_m, config.device_height_m).transpose(0, 1).contiguous(),
        bs_loc=site.expand(num_devices, -1, -1).contiguous(),
        ut_orientations=torch.zeros(num_devices, num_slots, 3),
        bs_orientations=torch.zeros(num_devices, len(site_m), 3),
        ut_velocities=velocity.contiguous(),
        in_state=is_indoor,
        los="random",
        spatial_consistency_track_ids=torch.zeros(num_slots, dtype=torch.int64),
        **_indoor_depth(config, scenario, chunk, num_slots),
        # Sionna would give each waypoint a car of its own; the builder adds one car per device.
        **({"in_car": torch.zeros_like(is_indoor)} if config.scenario == "rma" else {}),
    )
    draw_large_scale.topology_updated_callback()
    large_scale = draw_large_scale()
    links = Links(
        large_scale_gain=10 ** (-large_scale.pathloss / 10) * large_scale.sf,
        k_factor=large_scale.k_factor,
        delay_spread_s=large_scale.ds,
        departure_spread_rad=large_scale.asd * _RADIAN,
        delay_scaling=scenario.get_param("rTau"),
        cluster_shadowing_db=scenario.get_param("zeta"),
        angle_scaling=_angle_scaling(scenario, large_scale.k_factor),
        num_clusters=_num_clusters(scenario),
        is_los=scenario.los,
        distance_m=scenario.distance_3d,
        los_aod=scenario.los_aod * _RADIAN,
        los_zod=scenario.los_zod * _RADIAN,
        los_aoa=scenario.los_aoa * _RADIAN,
        los_zoa=scenario.los_zoa * _RADIAN,
        zod_offset=scenario.zod_offset * _RADIAN,
        position_m=chunk.position_m.transpose(1, 0, 2),
        velocity_m_s=velocity,
        site_yaw=torch.atan2(0.0 - site[:, 1], 0.0 - site[:, 0]),
        pattern=scenario.bs_array.ant_pol1.field,
    )
    return Topology(scenario, large_scale, links)


def _angle_scaling(scenario: Any, k_factor: Any) -> Any:
    """Compute C_phi (eq. 7.5-10), (D, E, T)."""
    import torch

    k_db = 10 * k_factor.log10()
    los = 1.1035 - 0.028 * k_db - 0.002 * k_db**2 + 0.0001 * k_db**3
    return scenario.get_param("CPhiNLoS") * torch.where(scenario.los, los, 1.0)


def _num_clusters(scenario: Any) -> Any:
    """Count the clusters of each link, (D, E, T)."""
    import torch

    sheltered = torch.where(
        scenario.indoor[:, None], scenario.num_clusters_indoor, scenario.num_clusters_nlos
    )
    return torch.where(scenario.los, scenario.num_clusters_los, sheltered)


def _indoor_depth(
    config: BankConfig, scenario: Any, chunk: Chunk, num_slots: int
) -> dict[str, Any]:
    """Fix depths in buildings for the whole track where asked; else Sionna draws them."""
    import torch

    # Elsewhere depth belongs to the device and is spatially consistent already.
    drawn_per_link = config.scenario != "rma" and config.carrier_hz < 6e9
    if config.indoor_depth == "slot" or not drawn_per_link:
        return {}
    share = torch.tensor(chunk.depth_share, dtype=torch.float32)
    span = scenario.max_2d_in - scenario.min_2d_in
    depth = (scenario.min_2d_in + span * share)[..., None].expand(-1, -1, num_slots)
    return {"distance_2d_in": depth.contiguous()}


def _new_scenario(config: BankConfig) -> Any:
    """Make Sionna's scenario with one element of TR 38.901 per site, spatially consistent."""
    from sionna.phy.channel.tr38901 import PanelArray, RMaScenario, UMaScenario, UMiScenario

    antenna: dict[str, Any] = {
        "num_rows_per_panel": 1,
        "num_cols_per_panel": 1,
        "polarization": "single",
        "polarization_type": "V",
        "carrier_frequency": config.carrier_hz,
        "device": "cpu",
    }
    shared: dict[str, Any] = {
        "ut_array": PanelArray(antenna_pattern="omni", **antenna),
        "bs_array": PanelArray(antenna_pattern="38.901", **antenna),
        "direction": "downlink",
        "device": "cpu",
    }
    if config.scenario == "rma":
        # Streets 20 m wide and houses 5 m high, the defaults of Table 7.4.1-1.
        scenario = RMaScenario(
            config.carrier_hz, average_street_width=20.0, average_building_height=5.0, **shared
        )
    else:
        kind = {"umi": UMiScenario, "uma": UMaScenario}[config.scenario]
        scenario = kind(config.carrier_hz, o2i_model=config.wall_loss, **shared)
    scenario.set_spatial_consistency_enabled(True)
    return scenario


def _with_height(horizontal: NDArray[np.float64], height: float) -> Any:
    """Append a third coordinate to (..., 2), as a float32 tensor (..., 3)."""
    import torch

    plane = torch.tensor(horizontal, dtype=torch.float32)
    return torch.cat([plane, torch.full((*plane.shape[:-1], 1), height)], dim=-1)
