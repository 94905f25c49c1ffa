"""The decision process: observations, actions, rewards; batched, PettingZoo, Gymnasium and SB3 views."""
