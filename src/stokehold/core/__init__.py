"""The nouns, the config tree, the errors. Imports nothing of ours; no torch, no I/O."""
