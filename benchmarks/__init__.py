"""Speed beside peers; each module is a command: `python -m benchmarks.env_speed`."""
