"""Projected gradient descent, and the loop that it shares with its relatives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Attempts, Proposal
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.core.parameters import at_least
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
    loss: AttackLoss = cross_entropy,
    against: Tensor | None = None,
    early_exit: bool = True,
    direction: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Proposal:
    """Iterate from `start`: x_t+1 = project(x_t + step_size · steepest(∇loss(logits, against))).

    An example is left alone at the first point that the network misclassifies, and keeps that point: the
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
        early_exit: False makes all steps with all examples and returns the last points.
        direction: from the gradients [m, C, H, W] and the rows of `x` [m] that they belong to, the directions of
            the step; by default that of steepest ascent.
    """
    against = y if against is None else against
    x_adv, queries, updates = start.clone(), torch.zeros_like(y), torch.zeros_like(y)
    active = torch.arange(len(y), device=y.device)
    for step in range(steps):
        # Most examples are fooled early: a forward pass that spares them the backward pass pays for itself. Which
        # steps have one is fixed, so that the queries of an example do not depend on the batch it sits in.
        if early_exit and 0 < step <= 3:
            fooled = model.fooled(x_adv[active], y[active])
            queries[active] += model.answer_cost
            active = active[~fooled]
            if len(active) == 0:
                break
        point = x_adv[active]
        gradient, logits = model.gradient(point, against[active], loss)
        queries[active] += model.gradient_cost
        if early_exit:
            fooled, asked = model.confirm(point, y[active], logits)
            queries[active] += asked * model.answer_cost
            active, gradient, point = active[~fooled], gradient[~fooled], point[~fooled]
            if len(active) == 0:
                break
        move = threat.steepest(gradient) if direction is None else direction(gradient, active)
        x_adv[active] = threat.project(x[active], point + step_size * move)
        updates[active] += 1
    # Nobody has asked about the last points, and a last query for all would be wasted on a single run.
    return Proposal(x_adv, queries, updates)


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
        restarts: starts of the whole run, each only for the examples that are still robust.
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

    def step_at(self, eps: float) -> float:
        """Return the step size at a radius, both in input units."""
        return 2.5 * eps / self.steps if self.step_size is None else self.step_size

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        attempts = Attempts(model, x, y, self.restarts)
        for restart, rows in attempts:
            center, label = x[rows], y[rows]
            start = center
            if self.random_start:
                start = threat.random_start(center, rng.take(rows).child(str(restart)))
            run = ascend(
                model,
                center,
                label,
                threat,
                start,
                steps=self.steps,
                step_size=self.step_at(threat.eps),
                early_exit=self.early_exit,
            )
            attempts.add(run)
        return attempts.best
