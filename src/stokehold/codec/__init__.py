"""The compressed canonical language: typed S-expressions, one printing, a reversible codebook. Pure."""
