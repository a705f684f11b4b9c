"""How long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Takes note of how far some work has come; called often, so it must be cheap."""

    def __call__(self, done: int, total: int, line: str, /) -> None:
        """Take note: units done, units in all, and one line on what runs now."""


def silent(done: int, total: int, line: str, /) -> None:
    """Take no note of any progress."""
