"""Configs and what runs them: command line, evaluation, decoding runs, sweeps, statistics."""

from uara.shadowing import check_packages

check_packages()
