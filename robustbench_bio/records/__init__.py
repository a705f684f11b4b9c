"""Written to disk or asked for: add here one file a kind, strict when read, canonical when written, one hash."""
