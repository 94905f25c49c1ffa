"""The report: one HTML page of what runs have left, readable without a network."""
