"""The shipped draft/target pair: its corpus, its training, the measurement of its acceptance."""
