"""Learning: MAPPO, rollouts, the training loop, checkpoints, the stable-baselines3 baseline."""

from uara.shadowing import check_packages

check_packages()
