"""Options of a world that real runs do not have: each is refused by its name."""

from __future__ import annotations

from uara.errors import UserError
from uara.prediction import PhysicsConfig
from uara.world.config import WorldConfig

REAL_MODES = ("sd", "server_ar", "device_only", "psd", "async")


def unsupported_options(world: WorldConfig, physics: PhysicsConfig) -> dict[str, str]:
    """Find the options that are set and that real runs would pass over.

    Returns:
        what was given and what is allowed, by the name of the option; empty: none.
    """
    requests, memory = world.requests, world.memory
    laws = sorted({task.length_law for task in requests.tasks} - {"exponential"})
    drifts = {
        f"world.requests.{name}": getattr(requests, name)
        for name in ("acceptance_drift", "output_drift")
    }
    choices = {
        "world.memory.handover": (memory.handover, ("prefill",)),
        "world.energy.form": (world.energy.form, ("airtime",)),
        "world.requests.acceptance.kind": (requests.acceptance.kind, ("constant",)),
        "world.requests.tasks.length_law": (laws[0] if laws else "exponential", ("exponential",)),
        "physics.service": (physics.service, ("batched",)),
        "physics.mode": (physics.mode, REAL_MODES),
    }
    parts = {
        "world.batteries": world.batteries,
        "world.outages": world.outages,
        "world.believed": world.believed,
        "world.requests.bursts": requests.bursts,
        "world.requests.conversations": requests.conversations,
    }
    found = {name: "is set, allowed: null" for name, part in parts.items() if part is not None}
    found |= {name: f"is {drift:g}, allowed: 0" for name, drift in drifts.items() if drift > 0}
    return found | {
        name: f"is '{given}', allowed: {', '.join(allowed)}"
        for name, (given, allowed) in choices.items()
        if given not in allowed
    }


def check_supported(world: WorldConfig, physics: PhysicsConfig) -> None:
    """Check that real runs have everything that a world asks for.

    Raises:
        UserError: naming every option that they do not have.
    """
    found = unsupported_options(world, physics)
    if found:
        told = "; ".join(f"{name} {said}" for name, said in found.items())
        raise UserError(f"real runs do not have everything of this world: {told}; change it")
