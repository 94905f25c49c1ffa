"""Planner of arXiv 2510.11331: one edge node drafts, another verifies, all share an uplink."""
