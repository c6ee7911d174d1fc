"""Completions in, judgements out: scorers, metrics, canaries, the paired verdict, promotion. Pure; no torch, no I/O."""
