"""What an attack is: a proposal of perturbed inputs, which the judge checks."""

import dataclasses
import hashlib
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.parameters import checked
from robustbench_bio.core.registry import Registry
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import NORMS, Norm, Threat


class Proposal(NamedTuple):
    """What an attack proposes and what it cost.

    Attributes:
        x_adv: [n, C, H, W] inside the threat model; where nothing fooled the network, the attack's last try.
        queries: int64 [n], forward passes spent on each example: one for a gradient or an answer, or as many as they
            average draws (`WhiteBoxModel.gradient_cost`, `answer_cost`).
        steps: int64 [n], update steps made for each example.
        fooled: bool [n], whom x_adv is known to fool, for `Attempts`; None where the attack did not ask. The judge
            believes no attack and does not look at it.
    """

    x_adv: Tensor
    queries: Tensor
    steps: Tensor
    fooled: Tensor | None = None


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

    @classmethod
    def natural_norm(cls) -> Norm:
        """Return the norm that the attack is run in where nobody names one: linf if it serves that."""
        return next(norm for norm in NORMS if norm in cls.norms)

    @property
    def params(self) -> dict[str, Any]:
        """Everything that decides what the attack does, for the record."""
        return dataclasses.asdict(self)

    @property
    def record(self) -> dict[str, Any]:
        """The parameters; of an attack from another package also the hash of its code: an edited one is another."""
        own = type(self).__module__.partition(".")[0] == __name__.partition(".")[0]
        return self.params if own else self.params | {"code_sha256": code_sha256(type(self))}

    def brief(self) -> Self:
        """Return the same attack with a budget just large enough to show what it does at eps = 0."""
        small = {"steps", "restarts", "queries", "population", "generations"}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: min(v, 2) for k, v in values.items() if k in small})


def code_sha256(cls: type) -> str:
    """Return the hash of the module that defines a class; of its methods' code where there is no source to read."""
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):
        code = [getattr(value, "__code__", None) for value in vars(cls).values()]
        source = repr([(one.co_code, one.co_names) for one in code if one is not None])
    return hashlib.sha256(source.encode()).hexdigest()


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
    values = checked(cls, name, params)
    for key in cls.needs:
        if values.get(key) is None:
            raise UserError(f"expected a value for {key} of {name}, got none: add --set {key}=…")
    return cls(**values)


class Attempts:
    """Restarts, targets or attacks made one after the other, each on the examples that withstood those before.

    So no attempt can lose what an earlier one has found, and restarts cost only where they may help. Of a random
    network every attempt's mean answer is asked for, and the proposal with the largest margin is kept. Used as

        attempts = Attempts(model, x, y, restarts)
        for restart, rows in attempts:
            attempts.add(...)  # what is proposed for x[rows]
        return attempts.best

    Args:
        model: asked, for a query, whom an attempt fooled that does not know; not after the last.
        x: [n, C, H, W].
        y: int64 [n], true labels.
        count: attempts at most.

    Attributes:
        best: the last proposal for each example, of a random network the one that its mean answer judges worst; costs
            add up over the attempts.
        active: int64 [m], the rows that the next attempt is for.
    """

    def __init__(self, model: WhiteBoxModel, x: Tensor, y: Tensor, count: int) -> None:
        self.best = Proposal(x.clone(), torch.zeros_like(y), torch.zeros_like(y))
        self._model, self._y, self._left = model, y, count
        self.active = torch.arange(len(y), device=y.device)
        self._margin = torch.full_like(x[:, 0, 0, 0], -torch.inf)
        self._weighs = model.random and count > 1

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each attempt and the rows that it is for, int64 [m]."""
        for number in range(self._left):
            yield number, self.active
            if len(self.active) == 0:
                return

    def add(self, proposal: Proposal) -> None:
        """Keep what an attempt proposes for the rows that it was for, and leave those alone that it fooled."""
        x_adv, queries, steps, fooled = proposal
        active = self.active
        self.best.queries[active] += queries
        self.best.steps[active] += steps
        self._left -= 1
        worst = torch.ones_like(active, dtype=torch.bool)
        if self._weighs:
            margin, fooled = self._model.lead(x_adv, self._y[active])
            worst = margin > self._margin[active]
            self._margin[active[worst]] = margin[worst]
            self.best.queries[active] += self._model.answer_cost
        elif fooled is None and self._left > 0:
            fooled = self._model.fooled(x_adv, self._y[active])
            self.best.queries[active] += self._model.answer_cost
        self.best.x_adv[active[worst]] = x_adv[worst]
        if fooled is not None:
            self.active = active[~fooled]
