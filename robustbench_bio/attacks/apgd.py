"""Auto-PGD with its losses: Croce & Hein 2020, for l1 Croce & Hein 2021."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel
from robustbench_bio.attacks.apgd_run import Climb, belong, climb
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal, at_least
from robustbench_bio.attacks.losses import cross_entropy, dlr_if_possible, likely_targets, targeted_dlr_if_possible
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat

#: Values of one example's walks that are walked at once: all nine of AutoAttack's for images of 32 × 32 pixels.
TOGETHER = 9 * 3 * 32 * 32

#: Radii of the l1 walk, in units of eps, and shares of its steps (Croce & Hein 2021, sec. 3.3).
SHRINKING = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


def border_start(threat: Threat, x: Tensor, rng: ExampleRng, radius: Tensor | None = None) -> Tensor:
    """Return a random point of the ball's border for linf and l2, the projection of a normal draw for l1.

    This is where the released code starts, rather than anywhere in the ball; all is cut to the box.

    Args:
        threat: norm, radius and box.
        x: [n, C, H, W] centres.
        rng: one stream per example.
        radius: [n], in place of eps; scales the draw to this length whatever the norm.
    """
    draw = rng.uniform(x.shape[1:], x) * 2 - 1 if threat.norm == "linf" else rng.normal(x.shape[1:], x)
    if threat.norm == "l1" and radius is None:
        return threat.project(x, x + draw)
    length = x.new_full((len(x),), threat.eps) if radius is None else radius
    scale = length / threat.size(draw).clamp_min(1e-12)
    return (x + scale.view(-1, 1, 1, 1) * draw).clamp(*threat.bounds)


def together(goals: int, x: Tensor) -> list[list[int]]:
    """Return which of several goals are walked to at once: the likeliest alone, the rest in groups that fit.

    Most examples that fall do so on the way to the first. What is left takes as many passes to one goal as to a group,
    and a processor is faster with more rows; how many, the images' size decides and never the batch, so that an
    example's queries do not depend on its neighbours.
    """
    size = max(1, TOGETHER // x[0].numel())
    rest = list(range(1, goals))
    return [[0], *(rest[i : i + size] for i in range(0, len(rest), size))] if goals else []


def first(fooled: Tensor) -> Tensor:
    """Return the number of the first walk that fooled the network, of the last where none did: bool [k, n] → [n]."""
    last = len(fooled) - 1
    numbers = torch.arange(len(fooled), device=fooled.device)[:, None]
    return torch.where(fooled, numbers, last).amin(0)


class _Goal(NamedTuple):
    loss: AttackLoss
    against: Tensor


@dataclass(frozen=True, kw_only=True)
class _AutoPGD(Attack):
    """What the members of the family share: walks for each goal and restart, while the example stands."""

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})

    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    early_exit: bool = True

    def __post_init__(self) -> None:
        at_least(steps=(self.steps, 1), restarts=(self.restarts, 1), rho=(self.rho, 0))

    @abstractmethod
    def _goals(self, model: WhiteBoxModel, x: Tensor, y: Tensor) -> tuple[list[_Goal], int]:
        """Return what to climb, one after the other, and the queries spent per example to find out."""

    @final
    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        goals, spent = self._goals(model, x, y)
        best = Proposal(x.clone(), torch.full_like(y, spent), torch.zeros_like(y))
        alive = torch.arange(len(y), device=y.device)
        one_by_one = model.random or not self.early_exit
        for numbers in [[i] for i in range(len(goals))] if one_by_one else together(len(goals), x):
            for restart in range(self.restarts):
                if len(alive) == 0:
                    return best
                here, label, walks = x[alive], y[alive], len(numbers)
                ball = Threat("l1", SHRINKING[0][0] * threat.eps, threat.bounds) if threat.norm == "l1" else threat
                draws = [rng.take(alive).child(f"{number}/{restart}") for number in numbers]
                found = self._walk(
                    model, here.repeat(walks, 1, 1, 1), label.repeat(walks), threat,
                    torch.cat([border_start(ball, here, draw) for draw in draws]),
                    _Goal(goals[0].loss, torch.cat([goals[number].against[alive] for number in numbers])),
                    torch.arange(len(alive), device=y.device).repeat(walks),
                )  # fmt: skip
                fooled = found.fooled.view(walks, -1)
                row = first(fooled) * len(alive) + torch.arange(len(alive), device=y.device)
                best.x_adv[alive] = found.x_adv[row]
                best.queries[alive] += found.queries.view(walks, -1).sum(0)
                best.steps[alive] += found.steps.view(walks, -1).sum(0)
                alive = alive[~fooled.any(0)]
        return best

    def _walk(
        self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, start: Tensor, goal: _Goal, owner: Tensor
    ) -> Climb:
        if threat.norm == "l1":
            return self._shrinking(model, x, y, threat, start, goal, owner)
        return climb(
            model, x, y, threat, start, steps=self.steps, rho=self.rho, early_exit=self.early_exit, owner=owner,
            **goal._asdict(),
        )  # fmt: skip

    def _shrinking(
        self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, start: Tensor, goal: _Goal, owner: Tensor
    ) -> Climb:
        """Walk in balls that shrink to the threat's, each from the best point of the one before (2021, sec. 3.3)."""
        balls = [Threat("l1", factor * threat.eps, threat.bounds) for factor, _ in SHRINKING]
        found = Climb(start, torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y), torch.zeros_like(y))
        alive, left = torch.arange(len(y), device=y.device), self.steps
        for i, ((_, share), ball) in enumerate(zip(SHRINKING, balls, strict=True)):
            last = i + 1 == len(balls)
            steps = left if last else min(left, math.ceil(share * self.steps))
            left -= steps
            start = ball.project(x[alive], found.x_adv[alive])
            part = climb(
                model, x[alive], y[alive], threat, start, steps=steps, loss=goal.loss, against=goal.against[alive],
                early_exit=self.early_exit, ball=None if last else ball, fresh=False, owner=owner[alive],
            )  # fmt: skip
            found.x_adv[alive] = part.x_adv
            found.fooled[alive] = part.fooled
            found.queries[alive] += part.queries
            found.steps[alive] += part.steps
            alive = alive[~belong(owner[alive], owner[alive[part.fooled]])]
            if len(alive) == 0:
                break
        return found


