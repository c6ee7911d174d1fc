"""Suites, evaluations, and what an evaluation showed of each item."""
