"""Statistics of outcomes: intervals for proportions, paired tests, worst cases."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A confidence interval for a fraction."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval (Wilson 1927) for `successes` of `n`; (0, 1) when n is 0."""
    if n == 0:
        return Interval(0.0, 1.0)
    if not 0 <= successes <= n:
        raise ValueError(f"expected successes from 0 to n = {n}, got {successes}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (successes + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * sqrt(successes * (n - successes) / n + z**2 / 4)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def all_of(robust: Iterable[Sequence[bool]]) -> list[bool]:
    """Return for each example whether it is robust to every attack: one list of examples per attack."""
    return [all(example) for example in zip(*robust, strict=True)]


class Discordant(NamedTuple):
    """Examples on which two lists of outcomes differ; those on which they agree decide no paired test."""

    only_a: int
    only_b: int


def discordant(a: Sequence[bool], b: Sequence[bool]) -> Discordant:
    """Count the examples that are true in one of two lists alone."""
    pairs = list(zip(a, b, strict=True))
    return Discordant(sum(one and not other for one, other in pairs), sum(other and not one for one, other in pairs))


@lru_cache(maxsize=65536)
def mcnemar(only_a: int, only_b: int, *, two_sided: bool = False) -> float:
    """Return the exact McNemar p-value (McNemar 1947) of two counts of discordant examples.

    Under the null each discordant example is a fair coin. Sums of binomial coefficients in whole numbers are exact
    for any n, and quick enough for a board of hundreds of networks, which needs a test for every pair.

    `only_a` are the examples that are true under a alone; one-sided, the question is whether a is true more often.
    """
    n, term, tail = only_a + only_b, 1, 1
    for k in range(min(only_a, only_b) if two_sided else only_b):
        term = term * (n - k) // (k + 1)  # C(n, k + 1) from C(n, k): far quicker than each from factorials
        tail += term
    return float(min(1.0, (2 if two_sided else 1) * tail / 2**n))
