"""Swift: what AutoAttack finds, for a small part of its price."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel, margin
from robustbench_bio.attacks.apgd import apgd_at_once
from robustbench_bio.attacks.base import ATTACKS, Attack, Attempts, Proposal
from robustbench_bio.attacks.losses import (
    CANDIDATES,
    label_target_pairs,
    nearest_targets,
    probability_margin,
    targeted_margin,
)
from robustbench_bio.attacks.runs import target_groups
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat

#: What the first two runs increase. The margin of probabilities finds the most, but is flat where a network is sure;
#: the margin of logits is not, and comes first, so that a gradient of zero means one.
FIRST: dict[str, AttackLoss] = {"logits": margin, "probabilities": probability_margin}


class _Round(NamedTuple):
    """Runs made side by side: what they increase, what it is held against [k, n, ...], their steps and streams."""

    loss: AttackLoss
    against: Tensor
    steps: int
    tags: list[str]


@final
@ATTACKS.register("swift")
@dataclass(frozen=True, kw_only=True)
class Swift(Attack):
    """Short runs of Auto-PGD, first on all examples, then on those that have come near the boundary.

    All get a run on the margin of the logits and one on that of the probabilities (PMA, arXiv:2411.15210). Who keeps
    more than a share of the clean margin at the end of both is left alone as hopeless. The others get runs on the
    targeted margin, towards the classes with the nearest linearised boundaries (MALT, arXiv:2407.02240), and longer
    ones on the margin of the probabilities. A run is that of apgd-ce (Croce & Hein 2020, arXiv:2003.01690; l1:
    2021, arXiv:2103.01208). The order, the numbers and `hopeless` are ours, chosen by what they found on five networks
    of the zoo at 16/255: of the examples that eight longer runs still fooled there, none had kept more than 0.3.

    Args:
        steps: per run; the last ones make twice as many.
        targets: classes to aim at.
        restarts: longer runs at last.
        hopeless: share of the clean margin above which an example is given up; a large one gives up none.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})

    steps: int = 20
    targets: int = 4
    restarts: int = 4
    hopeless: float = 0.4

    def __post_init__(self) -> None:
        at_least(
            steps=(self.steps, 1), targets=(self.targets, 1), restarts=(self.restarts, 0), hopeless=(self.hopeless, 0)
        )

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        attempts = Attempts(model, x, y, len(FIRST) + self.targets + self.restarts)
        rounds = [_Round(loss, y[None], self.steps, [name]) for name, loss in FIRST.items()]
        closest = torch.full_like(x[:, 0, 0, 0], -torch.inf)
        for number, rows in attempts:
            loss, against, steps, tags = rounds[number]
            draws = [rng.take(rows).child(tag) for tag in tags]
            attempts.add(apgd_at_once(model, x[rows], y[rows], threat, loss, against[:, rows], draws, steps=steps))
            left = attempts.active
            if number < len(FIRST) and len(left):
                closest[left] = closest[left].maximum(model.lead(attempts.best.x_adv[left], y[left])[0])
                attempts.best.queries[left] += model.answer_cost
            if number + 1 == len(FIRST) and len(left):
                rounds += self._further(model, x, y, threat, attempts, closest)
            if number + 1 == len(rounds):
                break
        return attempts.best

    def _further(
        self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, attempts: Attempts, closest: Tensor
    ) -> list[_Round]:
        """Return the rounds for those whose `closest` margin [n] is near 0, and leave the others alone."""
        rows = attempts.active
        logits = model.logits(x[rows])
        attempts.best.queries[rows] += model.answer_cost
        near = closest[rows] >= self.hopeless * margin(logits, y[rows])
        attempts.active = rows = rows[near]
        if len(rows) == 0:
            return []
        nearest = nearest_targets(model, x[rows], logits[near], y[rows], threat, self.targets)
        attempts.best.queries[rows] += min(CANDIDATES, logits.shape[1] - 1) * model.gradient_cost
        pairs = y.new_zeros((nearest.shape[1], len(y), 2))
        pairs[:, rows] = label_target_pairs(y[rows], nearest)
        aimed = [
            _Round(targeted_margin, pairs[group], self.steps, [f"target {k}" for k in group])
            for group in _groups(model, len(pairs), x)
        ]
        longer = [
            _Round(probability_margin, y.expand(len(group), -1), 2 * self.steps, [f"restart {k}" for k in group])
            for group in _groups(model, self.restarts, x)
        ]
        return aimed + longer


def _groups(model: WhiteBoxModel, runs: int, x: Tensor) -> list[list[int]]:
    """Return which runs are made side by side; those of a random network are weighed against each other one by one."""
    return [[k] for k in range(runs)] if model.random else target_groups(runs, x)