@final
@ATTACKS.register("apgd-ce")
@dataclass(frozen=True, kw_only=True)
class APGDCE(_AutoPGD):
    """Auto-PGD on the cross-entropy (Croce & Hein 2020, arXiv:2003.01690, alg. 1; l1: 2021, arXiv:2103.01208).

    On purpose different from the released code: an example is left alone once a point that fools the network is
    found; and the length of a tiny gradient is not added to 1e-12, which would shorten the steps in l2.

    Args:
        steps: per walk.
        restarts: walks, each only for the examples that still stand.
        rho: the step size is halved where no more than this share of the steps raised the loss; not for l1.
        early_exit: False walks all steps and proposes the point of highest loss of the last walk.
    """

    def _goals(self, model: WhiteBoxModel, x: Tensor, y: Tensor) -> tuple[list[_Goal], int]:
        del model, x
        return [_Goal(cross_entropy, y)], 0


@final
@ATTACKS.register("apgd-dlr")
@dataclass(frozen=True, kw_only=True)
class APGDDLR(_AutoPGD):
    """Auto-PGD on the difference of logits ratio; on the margin, with a notice, where there are two classes.

    Args:
        steps: per walk.
        restarts: walks, each only for the examples that still stand.
        rho: the step size is halved where no more than this share of the steps raised the loss; not for l1.
        early_exit: False walks all steps and proposes the point of highest loss of the last walk.
    """

    def _goals(self, model: WhiteBoxModel, x: Tensor, y: Tensor) -> tuple[list[_Goal], int]:
        del x
        return [_Goal(dlr_if_possible(model), y)], 0


@final
@ATTACKS.register("apgd-t")
@dataclass(frozen=True, kw_only=True)
class APGDTargeted(_AutoPGD):
    """Auto-PGD on the targeted difference of logits ratio, towards one likely class after the other.

    With fewer than four classes it climbs the targeted margin, with fewer than targets + 1 classes it takes all
    that there are; both leave a notice. The released code dies there.

    Args:
        steps: per walk.
        restarts: walks towards each target, each only for the examples that still stand.
        rho: the step size is halved where no more than this share of the steps raised the loss; not for l1.
        early_exit: False walks all steps and proposes the point of highest loss of the last walk.
        targets: how many of the most likely wrong classes.
    """

    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(targets=(self.targets, 1))

    def _goals(self, model: WhiteBoxModel, x: Tensor, y: Tensor) -> tuple[list[_Goal], int]:
        loss = targeted_dlr_if_possible(model)
        likely = likely_targets(model, x, y, self.targets)
        return [_Goal(loss, torch.stack([y, target], 1)) for target in likely.unbind(1)], 1
