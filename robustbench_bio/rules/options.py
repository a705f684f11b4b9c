"""What a card sets under `[rule_options]`: flat names, each of which belongs to the rules that declare it."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.records.base import first_error
from robustbench_bio.records.card import ModelCard


@dataclass(frozen=True)
class RuleOptions:
    """What all rules share; a rule with options of its own extends it, and says so in `takes`.

    Names start with the rule's where nothing else tells whose they are, as cards list those of all rules together.

    Args:
        init: law of the feedback matrices, and of the weights when they are drawn with them: "xavier"
            U(±√(6/(fan_in+fan_out))), "kaiming" U(±1/√fan_in) (PyTorch's own default for conv and linear).
    """

    init: Literal["xavier", "kaiming"] = "xavier"


Own = TypeVar("Own", bound=RuleOptions)


def own_options(kind: type[Own], values: Mapping[str, object]) -> Own:
    """Return those of the checked values that a rule takes, defaults for the rest."""
    own: dict[str, Any] = {name: values[name] for name in _names(kind) if name in values}
    return kind(**own)


def read_options(values: Mapping[str, object], kinds: list[type[RuleOptions]]) -> dict[str, object]:
    """Return the values as the rules' own types hold them, such as a whole number that stands for a float.

    `kinds` are the options of all rules: a card may set what none of its rules asks for. Raises `UserError` for an
    option that no rule has, or a value that it does not take.
    """
    known = [name for kind in kinds for name in _names(kind)]
    for name in values:
        if name not in known:
            raise UserError(unknown("field of rule_options", name, dict.fromkeys(known)))
    read: dict[str, object] = {}
    for kind in kinds:
        own = {name: values[name] for name in _names(kind) if name in values}
        try:
            checked = TypeAdapter(kind).validate_json(json.dumps(own), strict=True)
        except ValidationError as error:
            raise UserError(f"rule_options: {first_error(error, ModelCard)}") from None
        read |= {name: getattr(checked, name) for name in own}
    return read


def _names(kind: type[RuleOptions]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
