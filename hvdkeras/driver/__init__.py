"""One training seen from the driver: checks, shards, launch, restarts, result."""
