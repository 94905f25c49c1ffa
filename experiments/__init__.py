"""Configs and what runs them: command line, evaluation, decoding runs, sweeps, statistics."""
