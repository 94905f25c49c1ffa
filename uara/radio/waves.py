"""Fading by plane waves: a sum of sinusoids with the spreads of TR 38.901, for long tracks.

Shape legend: D devices of one chunk, E servers, T slots, N waves, S snapshots per slot, F tones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from uara.radio.topology import Links

NUM_WAVES = 32  # the kurtosis of the envelope is 2 - 1 / N against 2 of a Rayleigh channel

# Nodes and weights of the mean over a normal distribution (Gauss-Hermite).
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)


@dataclass(frozen=True)
class Waves:
    """Waves of equal power that reach each link's device from all around, each with its delay.

    A wave's phase grows with the way that the device has gone in its direction, so Doppler is
    true within a slot and from slot to slot, and who comes back finds the same fading. Angles
    are spread evenly about the device, so the autocorrelation is that of Clarke's model,
    J0(2 pi f_d t) (Clarke, Bell Syst. Tech. J. 47(6), 1968). Delays are exponentially distributed,
    so the correlation of tones df apart is 1 / (1 + 2 pi i df T) with mean delay T.
    """

    arrival_rad: Any  # (D, E, N)
    phase_rad: Any  # (D, E, N) at the origin
    delay: Any  # (D, E, N) in units of the mean delay

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

        phase, doppler = self._phases(links, wavenumber)
        delay_s = mean_delay_s(links).unsqueeze(-1) * self.delay.unsqueeze(2)  # (D, E, T, N)
        tones = torch.polar(
            torch.full((), NUM_WAVES**-0.5),
            -2 * math.pi * delay_s.unsqueeze(-2) * tone_hz.unsqueeze(-1),
        )  # (D, E, T, F, N)
        instants = torch.polar(
            torch.ones(()), phase.unsqueeze(-1) + doppler.unsqueeze(-1) * offset_s
        )  # (D, E, T, N, S)
        return mean_site_field(links)[..., None, None] * (tones @ instants)

    def _phases(self, links: Links, wavenumber: float) -> tuple[Any, Any]:
        """Phases at the waypoints, in radian, and their change in rad/s, (D, E, T, N)."""
        import torch

        turn = 2 * math.pi
        way = wavenumber * torch.from_numpy(np.ascontiguousarray(links.position_m))
        towards = torch.stack([self.arrival_rad.cos(), self.arrival_rad.sin()], dim=2)
        # Thousands of turns: counted in double precision before they are dropped.
        phase = torch.einsum("dtx,dexn->detn", way, towards.double())
        phase = torch.remainder(phase + self.phase_rad.double().unsqueeze(2), turn).float()
        speed = torch.einsum("dtx,dexn->detn", links.velocity_m_s[..., :2], towards)
        return phase, wavenumber * speed


def mean_delay_s(links: Links) -> Any:
    """Mean delay T of the waves that gives a link its delay spread, (D, E, T), in seconds.

    With a share p = 1 / (K + 1) of the power in waves and the rest at delay 0, the root mean
    square spread is T sqrt(p (2 - p)).
    """
    import torch

    share = torch.where(links.is_los, 1 / (links.k_factor + 1), 1.0)
    return links.delay_spread_s / (share * (2 - share)).sqrt()


def mean_site_field(links: Links) -> Any:
    """Root of the site's mean antenna gain over departures spread normally about the direct path.

    Returns:
        (D, E, T), linear field.
    """
    import torch

    node = torch.tensor(_NODES, dtype=torch.float32)
    weight = torch.tensor(_WEIGHTS / _WEIGHTS.sum(), dtype=torch.float32)
    azimuth = links.los_aod.unsqueeze(-1) + links.departure_spread_rad.unsqueeze(-1) * node
    zenith = (links.los_zod + links.zod_offset).clamp(0.0, math.pi).unsqueeze(-1)
    field = links.sector_field(zenith.expand_as(azimuth).unsqueeze(-1), azimuth.unsqueeze(-1))
    return (field[..., 0].square() @ weight).sqrt()


def draw_waves(num_devices: int, num_servers: int, generator: Any) -> Waves:
    """Draw the waves of some links from a torch generator."""
    import torch

    shape = (num_devices, num_servers, NUM_WAVES)
    step = 2 * math.pi / NUM_WAVES
    first = torch.rand(shape[:2], generator=generator).unsqueeze(-1)
    return Waves(
        arrival_rad=step * (torch.arange(NUM_WAVES) + first),
        phase_rad=2 * math.pi * torch.rand(shape, generator=generator),
        delay=torch.empty(shape).exponential_(generator=generator),
    )
