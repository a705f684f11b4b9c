"""Projected gradient descent, and the loop that it shares with its relatives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal, at_least
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat


def ascend(
    model: WhiteBoxModel,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    start: Tensor,
    *,
    steps: int,
    step_size: float,
    loss: AttackLoss,
    against: Tensor | None = None,
    early_exit: bool = True,
    direction: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Proposal:
    """Walk uphill from `start`: x_t+1 = project(x_t + step_size · steepest(∇loss(logits, against))).

    An example leaves the walk at the first point that the network misclassifies, and keeps that point: the
    published loop goes on and may lose it again, so this one is never weaker.

    Args:
        model: what may be asked of the network.
        x: [n, C, H, W] centres of the balls.
        y: int64 [n], true labels.
        threat: the ball.
        start: [n, C, H, W] inside it.
        steps: at most this many updates.
        step_size: in input units.
        loss: what to increase, a function of the logits and of the rows of `against`.
        against: one row per example for the loss; the labels by default.
        early_exit: False walks all steps with all examples and returns the last points, as for random networks always.
        direction: from the gradients [m, C, H, W] and the rows of `x` [m] that they belong to, the directions of
            the step; by default that of steepest ascent.
    """
    against = y if against is None else against
    early_exit = early_exit and not model.random
    x_adv = start.clone()
    queries = torch.zeros_like(y)
    made = torch.zeros_like(y)
    alive = torch.arange(len(y), device=y.device)
    for step in range(steps):
        # Most examples fall early: a forward pass that spares them the backward pass pays for itself. Which steps
        # have one is fixed, so that the queries of an example do not depend on the batch it sits in.
        if early_exit and 0 < step <= 3:
            fallen = model.fooled(x_adv[alive], y[alive])
            queries[alive] += 1
            alive = alive[~fallen]
            if len(alive) == 0:
                break
        point, label = x_adv[alive], y[alive]
        gradient, logits = model.gradient(point, against[alive], loss)
        queries[alive] += 1
        if early_exit:
            fallen, asked = model.confirm(point, label, logits)
            queries[alive] += asked
            alive, gradient, point = alive[~fallen], gradient[~fallen], point[~fallen]
            if len(alive) == 0:
                break
        move = threat.steepest(gradient) if direction is None else direction(gradient, alive)
        x_adv[alive] = threat.project(x[alive], point + step_size * move)
        made[alive] += 1
    return Proposal(x_adv, queries, made)


@final
@ATTACKS.register("pgd")
@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent on the cross-entropy (Madry et al. 2018, arXiv:1706.06083).

    On purpose different from the common loop: an example is left alone once a point that fools the network
    is found, so more steps or restarts never raise the accuracy.

    Args:
        steps: gradient steps per restart.
        step_size: in input units; None is 2.5·eps/steps, as in the paper's l2 experiments.
        restarts: starts of the whole walk, each only for the examples that still stand.
        random_start: begin at a random point of the ball; False begins at x and needs a single restart.
        early_exit: False is the common loop, which returns the last point of the last restart.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    early_exit: bool = True

    def __post_init__(self) -> None:
        at_least(steps=(self.steps, 1), restarts=(self.restarts, 1), step_size=(self.step_size, 0))

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        step_size = 2.5 * threat.eps / self.steps if self.step_size is None else self.step_size
        best = Proposal(x.clone(), torch.zeros_like(y), torch.zeros_like(y))
        alive = torch.arange(len(y), device=y.device)
        for restart in range(self.restarts):
            here, label = x[alive], y[alive]
            start = threat.random_start(here, rng.take(alive).child(str(restart))) if self.random_start else here
            tried = ascend(
                model,
                here,
                label,
                threat,
                start,
                steps=self.steps,
                step_size=step_size,
                loss=cross_entropy,
                early_exit=self.early_exit,
            )
            best.x_adv[alive] = tried.x_adv
            best.queries[alive] += tried.queries
            best.steps[alive] += tried.steps
            if restart + 1 < self.restarts:
                stands = ~model.fooled(tried.x_adv, label)
                best.queries[alive] += 1
                alive = alive[stands]
            if len(alive) == 0:
                break
        return best
