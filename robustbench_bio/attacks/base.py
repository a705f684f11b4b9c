"""What an attack is: a proposal of perturbed inputs, which the judge checks."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self, get_args, get_type_hints

from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import Registry, unknown
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat


class Proposal(NamedTuple):
    """What an attack found.

    Attributes:
        x_adv: [n, C, H, W] inside the threat model; where nothing was found, the attack's last try.
        queries: int64 [n], forward passes spent on each example (a gradient costs one).
        steps: int64 [n], update steps made for each example.
    """

    x_adv: Tensor
    queries: Tensor
    steps: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack with its parameters; a subclass is a frozen dataclass whose defaults are the paper's.

    Class attributes:
        norms: the threat models it serves.
        needs: parameters whose default is None and which the caller must set.
        white_box: whether it follows a gradient of the attacked network.
    """

    norms: ClassVar[frozenset[Norm]]
    needs: ClassVar[tuple[str, ...]] = ()
    white_box: ClassVar[bool] = True

    @abstractmethod
    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        """Propose a perturbation for every example; all arrive correctly classified.

        Args:
            model: what may be asked of the network.
            x: [n, C, H, W] in the threat's bounds.
            y: int64 [n], true labels.
            threat: what is allowed.
            rng: one stream per example; the only source of randomness.
        """

    def with_networks(self, load: Callable[[str, str], Any]) -> Self:
        """Return the attack with the networks that it names; `load` takes (id or path of a card, data set)."""
        del load
        return self

    @property
    def params(self) -> dict[str, Any]:
        """Everything that decides what the attack does, for the record."""
        return dataclasses.asdict(self)

    def brief(self) -> Self:
        """Return the same attack with a budget just large enough to show what it does at eps = 0."""
        small = {"steps", "restarts", "queries", "population", "generations"}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: min(v, 2) for k, v in values.items() if k in small})


ATTACKS: Registry[type[Attack]] = Registry("attack", "robustbench_bio.attacks")


def make(name: str, norm: Norm, params: dict[str, Any]) -> Attack:
    """Return the attack `name` with some parameters set.

    Raises:
        UserError: unknown attack or parameter, a value of the wrong kind or out of range, a value that is needed
            and missing, or a norm that the attack does not serve.
    """
    cls = ATTACKS.get(name)
    if norm not in cls.norms:
        raise UserError(f"attack {name} serves {', '.join(sorted(cls.norms))}, got norm {norm!r}")
    fields = [field.name for field in dataclasses.fields(cls)]
    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    for key, value in params.items():
        if key not in fields:
            raise UserError(unknown(f"parameter of {name}", key, fields))
        allowed = get_args(hints[key]) or (hints[key],)
        if float in allowed and isinstance(value, int) and not isinstance(value, bool):
            given[key] = float(value)
            continue
        if value not in allowed and type(value) not in allowed:
            raise UserError(f"expected {key} of {name} to be {_kinds(allowed)}, got {value!r}")
        given[key] = value
    for key in cls.needs:
        if given.get(key) is None:
            raise UserError(f"expected a value for {key} of {name}, got none: add --set {key}=…")
    return cls(**given)


def _kinds(allowed: tuple[Any, ...]) -> str:
    return " or ".join(getattr(kind, "__name__", repr(kind)) for kind in allowed)


def at_least(**bounds: tuple[float | None, float]) -> None:
    """Check parameters: name=(value, smallest); None passes. Raises `UserError` for the first that is smaller."""
    for name, (value, smallest) in bounds.items():
        if value is not None and not value >= smallest:
            raise UserError(f"expected {name} >= {smallest:g}, got {value:g}")
