"""One run of Auto-PGD: gradient ascent with a step size that each example finds for itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel
from robustbench_bio.attacks.base import Proposal
from robustbench_bio.attacks.runs import Runs, same_example
from robustbench_bio.records.threat import Norm, Threat

#: Share of a new step in the next move; the rest repeats the move before (the paper's alpha).
MOMENTUM = 0.75


def checkpoints(steps: int, norm: Norm) -> dict[int, int]:
    """Return after which steps the step size is reconsidered, and how many steps lie before each since the last.

    The gaps are 0.22, 0.19, 0.16 … of all steps, at least 0.06 (Croce & Hein 2020, sec. 3.1); for l1 all are 0.04.
    """
    # The l1 step size changes by small factors and in both directions, so that it is looked at often.
    gap, shrink, least = (0.04, 0.0, 0.04) if norm == "l1" else (0.22, 0.03, 0.06)
    length, smallest = max(int(gap * steps), 1), max(int(least * steps), 1)
    shorter = max(int(shrink * steps), 1) if shrink else 0
    gaps, step = {}, length
    while step <= steps:
        gaps[step] = length
        length = max(length - shorter, smallest)
        step += length
    return gaps


@dataclass
class _Iterates(ABC):
    """Where the active runs are; every tensor has one row for each of them."""

    ball: Threat
    rho: float
    x: Tensor
    point: Tensor
    gradient: Tensor = field(init=False)
    best: Tensor = field(init=False)
    best_gradient: Tensor = field(init=False)
    best_loss: Tensor = field(init=False)
    step_size: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.gradient = torch.zeros_like(self.point)
        self.best, self.best_gradient = self.point.clone(), self.gradient.clone()
        self.best_loss = self.x.new_full((len(self.x),), -torch.inf)
        self.step_size = torch.full_like(self.best_loss, self.ball.eps)

    def keep(self, active: Tensor) -> None:
        """Keep only the runs that go on: bool [n]."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[active])

    def observe(self, gradient: Tensor, loss: Tensor) -> None:
        """Take note of gradient and loss at the present iterates."""
        self.gradient = gradient
        better = loss > self.best_loss
        self.best[better] = self.point[better]
        self.best_gradient[better] = gradient[better]
        self.best_loss = torch.where(better, loss, self.best_loss)

    def return_to_best(self, rows: Tensor) -> None:
        """Go on from the best point so far; its gradient is known, so that this costs no query."""
        self.point[rows] = self.best[rows]
        self.gradient[rows] = self.best_gradient[rows]

    @abstractmethod
    def step(self) -> None:
        """Move to the next iterate."""

    @abstractmethod
    def adapt_step_size(self, gap: int) -> None:
        """Adapt the step size at a checkpoint, `gap` steps after the last one."""

    def step_along(self, direction: Tensor) -> Tensor:
        """Return the projection of a whole step along a direction [n, C, H, W]."""
        return self.ball.project(self.x, self.point + self.step_size.view(-1, 1, 1, 1) * direction)


@final
@dataclass
class _DenseIterates(_Iterates):
    """Steps with momentum for linf and l2; the step size is halved when the loss stops rising (2020, alg. 1).

    The released code is followed where it departs from the paper: a move after a return to the best point still
    repeats the last one, ρ·gap itself counts as too few rises, and the first of them is a rise above 0.
    """

    before: Tensor = field(init=False)
    loss: Tensor = field(init=False)
    rises: Tensor = field(init=False)
    checked_loss: Tensor = field(init=False)
    halved: Tensor = field(init=False)
    moved: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.before, self.checked_loss = self.point, self.best_loss
        self.loss = self.rises = torch.zeros_like(self.best_loss)
        self.halved = torch.ones_like(self.best_loss, dtype=torch.bool)
        self.step_size = 2 * self.step_size  # the ball's diameter: the first step may cross it

    def observe(self, gradient: Tensor, loss: Tensor) -> None:
        super().observe(gradient, loss)
        # The start is no step: its loss is what the first checkpoint compares with, and can be no rise.
        if self.moved:
            self.rises = self.rises + (loss > self.loss)
            self.loss = loss
        else:
            self.checked_loss = loss

    def step(self) -> None:
        point = self.step_along(self.ball.steepest(self.gradient))
        # Momentum extends the projected step beyond the ball again: a second projection takes it back.
        if self.moved:
            point = self.point + MOMENTUM * (point - self.point) + (1 - MOMENTUM) * (self.point - self.before)
            point = self.ball.project(self.x, point)
        self.before, self.point, self.moved = self.point, point, True

    def adapt_step_size(self, gap: int) -> None:
        # Two signs of a step that is too long: it seldom raises the loss, or the best loss has not moved since the
        # last checkpoint though the step size is as it was. Right after a halving the second proves nothing yet.
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        self.halved = (self.rises <= self.rho * gap) | stuck
        self.checked_loss, self.rises = self.best_loss, torch.zeros_like(self.rises)
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.return_to_best(self.halved)


