"""From outcomes to a word: accuracies and differences with intervals, and what they say about a claim."""

import math
import statistics
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

from robustbench_bio.core.stats import Interval, discordant, mcnemar, wilson

#: Of all intervals, and the error that a test may make.
CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE

#: From so many seeds on they are what varies; with fewer, images are.
SEEDS = 3

HOLDS, FAILS, OPEN, UNKNOWN = "holds", "does not hold", "not shown", "not measured"

Outcomes = Mapping[int, Sequence[bool]]


class Estimate(NamedTuple):
    """A mean over seeds of accuracies, as fractions, with its interval."""

    mean: float
    low: float
    high: float
    seeds: int
    n: int


class Difference(NamedTuple):
    """Mean of a − b with interval and two-sided p; of accuracies as fractions, of anything else in its unit."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int

    @property
    def shown(self) -> bool:
        """Whether test and interval both leave out that there is no difference."""
        return self.p < ALPHA and not self.low <= 0 <= self.high


def estimate(outcomes: Outcomes) -> Estimate:
    """Return the mean accuracy of the seeds: Wilson over images; from `SEEDS` seeds on, the wider of that and t."""
    accuracies = [sum(of_seed) / len(of_seed) for of_seed in outcomes.values()]
    n, mean = len(next(iter(outcomes.values()))), statistics.fmean(accuracies)
    # A mean over two seeds need not be a whole number of images; the lower and the upper one hold it.
    low = wilson(math.floor(round(mean * n, 9)), n, CONFIDENCE).low
    high = wilson(math.ceil(round(mean * n, 9)), n, CONFIDENCE).high
    if len(accuracies) >= SEEDS:
        half = _half_width(accuracies)
        low, high = max(0.0, min(low, mean - half)), min(1.0, max(high, mean + half))
    return Estimate(mean, low, high, len(accuracies), n)


def difference(a: Outcomes, b: Outcomes) -> Difference:
    """Return a − b on the same images and seeds.

    From `SEEDS` common seeds on a t-test over them; with fewer the exact McNemar test over the images of the first
    common seed, or of the first of each, which is about these two networks and not about their rules.
    """
    common = sorted(a.keys() & b.keys())
    if len(common) >= SEEDS:
        return of_pairs([statistics.fmean(a[seed]) - statistics.fmean(b[seed]) for seed in common])
    one, other = (a[common[0]], b[common[0]]) if common else (a[min(a)], b[min(b)])
    split = discordant(one, other)
    low, high = paired_interval(split.only_a, split.only_b, len(one))
    mean = (split.only_a - split.only_b) / len(one)
    return Difference(mean, low, high, mcnemar(split.only_a, split.only_b, two_sided=True), max(1, len(common)))


def paired_interval(only_a: int, only_b: int, n: int) -> Interval:
    """Return the interval of a difference of paired proportions (Agresti & Min 2005, doi:10.1002/sim.1781).

    Wald's, with half an image more in each of the four cells.
    """
    z, total = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2), n + 2
    centre = (only_a - only_b) / total
    half = z * math.sqrt(only_a + only_b + 1 - (only_a - only_b) ** 2 / total) / total
    return Interval(max(-1.0, centre - half), min(1.0, centre + half))


def of_pairs(differences: Sequence[float]) -> Difference:
    """Return the mean of at least two paired differences, with Student's t-interval and test."""
    from scipy.stats import t

    mean, half = statistics.fmean(differences), _half_width(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    p = 2 * float(t.sf(abs(mean) / error, len(differences) - 1)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p, len(differences))


def _half_width(values: Sequence[float]) -> float:
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * error


def all_above(differences: Sequence[Difference], missing: Sequence[str]) -> str:
    """Return the word on a claim that every difference is above zero.

    It holds if every one is shown to be, and none is missing. One that is shown to be below is enough to refute it;
    of several tests each then has its share of the error.
    """
    if not differences:
        return UNKNOWN
    if any(one.shown and one.mean < 0 and one.p < ALPHA / len(differences) for one in differences):
        return FAILS
    return HOLDS if not missing and all(one.shown and one.mean > 0 for one in differences) else OPEN


def as_good(one: Difference | None, margin: float) -> str:
    """Return the word on a claim that no more than `margin` (a fraction) is lost."""
    if one is None:
        return UNKNOWN
    if one.low > -margin:
        return HOLDS
    return FAILS if one.shown and one.mean < 0 else OPEN


def robust(left: Estimate | None, over_bp: Difference | None, chance: float) -> str:
    """Return the word on a claim of robustness.

    It holds if more than chance is left, and shown to be more than under bp. It does not hold if less than chance is
    left, or shown to be less than under bp.
    """
    if left is None:
        return UNKNOWN
    if left.high < chance or (over_bp is not None and over_bp.shown and over_bp.mean < 0):
        return FAILS
    above = over_bp is not None and over_bp.shown and over_bp.mean > 0
    return HOLDS if above and left.low > chance else OPEN
