"""Boards: add here what submits, verifies, migrates, ranks or compares entries; the entries themselves are data."""
