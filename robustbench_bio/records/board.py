"""What a board is: a contest on some data under some attacks."""

from typing import Literal

from pydantic import Field

from robustbench_bio.records.base import Identifier, Record, Seed, Text
from robustbench_bio.records.threat import Threat

#: Examples of one measurement at most; CIFAR's and MNIST's test splits have 10,000.
MAX_EXAMPLES = 100_000


class Board(Record):
    """A contest: which data, which attacks, and what ranks the networks."""

    name: Identifier
    title: Text
    summary: Text = ""
    dataset: Identifier
    split: Literal["test"] = "test"
    n_examples: int = Field(ge=1, le=MAX_EXAMPLES)
    """First N of the split."""
    preset: Identifier
    """Attacks that every entry has to stand."""
    curve: Identifier | None = None
    """A second preset, for the curve over eps; it takes part in the ranking where it attacks at the same radius."""
    rank_by: Threat
    """Threat model whose worst case over all attacks and gradients, example by example, ranks the entries."""
    seed: Seed = 0
