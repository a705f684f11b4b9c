"""Scores over several results of one network."""

import statistics
from collections.abc import Sequence

from robustbench_bio.core.stats import all_of
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat


def worst_cases(results: Sequence[Result]) -> dict[Threat, list[bool]]:
    """Return for each threat model which examples withstand every attack and gradient among the results.

    Raises:
        ValueError: the results are not of the same network and examples.
    """
    if len({(result.spec.network_sha256, result.spec.data_sha256) for result in results}) > 1:
        raise ValueError("a worst case needs results of one network on the same examples")
    measured: dict[Threat, list[list[bool]]] = {}
    for result in results:
        measured.setdefault(result.spec.threat, []).append(result.outcomes_record.robust_correct())
    return {threat: all_of(robust) for threat, robust in measured.items()}


def median_distance(result: Result) -> float:
    """Return the median size of the perturbation that fools the network, in the norm of the result.

    Meant for minimum-norm attacks such as min-norm. An example that is wrong already counts with 0, one that is
    robust with infinity, so the median is infinite where fewer than half of the examples are fooled within eps.
    """
    record = result.outcomes_record
    states = zip(record.clean_correct(), record.robust_correct(), record.distance, strict=True)
    return statistics.median((float("inf") if robust else size) if clean else 0.0 for clean, robust, size in states)
