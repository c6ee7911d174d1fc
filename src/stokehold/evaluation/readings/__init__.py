"""Readings of stored answers: what a model needs, got wrong, forgot, and knows of itself. Pure; no model is asked.

Each reading takes `Answer`s and gives a JSON-able mapping in which every number is finite or None.
"""
