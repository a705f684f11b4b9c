"""A pytest fixture that fails a test if a network became less robust than its entry."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from robustbench_bio.leaderboard.regress import Comparison

    Check = Callable[..., Comparison]


@pytest.fixture
def biorobust_regression() -> "Check":
    """Return a function that measures a network again and compares it with its entry, example by example.

    Called as `biorobust_regression(model, baseline, n_examples=50, attacks="pgd")`; see `check`.
    """
    return check


def check(
    model: "str | nn.Module",
    baseline: Path | str,
    *,
    attacks: str = "*",
    n_examples: int | None = None,
    alpha: float = 0.05,
    min_drop: float = 1.0,
) -> "Comparison":
    """Fail the running test if a network is less robust, or less accurate, than in the baseline.

    Args:
        model: any module in eval mode that takes what the entry's network took; or an id of the zoo, or the path of a
            card that ends in .toml.
        baseline: an entry's .json; or a folder of entries, of which the one of the model's id is taken.
        attacks: comma-separated patterns of attacks, of those at the entry's radius.
        n_examples: first so many examples, all by default.
        alpha: chance of a false alarm over both tests, clean and worst case.
        min_drop: smallest drop that counts, in points.

    Raises:
        UserError: no such entry or model, or one that cannot be compared.
    """
    __tracebackhide__ = True
    from robustbench_bio.core.errors import UserError
    from robustbench_bio.leaderboard.regress import Limits, Part, judged, paired
    from robustbench_bio.zoo import catalog
    from robustbench_bio.zoo import loading as zoo

    path = Path(baseline)
    if path.is_dir():
        if not isinstance(model, str):
            raise UserError(f"expected an entry's file for a module without an id, got the folder {path}")
        path /= f"{Path(model).stem if model.endswith('.toml') else model}.json"
    entry = catalog.entry(path)
    net: Any = zoo.load_model(model, entry.measurements[0].spec.dataset) if isinstance(model, str) else model
    pairs = paired(entry, net, Part(attacks=attacks, n_examples=n_examples))
    comparison = judged(pairs, Limits(alpha=alpha, min_drop=min_drop))
    if comparison.regressions:
        pytest.fail("\n".join(change.line() for change in comparison.regressions), pytrace=False)
    return comparison
