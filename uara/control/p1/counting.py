"""What servers cost by how many devices they have, so that changes of X are priced by differences.

Shape legend: B networks, M devices, E servers.

With equal shares of a band, a device's uplink depends on its server and on how many share it, no
matter who. Server time adds n w_ij to that if it is shared equally, and (sum of sqrt(w_ij))^2 per
server if shared by the square-root rule. So a change of X is priced from counts and sums alone: the
cost of two servers, never the whole of I.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uara.control.p1.problem import Problem, at_interference_of, of_pair, uplink_to_all
from uara.control.p1.uplink import Uplink
from uara.serving.batching import sum_by_server


@dataclass(frozen=True)
class Counting:
    """An association and what it takes to price changes of it.

    Terms that no decision changes are left out. Where servers share the band, everybody meets the
    interference of the association of strongest links, whatever is tried.
    """

    links: Uplink  # (B, M, E)
    work_s: Tensor  # (B, M, E)
    queue_s: Tensor  # (B, E)
    root: Tensor  # (B, M, E) sqrt of the work where servers are shared by it, else 0
    has_equal_time: bool  # servers are shared equally
    has_whole_bands: bool  # as the printed budget lets everybody have
    server: Tensor  # (B, M) long; -1 for a device that is not placed yet

    @classmethod
    def of(cls, problem: Problem, server: Tensor, *, has_equal_time: bool) -> Counting:
        """Begin with an association (B, M), -1 where a device is not placed."""
        problem = at_interference_of(problem, problem.gain.argmax(-1))
        root = torch.zeros_like(problem.work_s) if has_equal_time else problem.work_s.sqrt()
        return cls(
            uplink_to_all(problem),
            problem.work_s,
            problem.queue_s,
            root,
            has_equal_time,
            problem.readings.budget == "printed",
            server,
        )

    def at(self, server: Tensor) -> Counting:
        """Take another association of the same instances."""
        return replace(self, server=server)

    def per_server(self, values: Tensor) -> Tensor:
        """Sum values (B, M, E) of pairs over the devices of each server, (B, E)."""
        placed = (self.server >= 0).to(values.dtype)
        at = self.server.clamp_min(0)
        return sum_by_server(of_pair(values, at) * placed, at, values.shape[2])

    def counts(self) -> Tensor:
        """Count the devices of each server, (B, E)."""
        return self.per_server(torch.ones_like(self.work_s))

    def pair_s(self, count: Tensor) -> Tensor:
        """Price each device at each server that `count` (B, E) devices share, (B, M, E)."""
        users = count.clamp_min(1).unsqueeze(1)
        share = torch.ones_like(users) if self.has_whole_bands else 1 / users
        cost = self.links.cost_s(share.expand_as(self.work_s)) + self.queue_s.unsqueeze(1)
        return cost + users * self.work_s if self.has_equal_time else cost

    def cost_s(self) -> Tensor:
        """Price the association, (B,)."""
        own = self.per_server(self.pair_s(self.counts())).sum(1)
        return own + self.per_server(self.root).square().sum(1)

    def joining_s(self) -> Tensor:
        """Price the arrival of one more device, at each server for all there, (B, M, E)."""
        count = self.counts()
        now, then = self.pair_s(count), self.pair_s(count + 1)
        others = self.per_server(then - now)
        total = self.per_server(self.root)
        grown = (total.unsqueeze(1) + self.root).square() - total.square().unsqueeze(1)
        return then + others.unsqueeze(1) + grown

    def leaving_s(self) -> Tensor:
        """Price the departure of each device from its server, (B, M); mostly negative."""
        count = self.counts()
        now, then = self.pair_s(count), self.pair_s(count - 1)
        change, total = self.per_server(then - now), self.per_server(self.root)

        def own(values: Tensor) -> Tensor:
            return of_pair(values, self.server)

        rest = total.gather(1, self.server) - own(self.root)
        shrunk = rest.square() - total.gather(1, self.server).square()
        return change.gather(1, self.server) - own(then) + shrunk

    def moves_s(self) -> Tensor:
        """Price the move of each device to each server, (B, M, E); 0 to its own."""
        price = self.joining_s() + self.leaving_s().unsqueeze(-1)
        return price.scatter(2, self.server.unsqueeze(-1), 0.0)

    def swaps_s(self) -> Tensor:
        """Price the exchange of two devices' servers, (B, M, M), symmetric; 0 on one server."""
        pair, total = self.pair_s(self.counts()), self.per_server(self.root)

        def at_server_of_other(values: Tensor) -> Tensor:
            index = self.server.unsqueeze(1).expand(-1, values.shape[1], -1)
            return values.gather(2, index)

        # Row i, column k: i takes the place of k at k's server.
        own = of_pair(pair, self.server).unsqueeze(1)
        here = total.gather(1, self.server).unsqueeze(1)
        rest = here - of_pair(self.root, self.server).unsqueeze(1)
        changed = (rest + at_server_of_other(self.root)).square() - here.square()
        price = at_server_of_other(pair) - own + changed
        price = price + price.transpose(1, 2)
        together = self.server.unsqueeze(1) == self.server.unsqueeze(2)
        return price.masked_fill(together, 0.0)
