"""Evaluations in the log formats of other evaluators, made of what is stored; none of those is installed for it."""
