"""Steps mobile-env with random actions and prints its speed as JSON.

Run by `benchmarks.env_speed` with the Python of mobile-env's own environment; it imports nothing of
this project.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any

import gymnasium
import mobile_env  # noqa: F401  (registers its environments)

ENVIRONMENT = "mobile-large-central-v0"


def steps_per_s(env: Any, seconds: float) -> float:
    """Count full steps per processor second: random action, step, observation, resets included."""
    steps, start = 0, time.process_time()
    while (elapsed := time.process_time() - start) < seconds:
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
        steps += 1
    return steps / elapsed


def main(repeats: int, seconds: float) -> None:
    """Print the best of several repeats."""
    env = gymnasium.make(ENVIRONMENT)
    env.reset(seed=0)
    core: Any = env.unwrapped
    steps_per_s(env, 0.5)
    result = {
        "peer": f"mobile-env {version('mobile-env')} {ENVIRONMENT}",
        "devices": core.NUM_USERS,
        "servers": core.NUM_STATIONS,
        "env_steps_per_s": max(steps_per_s(env, seconds) for _ in range(repeats)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
