"""Parameters that users give by name."""

import dataclasses
import math
from typing import Any, Literal

import pytest

from robustbench_bio.attacks.base import ATTACKS, make
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.parameters import at_least, checked
from robustbench_bio.search import base as search


@dataclasses.dataclass(frozen=True)
class Options:
    steps: int = 3
    size: float | None = None
    order: Literal["first", "second"] = "first"
    exact: bool = True


def test_values_arrive_as_the_fields_want_them() -> None:
    given = {"steps": 2, "size": 1, "order": "second", "exact": False}
    assert checked(Options, "it", given) == given
    assert type(checked(Options, "it", given)["size"]) is float
    assert checked(Options, "it", {"size": None}) == {"size": None}
    assert checked(Options, "it", {}) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": 2}, "unknown parameter of it 'step': did you mean steps"),
        ({"steps": 2.0}, "expected steps of it to be int, got 2.0"),
        ({"steps": True}, "expected steps of it to be int, got True"),
        ({"size": True}, "expected size of it to be float or NoneType, got True"),
        ({"size": "1"}, "expected size of it to be float or NoneType, got '1'"),
        ({"size": math.nan}, "expected size of it to be a number, got nan"),
        ({"order": "third"}, "expected order of it to be 'first' or 'second', got 'third'"),
        ({"exact": 1}, "expected exact of it to be bool, got 1"),
    ],
)
def test_other_values_are_refused_with_what_was_expected(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(Options, "it", given)
    assert message in str(caught.value)


def test_bounds_refuse_what_is_smaller_and_what_is_no_number() -> None:
    at_least(a=(1, 1), b=(None, 3), c=(0.5, 0))
    for value, shown in ((0.5, "0.5"), (math.nan, "nan"), (-math.inf, "-inf")):
        with pytest.raises(UserError, match=f"expected b >= 1, got {shown}"):
            at_least(a=(1, 1), b=(value, 1))


def numbers(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if isinstance(field.default, float)]


def test_no_attack_and_no_engine_takes_nan() -> None:
    tried = 0
    for name, attack in ATTACKS.items():
        for key in numbers(attack):
            tried += 1
            with pytest.raises(UserError, match="nan"):
                make(name, min(attack.norms), {key: math.nan})
    for name, engine in search.ENGINES.items():
        for key in numbers(engine):
            tried += 1
            with pytest.raises(UserError, match="nan"):
                search.make_engine(name, {key: math.nan})
    assert tried > 15
