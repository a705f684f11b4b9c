"""What every room needs and knows nothing of networks: add here errors, registry, random streams, files, statistics."""
