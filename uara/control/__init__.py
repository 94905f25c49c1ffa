"""Controllers that do not learn: association, bandwidth, power, draft length, combined freely."""
