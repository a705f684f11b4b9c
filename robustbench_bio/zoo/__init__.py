"""The catalog of the data folders, cards and weights, and what a network is."""
