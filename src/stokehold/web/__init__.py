"""The live page, its API and the Prometheus figures. Reads the database, writes only control requests; no torch."""
