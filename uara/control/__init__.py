"""Controllers that do not learn: association, bandwidth, power and draft length, freely combined."""
