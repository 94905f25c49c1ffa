"""Pictures of networks, runs and results; the only importer of matplotlib."""
