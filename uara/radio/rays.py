"""Fading by rays: the channel impulse response of 3GPP TR 38.901 clause 7.5 along moving devices.

Shape legend: D devices of one chunk, E servers, T slots, C clusters, R rays per cluster,
S snapshots per slot, F tones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from uara.radio.topology import Links, Topology

# TR 38.901 Table 7.5-5: rays of the three sub-clusters of a strong cluster, and their delays in
# units of the cluster delay spread.
_SUBCLUSTER_RAYS = ((0, 1, 2, 3, 4, 5, 6, 7, 18, 19), (8, 9, 10, 11, 16, 17), (12, 13, 14, 15))
_SUBCLUSTER_DELAYS = (0.0, 1.28, 2.56)


@dataclass(frozen=True)
class Rays:
    """What Sionna drew for the diffuse part of links."""

    rays: Any  # sionna.phy.channel.tr38901.Rays, tensors (D, E, T, C[, R])
    cluster_delay_spread_s: Any  # (D, E, T)

    def diffuse(self, links: Links, tone_hz: Any, offset_s: Any, wavenumber: float) -> Any:
        """Sum the rays coherently (TR 38.901 eq. 7.5-22 to 7.5-28), one antenna at either end.

        Both antennas are vertically polarised and upright, so that the polarisation matrix acts
        through its first entry alone; this is several times faster than the sum for any arrays.

        Args:
            links: the links.
            tone_hz: (F,) offsets from the carrier.
            offset_s: (S,) offsets from the waypoint's time.
            wavenumber: 2 pi over the wavelength.

        Returns:
            complex (D, E, T, F, S), the antenna gain of the site included.
        """
        import torch

        coefficient, delay_s = self._paths(links, offset_s, wavenumber)
        tones = torch.polar(
            torch.ones(()), -2 * math.pi * delay_s.unsqueeze(-2) * tone_hz.unsqueeze(-1)
        )  # (D, E, T, F, paths)
        return tones @ coefficient

    def _paths(self, links: Links, offset_s: Any, wavenumber: float) -> tuple[Any, Any]:
        """Sum rays to paths: coefficients (D, E, T, paths, S) and delays (D, E, T, paths)."""
        import torch

        rays = self.rays
        num_rays = rays.aoa.shape[-1]
        field = links.sector_field(rays.zod, rays.aod)
        amplitude = field * (rays.powers / num_rays).sqrt().unsqueeze(-1)
        doppler = wavenumber * links.speed_towards(rays.zoa, rays.aoa)  # rad/s
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


def draw_rays(topology: Topology) -> Rays:
    """Let Sionna draw the rays of all links (TR 38.901 steps 5 to 10), spatially consistent."""
    from sionna.phy.channel.tr38901 import RaysGenerator

    draw = RaysGenerator(topology.scenario, enable_spatial_consistency=True)
    draw.topology_updated_callback()
    return Rays(draw(topology.large_scale), topology.scenario.get_param("cDS") * 1e-9)
