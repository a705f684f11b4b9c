import math

import pytest
from scipy.stats import binom, binomtest, norm

from robustbench_bio.core.stats import Interval, wilson
from robustbench_bio.evaluation.worst_case import worst_cases
from robustbench_bio.records.result import EvalSpec, Outcomes, Provenance, Result
from robustbench_bio.records.threat import Threat

HASH = "0" * 64


def closed_form(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Solve (p̂ − p)² = z²·p(1 − p)/n for p."""
    z = norm.ppf(0.5 + confidence / 2)
    a, b, c = 1 + z * z / n, -(2 * successes / n + z * z / n), (successes / n) ** 2
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 7), (50, 100), (4999, 10_000)])
def test_wilson_solves_its_equation(successes: int, n: int, confidence: float) -> None:
    low, high = wilson(successes, n, confidence)
    assert 0 <= low <= high <= 1
    assert (low, high) == pytest.approx(closed_form(successes, n, confidence), abs=1e-9)
    of_scipy = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((of_scipy.low, of_scipy.high), abs=1e-14)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5.1e-5)


def test_nothing_known_is_the_whole_interval() -> None:
    assert wilson(0, 0) == Interval(0.0, 1.0)


def test_more_successes_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="expected successes from 0 to n = 2, got 3"):
        wilson(3, 2)


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    n, covered = 60, []
    intervals = [wilson(k, n) for k in range(n + 1)]
    for p in (k / 101 for k in range(5, 97)):
        hits = [k for k, interval in enumerate(intervals) if interval.low <= p <= interval.high]
        covered.append(binom.pmf(hits, n, p).sum())
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.9


def result(robust: list[int], *, eps: float = 0.1, norm: str = "linf", weights: str = HASH, data: str = HASH) -> Result:
    """Return a result whose examples, all right from the start, stand where `robust` is 1."""
    n = len(robust)
    spec = EvalSpec.model_validate(
        {
            "model": "m",
            "network_sha256": weights,
            "dataset": "d",
            "split": "test",
            "n": n,
            "data_sha256": data,
            "attack": "pgd",
            "params": {},
            "threat": {"norm": norm, "eps": eps},
            "gradient": "exact",
            "precision": "float32",
            "seed": 0,
        }
    )
    columns = {"id": list(range(n)), "label": [1] * n, "clean_prediction": [1] * n, "adversarial_prediction": robust}
    zeros = {"distance": [0.0] * n, "queries": [0] * n, "steps": [0] * n}
    where = Provenance(seconds=0, device="cpu", created="now", packages={})
    return Result(spec=spec, outcomes_record=Outcomes.model_validate(columns | zeros), provenance=where)


def test_the_worst_case_stands_against_everything_at_its_radius() -> None:
    found = worst_cases(
        [result([1, 1, 0, 1]), result([1, 0, 1, 1]), result([0, 1, 1, 0], eps=0.2), result([1, 1, 1, 0], norm="l2")]
    )
    assert found == {
        Threat("linf", 0.1): [True, False, False, True],
        Threat("linf", 0.2): [False, True, True, False],
        Threat("l2", 0.1): [True, True, True, False],
    }


def test_a_wrong_example_does_not_stand_in_the_worst_case() -> None:
    one = result([1, 1])
    wrong = one.outcomes_record.model_copy(update={"clean_prediction": [1, 7]})
    assert worst_cases([one.model_copy(update={"outcomes_record": wrong})]) == {Threat("linf", 0.1): [True, False]}


def test_nothing_measured_has_no_worst_case() -> None:
    assert worst_cases([]) == {}


@pytest.mark.parametrize("other", [{"weights": "1" * 64}, {"data": "1" * 64}])
def test_a_worst_case_is_of_one_network_on_the_same_examples(other: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="one network on the same examples"):
        worst_cases([result([1, 1]), result([1, 1], **other)])
