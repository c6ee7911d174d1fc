"""Everything that survives a restart: files with their manifests, the database, the durable jobs. No torch."""
