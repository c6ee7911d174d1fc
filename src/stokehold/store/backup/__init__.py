"""Snapshots: taken every night, copied to a second place, made a home of again, and drilled."""
