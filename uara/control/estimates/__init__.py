"""What a controller may estimate by itself where knowledge is missing, stale or wrong."""
