"""Problem P1 of arXiv 2511.01695: one slot, who uses which server, with what shares of it."""
