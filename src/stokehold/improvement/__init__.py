"""Judgements in, training data out: curriculum, mining of failures, the governor. Pure; no torch, no I/O."""
