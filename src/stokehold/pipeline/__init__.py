"""The story: ingest, train, evaluate, promote, improve. The only place that wires rooms together."""
