"""What every room needs and knows nothing of networks: errors, registry, random streams, files, statistics."""
