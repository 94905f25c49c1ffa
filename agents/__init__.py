"""Learning: MAPPO, rollouts, the training loop, checkpoints, the stable-baselines3 baseline."""
