"""Scores over several results of one network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robustbench_bio.records.result import Result


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


def median_distance(result: Result) -> float:
    """Return the median size of the perturbation that turns an example, in the norm of the result.

    Meant for minimum-norm attacks such as min-norm. An example that is wrong already counts with 0, one that still
    stands with infinity, so the median is infinite where fewer than half of the examples fall within eps.
    """
    import statistics

    record = result.outcomes_record
    states = zip(record.clean_correct(), record.robust_correct(), record.distance, strict=True)
    return statistics.median((float("inf") if robust else size) if clean else 0.0 for clean, robust, size in states)
