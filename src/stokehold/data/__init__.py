"""JSONL in, masked and packed token batches out. No torch; nothing here reads the network or runs what it reads."""