@final
@dataclass
class _SparseIterates(_Iterates):
    """Steps along the largest values of the gradient for l1; how many follows the best point (2021, alg. 1).

    A fresh run begins with a fifth of all values, another with the sparsity of its start.
    """

    fresh: bool
    density: Tensor = field(init=False)
    changed: Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        values = self.x[0].numel()
        if self.fresh:
            self.changed = torch.full_like(self.best_loss, values)
            self.density = torch.full_like(self.best_loss, 0.2)
        else:
            self.changed = _changed(self.point, self.x, self.ball.eps)
            self.density = self.changed / values / 1.5

    def step(self) -> None:
        # The steepest direction of an l1 ball is a single value, which would take one step for each value to change:
        # instead the `density` share of largest gradients moves at once, by equal amounts of l1 norm 1 together.
        size = self.gradient.flatten(1).abs()
        values = size.shape[1]
        rank = ((1 - self.density) * values).clamp(0, values - 1).long()
        smallest = size.sort(dim=1).values.gather(1, rank[:, None])
        sign = torch.where(size >= smallest, self.gradient.flatten(1).sign(), 0)
        self.point = self.step_along((sign / (sign.abs().sum(1, keepdim=True) + 1e-10)).view_as(self.point))

    def adapt_step_size(self, gap: int) -> None:
        del gap
        eps = self.ball.eps
        changed = _changed(self.best, self.x, eps)
        # A best point that grows sparser has found fewer values that matter: long steps pay again. Else shorten them.
        sparser = changed / self.changed < 0.95
        self.step_size = torch.where(sparser, eps, self.step_size / 1.5).clamp(eps / 10, eps)
        self.density, self.changed = changed / self.x[0].numel() / 1.5, changed
        self.return_to_best(sparser)


def _changed(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """Count the values that a point changes; less than eps/10⁵ is what rounding in the projection leaves."""
    return ((point - x).abs() > 1e-5 * eps).flatten(1).sum(1).to(x.dtype)


def run_apgd(
    model: WhiteBoxModel,
    runs: Runs,
    threat: Threat,
    loss: AttackLoss,
    *,
    steps: int,
    rho: float = 0.75,
    early_exit: bool = True,
    ball: Threat | None = None,
    fresh: bool = True,
) -> Proposal:
    """Increase the loss with an adaptive step size, every run on its own, until one on its example succeeds.

    `loss` is a function of the logits and of the rows of `runs.against`. `ball` is where to iterate, if not in
    `threat`, which a point that fools the network must satisfy. `early_exit` False makes all steps with all runs and
    proposes the points of highest loss. `fresh` is False for an l1 run that goes on where another has ended.

    Returns:
        For each run the first point that fools the network, else the point of highest loss; for runs that ended with
        another on their example, their start. `fooled` are the runs that succeeded themselves.
    """
    x, y, start, against, example = runs
    region = ball or threat
    sparse = region.norm == "l1"
    iterates = _SparseIterates(region, rho, x, start, fresh) if sparse else _DenseIterates(region, rho, x, start)
    gaps = checkpoints(steps, region.norm)
    x_adv, fooled = start.clone(), torch.zeros_like(y, dtype=torch.bool)
    queries, updates = torch.zeros_like(y), torch.zeros_like(y)
    active = torch.arange(len(y), device=y.device)
    for step in range(steps + 1):
        if step > 0:
            iterates.step()
            updates[active] += 1
        gradient, logits = model.gradient(iterates.point, against[active], loss)
        queries[active] += model.gradient_cost
        if early_exit:
            wrong, asked = model.confirm(iterates.point, y[active], logits)
            queries[active] += asked * model.answer_cost
            # In a ball that is larger than the threat's, a point that fools the network need not be legal.
            if ball is not None:
                wrong &= threat.contains(iterates.x, iterates.point)
            if wrong.any():
                x_adv[active[wrong]], fooled[active[wrong]] = iterates.point[wrong], True
                on = ~same_example(example[active], wrong)
                active, gradient, logits = active[on], gradient[on], logits[on]
                iterates.keep(on)
        if len(active) == 0:
            break
        # `gradient` returns no loss, but its value follows from the logits without another pass.
        iterates.observe(gradient, loss(logits, against[active]))
        # After the step has been observed, so that a return to the best point may return to this one.
        if step in gaps:
            iterates.adapt_step_size(gaps[step])
    x_adv[active] = iterates.best
    return Proposal(x_adv, queries, updates, fooled)
