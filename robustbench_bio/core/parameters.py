"""Parameters that a user gives by name, checked against the annotations and the bounds of a frozen dataclass."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown


def checked(cls: type, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as the fields of a dataclass want them, whole numbers as floats where these are meant.

    The dataclass's annotations are plain types, unions of them, and `Literal`; `name` is that of the class, for
    messages.

    Raises:
        UserError: no such field, a value of the wrong kind, or NaN.
    """
    fields, hints = [field.name for field in dataclasses.fields(cls)], get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in params.items():
        if key not in fields:
            raise UserError(unknown(f"parameter of {name}", key, fields))
        allowed = get_args(hints[key]) or (hints[key],)
        values[key] = float(value) if float in allowed and type(value) is int else value
        if values[key] not in allowed and type(values[key]) not in allowed:
            kinds = " or ".join(getattr(kind, "__name__", repr(kind)) for kind in allowed)
            raise UserError(f"expected {key} of {name} to be {kinds}, got {value!r}")
        # Every comparison with NaN is false: a class that refuses `value < smallest` would let it through.
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"expected {key} of {name} to be a number, got nan")
    return values


def at_least(**bounds: tuple[float | None, float]) -> None:
    """Check parameters: name=(value, smallest); None passes. Raises `UserError` for the first below, or that is NaN."""
    for name, (value, smallest) in bounds.items():
        if value is not None and not value >= smallest:
            raise UserError(f"expected {name} >= {smallest:g}, got {value:g}")
