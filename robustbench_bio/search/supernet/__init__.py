"""The network that holds every choice of a search space, and its training."""
