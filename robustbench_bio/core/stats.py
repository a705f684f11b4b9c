"""Scores from outcomes: intervals for proportions, the worst case over attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Interval(NamedTuple):
    """A confidence interval for a fraction."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval (Wilson 1927) for `successes` of `n`; (0, 1) when n is 0."""
    if n == 0:
        return Interval(0.0, 1.0)
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def mcnemar(stands_a: Sequence[bool], stands_b: Sequence[bool]) -> float:
    """Return the one-sided exact McNemar p-value for "a stands more often than b" on the same examples.

    Args:
        stands_a: one bool per example.
        stands_b: one bool per example, in the same order.
    """
    from scipy.stats import binomtest

    only_a = sum(a and not b for a, b in zip(stands_a, stands_b, strict=True))
    only_b = sum(b and not a for a, b in zip(stands_a, stands_b, strict=True))
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5, alternative="greater").pvalue)
