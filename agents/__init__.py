"""Learning: MAPPO, networks, rollouts, the training loop, checkpoints, the stable-baselines3 baseline."""
