"""Procedural problem families: each generates problems with known answers and verifies answers by structure."""
