"""A lower bound on the one-slot objective, for networks where not everything can be tried.

Shape legend: B networks, M devices, I of them with a request, E servers, N loads (users).

The program chooses a server for each device and a load n for each server; a device pays c(i, j, n)
for being one of n users of server j (`uara.control.load_costs`). Every decision is such a choice
and is predicted to cost at least as much, so the least cost of the relaxation bounds them all. The
proof stands in `docs/control.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from uara.control.load_costs import LoadCosts, check_physics
from uara.control.objective import request_weight
from uara.network import NetworkState
from uara.prediction import Physics

GUESSES = 3  # prices of spectrum by equal users, before the first program
PASSES = 3  # programs, each with prices by the last one's users
INTEGRAL_GAP = 1e-3  # at which the integral program stops; its bound stays one


def lower_bound_s(
    state: NetworkState, physics: Physics, *, integral: bool = False, time_limit_s: float = 60.0
) -> Tensor:
    """Bound `uara.control.objective.total_remaining_s` over all decisions from below.

    Decisions: any server in reach, any split of each band, any power up to the limit, any draft
    length up to the longest for each device; the mode that the physics name.

    Args:
        state: B networks, solved one after the other.
        physics: sequential speculation or plain server decoding, batched service; under reuse-1
            interference the bound holds but neglects the interference.
        integral: solve the last program with whole users, which is slower and tighter.
        time_limit_s: of each integral program.

    Returns:
        (B,) seconds.

    Raises:
        UserError: if the bound was not derived for these physics.
    """
    check_physics(physics)
    limit_s = time_limit_s if integral else None
    bounds = [
        _bound_of_network(state.select(torch.tensor([b])), physics, limit_s)
        for b in range(state.num_networks)
    ]
    return torch.tensor(bounds, dtype=torch.float64)


def _bound_of_network(state: NetworkState, physics: Physics, limit_s: float | None) -> float:
    if not bool((request_weight(state) > 0).any()):
        return 0.0
    costs = LoadCosts.of(_only_requests(state), physics)
    price = _first_price(costs)
    best = 0.0
    for turn in range(PASSES):
        cost, band_hz = costs.least(price)
        program = _Program.of(cost, price * costs.band_hz[:, None])
        value, users, load = program.solve()
        best = max(best, value)
        if limit_s is not None and turn == PASSES - 1:
            best = max(best, program.solve_integral(limit_s))
        used_hz = (users * band_hz).sum(0)
        price = _next_price(price, used_hz, costs.band_hz[:, None] * load)
    return best


def _only_requests(state: NetworkState) -> NetworkState:
    """Keep the devices with a request of one network, in float64."""
    active = state.has_request[0].nonzero().squeeze(1)
    devices, changes = state.num_devices, {}
    for field in fields(state):
        values = getattr(state, field.name)
        if values is None:
            continue
        per_device = field.name not in _SERVER_FIELDS and values.ndim > 1
        assert not per_device or values.shape[1] == devices, field.name
        values = values[:, active] if per_device else values
        changes[field.name] = values.double() if values.is_floating_point() else values
    return state.with_(**changes)


_SERVER_FIELDS = frozenset(
    (
        *("forward_fixed_s", "forward_per_row_s", "forward_per_token_s", "forward_per_context_s"),
        *("server_power_w", "uplink_bandwidth_hz", "downlink_bandwidth_hz", "downlink_power_w"),
        *("rtt_s", "kv_free_tokens", "foreign_rows", "foreign_prefill_tokens", "is_down"),
        *("outage_in_s", "kv_transfer_s"),
    )
)


def _first_price(costs: LoadCosts) -> Tensor:
    """Find prices at which n average users of a server ask for its band, (E, N) s/Hz."""
    possible = costs.is_possible
    number = possible.sum(0).clamp_min(1)
    load = torch.arange(1, len(possible) + 1)
    share_hz = costs.band_hz[:, None] / load
    rate = costs.rate_bps(share_hz[..., None])
    # d (1 / R) / d b = -1 / (R b) where the rate is linear in the bandwidth.
    price = (costs.sent_bits / rate).mean(-1) * possible / share_hz
    price = price.sum(0) / number
    for _ in range(GUESSES):
        _, band_hz = costs.least(price)
        used_hz = load * band_hz.sum(0) / number
        price = _next_price(price, used_hz, costs.band_hz[:, None].expand_as(used_hz))
    return price


def _next_price(price: Tensor, used_hz: Tensor, band_hz: Tensor) -> Tensor:
    """Make spectrum dearer where more is asked for than there is; both (E, N) of servers in use.

    What is asked for falls with the square root of the price where an upload's time is shared out.
    """
    factor = (used_hz / band_hz.clamp_min(1e-9)).square().clamp(0.1, 10.0)
    return torch.where(band_hz > 1e-3 * band_hz.amax(), price * factor, price)


@dataclass(frozen=True)
class _Program:
    """Users x(i, j, n) and loads y(j, n), as columns of a linear program."""

    shape: tuple[int, int, int]  # I, E, N
    user: NDArray[np.int64]  # (X, 3) i, j, n - 1 of the possible users
    objective: NDArray[np.float64]  # (X + E N,)
    equal: csr_array  # each device once; as many users as the load says
    equal_to: NDArray[np.float64]
    below: csr_array  # one load per server; users only of the load that is
    below_of: NDArray[np.float64]

    @classmethod
    def of(cls, cost: Tensor, refund: Tensor) -> _Program:
        """Write the program down.

        Args:
            cost: (I, E, N); infinite where impossible.
            refund: (E, N) price of the whole band, which users have paid in parts.
        """
        devices, servers, loads = cost.shape
        user = cost.isfinite().nonzero().numpy()
        i, j, n = user.T
        num, pairs = len(user), servers * loads
        column, pair = np.arange(num), j * loads + n
        load = np.arange(pairs)
        ones = np.ones(num)
        equal = coo_array(
            (
                np.concatenate((ones, ones, -(load % loads + 1.0))),
                (
                    np.concatenate((i, devices + pair, devices + load)),
                    np.concatenate((column, column, num + load)),
                ),
            ),
            shape=(devices + pairs, num + pairs),
        )
        below = coo_array(
            (
                np.concatenate((np.ones(pairs), ones, -ones)),
                (
                    np.concatenate((load // loads, servers + column, servers + column)),
                    np.concatenate((num + load, column, num + pair)),
                ),
            ),
            shape=(servers + num, num + pairs),
        )
        return cls(
            (devices, servers, loads),
            user,
            np.concatenate((cost[tuple(user.T)].numpy(), -refund.flatten().numpy())),
            equal.tocsr(),
            np.concatenate((np.ones(devices), np.zeros(pairs))),
            below.tocsr(),
            np.concatenate((np.ones(servers), np.zeros(num))),
        )

    def solve(self) -> tuple[float, Tensor, Tensor]:
        """Solve the relaxation: its value, users (I, E, N) and loads (E, N)."""
        # HiGHS takes sparse rows, which the type stubs do not know.
        found = linprog(  # type: ignore[call-overload]
            self.objective,
            A_ub=self.below,
            b_ub=self.below_of,
            A_eq=self.equal,
            b_eq=self.equal_to,
            bounds=(0, 1),
            method="highs",
        )
        assert found.status == 0, f"the relaxation has a solution, but: {found.message}"
        _, servers, loads = self.shape
        users = np.zeros(self.shape)
        users[tuple(self.user.T)] = found.x[: len(self.user)]
        load = found.x[len(self.user) :].reshape(servers, loads)
        return float(found.fun), torch.from_numpy(users), torch.from_numpy(load)

    def solve_integral(self, limit_s: float) -> float:
        """Return the proven bound of the program with whole users."""
        found = milp(
            self.objective,
            integrality=np.ones(len(self.objective), dtype=np.int64),
            bounds=Bounds(0, 1),
            constraints=(
                LinearConstraint(self.equal, self.equal_to, self.equal_to),
                LinearConstraint(self.below, -np.inf, self.below_of),
            ),
            options={"time_limit": limit_s, "mip_rel_gap": INTEGRAL_GAP},
        )
        bound = found.mip_dual_bound
        return float(bound) if bound is not None and np.isfinite(bound) else 0.0
