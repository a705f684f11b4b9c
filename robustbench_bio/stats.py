"""Scores from outcomes: intervals for proportions, the worst case over attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robustbench_bio.records import Result


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


def worst_case(results: Sequence[Result]) -> dict[tuple[str, float], list[bool]]:
    """Return for each threat model which examples withstand every attack and gradient among the results.

    Args:
        results: measurements of one network on the same examples.

    Returns:
        (norm, eps) → one bool per example, in the order of the first result's examples.

    Raises:
        ValueError: the results are not of the same network and examples.
    """
    if len({(r.spec.weights_sha256, r.spec.data_sha256) for r in results}) > 1:
        raise ValueError("a worst case needs results of one network on the same examples")
    stands: dict[tuple[str, float], list[bool]] = {}
    for result in results:
        cell = (result.spec.norm, result.spec.eps)
        robust = result.outcomes_record.robust_correct()
        stands[cell] = [a and b for a, b in zip(stands.get(cell, robust), robust, strict=True)]
    return stands
