"""The training loop, its checkpoints and augmentation, and one run from a card."""
