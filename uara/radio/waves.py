"""Fading by plane waves: sums of sinusoids with the spreads of TR 38.901, for long tracks.

Shape legend: D devices of one chunk, E servers, T slots, C clusters, N waves of a cluster,
S snapshots per slot, F tones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from uara.radio.topology import Links, Topology

WAVES_PER_CLUSTER = 4


@dataclass(frozen=True)
class Waves:
    """Clusters of plane waves that reach a device from all around, each cluster with its delay.

    Delays, powers and departures of clusters are those of TR 38.901 steps 5 to 7, so a band is as
    selective as with rays and the site's antenna counts as much. The waves of a cluster have equal
    power and come from all around, unlike rays: a wave's phase grows with the way that the device
    has gone in its direction, so Doppler is true within a slot and from slot to slot, who comes
    back finds the same fading, and the autocorrelation is that of Clarke's model,
    J0(2 pi f_d t) (Bell Syst. Tech. J. 47(6), 1968).
    """

    arrival_rad: Any  # (D, E, C, N)
    phase_rad: Any  # (D, E, C, N) at the origin
    delay_draw: Any  # (D, E, C) uniform between 0 and 1, exclusive
    power_draw: Any  # (D, E, C) standard normal
    departure_sign: Any  # (D, E, C) 1 or -1
    departure_draw: Any  # (D, E, C) standard normal

    def diffuse(self, links: Links, tone_hz: Any, offset_s: Any, wavenumber: float) -> Any:
        """Sum the waves.

        Args:
            links: the links.
            tone_hz: (F,) offsets from the carrier.
            offset_s: (S,) offsets from the waypoint's time.
            wavenumber: 2 pi over the wavelength.

        Returns:
            complex (D, E, T, F, S), the antenna gain of the site included.
        """
        import torch

        delay_s, power = self.profile(links)
        phase, doppler = self._phases(links, wavenumber)  # (D, E, T, C, N)
        amplitude = self._site_field(links, delay_s, power) * (power / WAVES_PER_CLUSTER).sqrt()
        tones = torch.polar(
            amplitude.unsqueeze(-2),
            -2 * math.pi * delay_s.unsqueeze(-2) * tone_hz.unsqueeze(-1),
        )  # (D, E, T, F, C)
        one = torch.ones(())
        instants = [torch.polar(one, phase + doppler * t).sum(-1) for t in offset_s.tolist()]
        return tones @ torch.stack(instants, dim=-1)

    def profile(self, links: Links) -> tuple[Any, Any]:
        """Delays in seconds and powers, which sum to 1, of clusters: eq. 7.5-1 to 7.5-6."""
        import torch

        absent = torch.arange(self.delay_draw.shape[-1]) >= links.num_clusters.unsqueeze(-1)
        log_draw = self.delay_draw.log().unsqueeze(2)  # (D, E, 1, C)
        scaling = links.delay_scaling.unsqueeze(-1)
        delay_s = (-scaling * links.delay_spread_s.unsqueeze(-1) * log_draw).masked_fill(
            absent, math.inf
        )
        delay_s = (delay_s - delay_s.amin(-1, keepdim=True)).masked_fill(absent, 0.0)
        shadowing_db = links.cluster_shadowing_db.unsqueeze(-1) * self.power_draw.unsqueeze(2)
        power = ((scaling - 1) * log_draw).exp() * 10 ** (-shadowing_db / 10)
        power = power.masked_fill(absent, 0.0)
        return delay_s / _los_delay_divisor(links).unsqueeze(-1), power / power.sum(-1, True)

    def _site_field(self, links: Links, delay_s: Any, power: Any) -> Any:
        """Field of the site's antenna towards each cluster, (D, E, T, C): eq. 7.5-9 to 7.5-13.

        Strong clusters leave near the direct path, and the first one along it where there is line
        of sight; zenith angles are taken at their mean.
        """
        import torch

        k = torch.where(links.is_los, links.k_factor, 0.0).unsqueeze(-1)
        share = (power / (k + power.amax(-1, keepdim=True))).clamp_min(1e-6)
        away = 2 / 1.4 * (-share.log()).sqrt() / links.angle_scaling.unsqueeze(-1)
        draw = self.departure_draw.unsqueeze(2) / 7
        offset = self.departure_sign.unsqueeze(2) * away + draw
        is_first = (delay_s == 0) & links.is_los.unsqueeze(-1)
        offset = offset.masked_fill(is_first, 0.0)
        azimuth = links.los_aod.unsqueeze(-1) + links.departure_spread_rad.unsqueeze(-1) * offset
        zenith = (links.los_zod + links.zod_offset).clamp(0.0, math.pi).unsqueeze(-1)
        field = links.sector_field(zenith.expand_as(azimuth).unsqueeze(-1), azimuth.unsqueeze(-1))
        return field[..., 0]

    def _phases(self, links: Links, wavenumber: float) -> tuple[Any, Any]:
        """Phases at the waypoints, in radian, and their change in rad/s, (D, E, T, C, N)."""
        import torch

        way = wavenumber * torch.from_numpy(np.ascontiguousarray(links.position_m))
        towards = torch.stack([self.arrival_rad.cos(), self.arrival_rad.sin()], dim=2)
        # Thousands of turns: counted in double precision before they are dropped.
        phase = torch.einsum("dtx,dexcn->detcn", way, towards.double())
        phase = phase + self.phase_rad.double().unsqueeze(2)
        speed = torch.einsum("dtx,dexcn->detcn", links.velocity_m_s[..., :2], towards)
        return torch.remainder(phase, 2 * math.pi).float(), wavenumber * speed


def _los_delay_divisor(links: Links) -> Any:
    """Scale that undoes the direct path's share in the delay spread (eq. 7.5-3), (D, E, T)."""
    import torch

    k_db = 10 * links.k_factor.log10()
    divisor = 0.7705 - 0.0433 * k_db + 0.0002 * k_db**2 + 0.000017 * k_db**3
    return torch.where(links.is_los, divisor, 1.0)


def draw_waves(topology: Topology, generator: Any) -> Waves:
    """Draw the waves of all links of a topology from a torch generator."""
    import torch

    num_devices, num_servers, _ = topology.links.is_los.shape
    clusters = (num_devices, num_servers, topology.scenario.num_clusters_max)
    waves = (*clusters, WAVES_PER_CLUSTER)
    # Evenly about the device, turned at random: sums of few waves stay near their expectation.
    step = 2 * math.pi / WAVES_PER_CLUSTER
    turn = 2 * math.pi * torch.rand(clusters, generator=generator)
    return Waves(
        arrival_rad=turn.unsqueeze(-1) + step * torch.arange(WAVES_PER_CLUSTER),
        phase_rad=2 * math.pi * torch.rand(waves, generator=generator),
        delay_draw=torch.rand(clusters, generator=generator) * (1 - 1e-6) + 1e-6,
        power_draw=torch.randn(clusters, generator=generator),
        departure_sign=1.0 - 2.0 * torch.randint(2, clusters, generator=generator),
        departure_draw=torch.randn(clusters, generator=generator),
    )
