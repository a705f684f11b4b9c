"""What is written to disk or asked for, one file a kind: strict when read, canonical when written, one hash."""
