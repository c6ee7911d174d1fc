"""Sensors, sampler, energy, RLE and collapse detection, sessions. A number that was not measured is null. No torch."""
