"""AutoAttack: four attacks that fail in different ways, one after the other."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Attempts, Proposal
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat


@final
@ATTACKS.register("autoattack")
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """The standard ensemble of AutoAttack, worst case per example (Croce & Hein 2020, arXiv:2003.01690, sec. 6).

    apgd-ce, apgd-t, fab-t and square in this order and with the published settings (for l1 five restarts of
    apgd-ce and five targets of apgd-t: Croce & Hein 2021, arXiv:2103.01208), each for the examples that are
    still robust. A member that does not serve the norm is left out with a notice. Networks of fewer than ten classes
    are attacked too: see the members. Queries and steps are sums over the members.

    Args:
        steps: of the gradient attacks.
        queries: of square.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})

    steps: int = 100
    queries: int = 5000

    def __post_init__(self) -> None:
        at_least(steps=(self.steps, 1), queries=(self.queries, 1))

    def _members(self, model: WhiteBoxModel, norm: Norm) -> list[tuple[str, Attack]]:
        sparse = norm == "l1"
        settings: dict[str, dict[str, Any]] = {
            "apgd-ce": {"steps": self.steps, "restarts": 5 if sparse else 1},
            "apgd-t": {"steps": self.steps, "targets": 5 if sparse else 9},
            "fab-t": {"steps": self.steps, "targets": 9},
            "square": {"queries": self.queries},
        }
        members = []
        for name, params in settings.items():
            cls = ATTACKS.get(name)
            if norm in cls.norms:
                members.append((name, cls(**params)))
            else:
                model.notice(f"autoattack without {name}, which does not serve {norm}")
        return members

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        members = self._members(model, threat.norm)
        attempts = Attempts(model, x, y, len(members))
        for number, rows in attempts:
            name, member = members[number]
            attempts.add(member.perturb(model, x[rows], y[rows], threat, rng.take(rows).child(name)))
        return attempts.best
