"""The training loop, its checkpoints and augmentation, and one run from a card.

May be added: what a recipe can ask for, in `objective` or `augmentation`. What is drawn in a step follows from seed and
step alone, so that an interrupted training continues to the same weights.
"""
