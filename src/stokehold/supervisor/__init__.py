"""Keeps the worker processes alive, watches the inbox, tells how things stand, raises alerts. No torch."""
