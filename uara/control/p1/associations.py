"""Rules for X: which server each device uses, and which of them search I.

Shape legend: B networks, M devices, E servers.

Rules that search price changes of X at equal bands, and at equal or square-root server time as the
allocator has it. The order of devices and ties between servers follow the gains, so that other
names for devices or servers change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from uara.control.p1.allocators import ALLOCATORS, AllocatorName
from uara.control.p1.counting import Counting
from uara.control.p1.problem import Problem, at_interference_of, decided_objective
from uara.errors import UserError

AssociationRule = Callable[[Problem, AllocatorName, torch.Generator], Tensor]

EXHAUSTIVE_LIMIT = 200_000  # associations of one network
CHUNK = 20_000  # of them evaluated at once
NEAREST = 3  # servers that least_loaded looks at
RELATIVE_GAIN = 1e-13  # of the cost, below which a change counts as none


def random(problem: Problem, allocator: AllocatorName, generator: torch.Generator) -> Tensor:
    """Choose uniformly among all servers."""
    draw = torch.rand(problem.gain.shape, generator=generator, dtype=torch.float64)
    return draw.argmax(-1)


def max_sinr(problem: Problem, allocator: AllocatorName, generator: torch.Generator) -> Tensor:
    """Choose the server of highest SINR, which is that of highest gain in bands of their own."""
    heard = at_interference_of(problem, problem.gain.argmax(-1))
    return (problem.gain / heard.noise_w_per_hz).argmax(-1)


def by_best_gain(problem: Problem) -> Iterator[Tensor]:
    """Go through devices from the one with the strongest link down, (B,) long at a time."""
    order = problem.gain.amax(-1).argsort(dim=1, descending=True, stable=True)
    yield from order.unbind(1)


def max_compute(problem: Problem, allocator: AllocatorName, generator: torch.Generator) -> Tensor:
    """Choose the fastest server, as `readings.max_compute` says."""
    speed = problem.capacity_flop_per_s
    match problem.readings.max_compute:
        case "argmax":
            return speed.argmax(1, keepdim=True).expand(-1, problem.num_devices)
        case "spread":
            fastest = (speed == speed.amax(1, keepdim=True)).unsqueeze(1)
            draw = torch.rand(problem.gain.shape, generator=generator, dtype=torch.float64)
            return (draw * fastest).argmax(-1)
    return _max_compute_in_turn(problem, generator)


def _max_compute_in_turn(problem: Problem, generator: torch.Generator) -> Tensor:
    """Let devices choose one after the other by what others have left of the servers."""
    speed = problem.capacity_flop_per_s
    server = torch.zeros_like(problem.device_time_s, dtype=torch.long)
    taken = torch.zeros_like(speed)  # devices, or shares of a slot's capacity
    is_shared = problem.readings.max_compute == "share"
    for device in by_best_gain(problem):
        if is_shared:
            choice = (speed / (taken + 1)).argmax(1, keepdim=True)
        else:
            left = speed * (1 - taken)
            chance = (left / speed.mean(1, keepdim=True)).softmax(1)
            choice = torch.multinomial(chance, 1, generator=generator)
        server.scatter_(1, device.unsqueeze(1), choice)
        row = device[:, None, None].expand(-1, 1, problem.num_servers)
        work = problem.work_s.gather(1, row).squeeze(1) / problem.readings.slot_s
        taken.scatter_add_(
            1, choice, torch.ones_like(work) if is_shared else work.gather(1, choice)
        )
    return server


def least_loaded(problem: Problem, allocator: AllocatorName, generator: torch.Generator) -> Tensor:
    """Choose, one device after the other, the emptiest of the three strongest servers."""
    near = min(NEAREST, problem.num_servers)
    strongest = problem.gain.topk(near, dim=-1).indices  # strongest first, and so are ties
    server = torch.zeros_like(problem.device_time_s, dtype=torch.long)
    load = torch.zeros_like(problem.band_hz)
    for device in by_best_gain(problem):
        row = device[:, None, None].expand(-1, 1, near)
        candidates = strongest.gather(1, row).squeeze(1)
        choice = candidates.gather(1, load.gather(1, candidates).argmin(1, keepdim=True))
        server.scatter_(1, device.unsqueeze(1), choice)
        load.scatter_add_(1, choice, torch.ones_like(choice, dtype=load.dtype))
    return server


def greedy(problem: Problem, allocator: AllocatorName, generator: torch.Generator) -> Tensor:
    """Place one device after the other where I of all that are placed rises least."""
    nobody = torch.full_like(problem.device_time_s, -1, dtype=torch.long)
    counting = Counting.of(problem, nobody, has_equal_time=allocator == "uniform")
    for device in by_best_gain(problem):
        row = device[:, None, None].expand(-1, 1, problem.num_servers)
        price = counting.joining_s().gather(1, row).squeeze(1)
        choice = price.argmin(1, keepdim=True)
        counting = counting.at(counting.server.scatter(1, device.unsqueeze(1), choice))
    return counting.server


def tma(problem: Problem, allocator: AllocatorName, generator: torch.Generator) -> Tensor:
    """Match as Algorithm 1: strongest links, then exchanges of two devices' servers.

    Of all exchanges the one that changes I most is made, until none passes the test; the paper
    takes them as they come. With the printed test I rises.
    """
    is_printed = problem.readings.swap_test == "printed"
    return improve(problem, allocator, problem.gain.argmax(-1), sign=-1.0 if is_printed else 1.0)


def tma_moves(problem: Problem, allocator: AllocatorName, generator: torch.Generator) -> Tensor:
    """Match by exchanges that lower I, and by moves of single devices, which change loads."""
    return improve(problem, allocator, problem.gain.argmax(-1), moves=True)


def improve(
    problem: Problem,
    allocator: AllocatorName,
    start: Tensor,
    *,
    moves: bool = False,
    sign: float = 1.0,
) -> Tensor:
    """Make the best exchange (or move) in each network until none lowers sign x I, (B, M).

    Args:
        problem: instances.
        allocator: I is that of its shares; `exact` and `min_max` are searched by `square_root`,
            and where that raised the I of `exact`, the start is kept.
        start: (B, M) long.
        moves: whether single devices may move.
        sign: -1 to raise I.
    """
    counting = Counting.of(problem, start, has_equal_time=allocator == "uniform")
    least = RELATIVE_GAIN * counting.cost_s().abs()
    devices = problem.num_devices
    while True:
        price = (sign * counting.swaps_s()).flatten(1)
        if moves:
            price = torch.cat((price, sign * counting.moves_s().flatten(1)), dim=1)
        gain, best = price.min(1)
        improves = gain < -least
        if not bool(improves.any()):
            break
        changed = _apply(counting.server, best, devices, problem.num_servers)
        counting = counting.at(torch.where(improves.unsqueeze(1), changed, counting.server))
    is_priced_truly = allocator != "exact" and problem.readings.interference == "orthogonal"
    if is_priced_truly or allocator == "min_max":
        return counting.server
    allocate = ALLOCATORS[allocator]
    before, after = (
        sign * decided_objective(problem, server, allocate(problem, server))
        for server in (start, counting.server)
    )
    return torch.where((after < before).unsqueeze(1), counting.server, start)


def _apply(server: Tensor, change: Tensor, devices: int, servers: int) -> Tensor:
    """Make one change per network: numbers below M^2 exchange two devices, the rest move one."""
    is_swap = change < devices**2
    first, second = (change // devices).clamp_max(devices - 1), change % devices
    swapped = server.scatter(1, first[:, None], server.gather(1, second[:, None]))
    swapped = swapped.scatter(1, second[:, None], server.gather(1, first[:, None]))
    move = (change - devices**2).clamp_min(0)
    moved = server.scatter(1, (move // servers)[:, None], (move % servers)[:, None])
    return torch.where(is_swap[:, None], swapped, moved)


def exhaustive(problem: Problem, allocator: AllocatorName, generator: torch.Generator) -> Tensor:
    """Try every association; the first of equals.

    Raises:
        UserError: if there are too many.
    """
    devices, servers = problem.num_devices, problem.num_servers
    count = servers**devices
    if count > EXHAUSTIVE_LIMIT:
        raise UserError(
            f"exhaustive would try {servers}^{devices} associations, at most {EXHAUSTIVE_LIMIT} "
            "are allowed; take fewer devices or servers, or tma_moves"
        )
    place = servers ** torch.arange(devices - 1, -1, -1)
    networks = problem.num_networks
    least = torch.full((networks,), torch.inf, dtype=torch.float64)
    found = torch.zeros(networks, devices, dtype=torch.long)
    size = max(1, CHUNK // networks)
    for first in range(0, count, size):
        numbers = torch.arange(first, min(first + size, count))
        candidates = numbers[:, None] // place % servers
        rows = torch.arange(networks).repeat_interleave(len(numbers))
        wide, server = problem.select(rows), candidates.repeat(networks, 1)
        cost = decided_objective(wide, server, ALLOCATORS[allocator](wide, server))
        value, index = cost.view(networks, -1).min(1)
        better = value < least
        least = torch.where(better, value, least)
        found = torch.where(better.unsqueeze(1), candidates[index], found)
    return found


ASSOCIATIONS: dict[str, AssociationRule] = {
    "random": random,
    "max_sinr": max_sinr,
    "max_compute": max_compute,
    "least_loaded": least_loaded,
    "greedy": greedy,
    "tma": tma,
    "tma_moves": tma_moves,
    "exhaustive": exhaustive,
}
