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


def median_distance(result: Result) -> float:
    """Return the median size of the perturbation that turns an example, in the norm of the result.

    Meant for minimum-norm attacks such as min-norm. An example that is wrong already counts with 0, one that still
    stands with infinity, so the median is infinite where fewer than half of the examples fall within eps.
    """
    import statistics

    record = result.outcomes_record
    states = zip(record.clean_correct(), record.robust_correct(), record.distance, strict=True)
    return statistics.median((float("inf") if robust else size) if clean else 0.0 for clean, robust, size in states)
