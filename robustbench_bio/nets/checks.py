"""Checks of the values that a card sets under `[net]`."""

import math
from collections.abc import Iterable, Sequence

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown


def whole(name: str, value: object, low: int = 1) -> int:
    """Return `value` if it is a whole number of at least `low`, or raise `UserError`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UserError(f"expected {name} to be a whole number >= {low}, got {value!r}: set {name} to {low} or more")
    return value


def wholes(name: str, values: Iterable[object], at_least: int = 0) -> tuple[int, ...]:
    """Return `values` as a tuple if all are whole numbers ≥ 1 and there are enough, or raise `UserError`."""
    if not isinstance(values, list | tuple) or len(values) < at_least:
        raise UserError(
            f"expected {name} to be a list of {at_least} or more widths, got {values!r}: write it as [16, 32]"
        )
    return tuple(whole(f"{name}[{i}]", value) for i, value in enumerate(values))


def real(name: str, value: object, low: float, high: float, *, high_is_legal: bool = True) -> float:
    """Return `value` as a float if it lies in [low, high], or in [low, high), or raise `UserError`."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if low <= number < high or (number == high and high_is_legal):
        return number
    interval = f"[{low:g}, {high:g}{']' if high_is_legal else ')'}"
    raise UserError(f"expected {name} to be in {interval}, got {value!r}: choose a number in that range")


def choice(name: str, value: object, options: Iterable[str]) -> None:
    """Raise `UserError` unless `value` is one of `options`."""
    if value not in (known := list(options)):
        hint = unknown(name, str(value), known).rpartition(": ")[2]
        raise UserError(f"expected {name} to be {' or '.join(known)}, got {value!r}: {hint}")


def switch(name: str, value: object) -> bool:
    """Return `value` if it is true or false, or raise `UserError`."""
    if not isinstance(value, bool):
        raise UserError(f"expected {name} to be true or false, got {value!r}: write it without quotes")
    return value


def odd(name: str, value: int) -> int:
    """Return `value` if it is an odd number >= 1, or raise `UserError`."""
    if whole(name, value) % 2 == 0:
        raise UserError(f"expected an odd {name}, got {value}: set {name} to {value + 1}")
    return value


def pooled(size: Sequence[int], blocks: int) -> tuple[int, int]:
    """Return the sides of a map (H, W) after so many 2×2 pools, or raise `UserError` where nothing is left."""
    height, width = size
    if min(size) >> blocks == 0:
        most = min(size).bit_length() - 1
        raise UserError(
            f"expected at most {most} widths for images of {height}x{width}, got {blocks}: "
            "each block halves the image, leave some out"
        )
    return height >> blocks, width >> blocks


def halved(size: int, times: int) -> int:
    """Return ⌈size / 2^times⌉: the side of a map after so many layers of stride 2."""
    return -(-size >> times)
