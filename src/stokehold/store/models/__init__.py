"""Models on disk: bases, checkpoints, versions and what may be done with them."""
