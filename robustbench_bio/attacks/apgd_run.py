"""The walk of Auto-PGD: uphill, with a step size that each example finds for itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import NamedTuple, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel
from robustbench_bio.records.threat import Norm, Threat

#: Share of a new step in the next move; the rest repeats the move before.
MOMENTUM = 0.75


def checkpoints(steps: int, norm: Norm) -> dict[int, int]:
    """Return after which steps the step size is reconsidered, and how many steps lie before each since the last.

    The gaps are 0.22, 0.19, 0.16 … of all steps, at least 0.06 (Croce & Hein 2020, sec. 3.1); for l1 all are 0.04.
    """
    gap, shrink, least = (0.04, 0.0, 0.04) if norm == "l1" else (0.22, 0.03, 0.06)
    length, smallest = max(int(gap * steps), 1), max(int(least * steps), 1)
    shorter = max(int(shrink * steps), 1) if shrink else 0
    found, at = {}, length
    while at <= steps:
        found[at] = length
        length = max(length - shorter, smallest)
        at += length
    return found


def belong(owner: Tensor, over: Tensor) -> Tensor:
    """Tell which rows are walks of an example that is over: int64 [n], owners of rows that are [m] → bool [n]."""
    return torch.isin(owner, over)


@dataclass
class _Walk(ABC):
    """Where the walking examples are. Every tensor has one row for each of them."""

    ball: Threat
    rho: float
    x: Tensor
    point: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor

    def keep(self, stands: Tensor) -> None:
        """Forget the examples that have fallen."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                setattr(self, field.name, value[stands])

    def arrive(self, gradient: Tensor, loss: Tensor) -> None:
        """Take note of gradient and loss at the present point."""
        self.gradient = gradient
        better = loss > self.best_loss
        self.best[better] = self.point[better]
        self.best_gradient[better] = gradient[better]
        self.best_loss = torch.where(better, loss, self.best_loss)

    def return_to_best(self, rows: Tensor) -> None:
        """Walk on from the best point so far."""
        self.point[rows] = self.best[rows]
        self.gradient[rows] = self.best_gradient[rows]

    @abstractmethod
    def advance(self) -> None:
        """Move to the next point."""

    @abstractmethod
    def reconsider(self, gap: int) -> None:
        """Adapt the step size at a checkpoint, `gap` steps after the last one."""

    def sizes(self) -> Tensor:
        """Return the step sizes so that they broadcast over images."""
        return self.step_size.view(-1, 1, 1, 1)


@final
@dataclass
class _Dense(_Walk):
    """Steps with momentum for linf and l2; the step size is halved when the loss stops rising (2020, alg. 1).

    The released code is followed where it departs from the paper: a move after a return to the best point still
    repeats the last one, ρ·gap itself counts as too few rises, and the first of them is a rise above 0.
    """

    before: Tensor
    loss: Tensor
    rises: Tensor
    checked_loss: Tensor
    halved: Tensor
    moved: bool = False

    @classmethod
    def begin(cls, x: Tensor, start: Tensor, ball: Threat, rho: float) -> "_Dense":
        zero = x.new_zeros(len(x))
        return cls(
            ball=ball, rho=rho, x=x, point=start, gradient=start, best=start.clone(), best_gradient=start.clone(),
            best_loss=zero - torch.inf, step_size=zero + 2 * ball.eps, before=start, loss=zero, rises=zero,
            checked_loss=zero - torch.inf, halved=torch.ones_like(zero, dtype=torch.bool),
        )  # fmt: skip

    def arrive(self, gradient: Tensor, loss: Tensor) -> None:
        super().arrive(gradient, loss)
        if self.moved:
            self.rises = self.rises + (loss > self.loss)
            self.loss = loss
        else:
            self.checked_loss = loss

    def advance(self) -> None:
        step = self.ball.project(self.x, self.point + self.sizes() * self.ball.steepest(self.gradient))
        if self.moved:
            step = self.point + MOMENTUM * (step - self.point) + (1 - MOMENTUM) * (self.point - self.before)
            step = self.ball.project(self.x, step)
        self.before, self.point, self.moved = self.point, step, True

    def reconsider(self, gap: int) -> None:
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        self.halved = (self.rises <= self.rho * gap) | stuck
        self.checked_loss, self.rises = self.best_loss, torch.zeros_like(self.rises)
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.return_to_best(self.halved)


@final
@dataclass
class _Sparse(_Walk):
    """Steps along the largest values of the gradient for l1; how many follows the best point (2021, alg. 1)."""

    density: Tensor
    changed: Tensor

    @classmethod
    def begin(cls, x: Tensor, start: Tensor, ball: Threat, rho: float, fresh: bool) -> "_Sparse":
        """Start a walk; a fresh one begins with a fifth of all values, another with its start's sparsity."""
        zero, values = x.new_zeros(len(x)), x[0].numel()
        changed = zero + values if fresh else _changed(start, x, ball.eps)
        return cls(
            ball=ball, rho=rho, x=x, point=start, gradient=start, best=start.clone(), best_gradient=start.clone(),
            best_loss=zero - torch.inf, step_size=zero + ball.eps, changed=changed,
            density=zero + 0.2 if fresh else changed / values / 1.5,
        )  # fmt: skip

    def advance(self) -> None:
        size = self.gradient.flatten(1).abs()
        values = size.shape[1]
        rank = ((1 - self.density) * values).clamp(0, values - 1).long()
        smallest = size.sort(dim=1).values.gather(1, rank[:, None])
        sign = torch.where(size >= smallest, self.gradient.flatten(1).sign(), 0)
        direction = (sign / (sign.abs().sum(1, keepdim=True) + 1e-10)).view_as(self.point)
        self.point = self.ball.project(self.x, self.point + self.sizes() * direction)

    def reconsider(self, gap: int) -> None:
        del gap
        eps = self.ball.eps
        changed = _changed(self.best, self.x, eps)
        sparser = changed / self.changed < 0.95
        self.step_size = torch.where(sparser, eps, self.step_size / 1.5).clamp(eps / 10, eps)
        self.density, self.changed = changed / self.x[0].numel() / 1.5, changed
        self.return_to_best(sparser)


def _changed(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """Count the values that a point changes; less than eps/10⁵ is what rounding in the projection leaves."""
    return ((point - x).abs() > 1e-5 * eps).flatten(1).sum(1).to(x.dtype)


class Climb(NamedTuple):
    """Where a walk ended.

    Attributes:
        x_adv: [n, C, H, W], the first point that fools the network, else the point of highest loss.
        fooled: bool [n], whether the walk was left at a point that fools the network.
        queries: int64 [n].
        steps: int64 [n].
    """

    x_adv: Tensor
    fooled: Tensor
    queries: Tensor
    steps: Tensor


def climb(
    model: WhiteBoxModel,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    start: Tensor,
    *,
    steps: int,
    loss: AttackLoss,
    against: Tensor,
    rho: float = 0.75,
    early_exit: bool = True,
    ball: Threat | None = None,
    fresh: bool = True,
    owner: Tensor | None = None,
) -> Climb:
    """Walk uphill from `start` with an adaptive step size, every example on its own.

    Args:
        model: what may be asked of the network.
        x: [n, C, H, W] centres of the balls.
        y: int64 [n], true labels.
        threat: what a point that fools the network must satisfy.
        start: [n, C, H, W] inside the ball.
        steps: how many.
        loss: what to increase, a function of the logits and of the rows of `against`.
        against: one row per example for the loss.
        rho: the step size is halved where fewer than this share of the steps raised the loss (linf and l2).
        early_exit: False walks all steps with all examples and returns the points of highest loss, as for random
            networks always.
        ball: where to walk, if not in `threat`.
        fresh: False for an l1 walk that goes on where another has ended.
        owner: int64 [n], the same number for rows that are walks of one example: when one of them fools the network,
            all are over, the others without success. By default every row is an example of its own.
    """
    where, early_exit = ball or threat, early_exit and not model.random
    walk = _Sparse.begin(x, start, where, rho, fresh) if where.norm == "l1" else _Dense.begin(x, start, where, rho)
    gaps = checkpoints(steps, where.norm)
    found = Climb(start.clone(), torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y), torch.zeros_like(y))
    alive = torch.arange(len(y), device=y.device)
    for step in range(steps + 1):
        if step > 0:
            walk.advance()
            found.steps[alive] += 1
        gradient, logits = model.gradient(walk.point, against[alive], loss)
        found.queries[alive] += 1
        if early_exit:
            fallen, asked = model.confirm(walk.point, y[alive], logits)
            found.queries[alive] += asked
            if ball is not None:
                fallen &= threat.contains(walk.x, walk.point)
            if fallen.any():
                found.x_adv[alive[fallen]] = walk.point[fallen]
                found.fooled[alive[fallen]] = True
                stands = ~fallen if owner is None else ~belong(owner[alive], owner[alive[fallen]])
                alive, gradient, logits = alive[stands], gradient[stands], logits[stands]
                walk.keep(stands)
        if len(alive) == 0:
            return found
        walk.arrive(gradient, loss(logits, against[alive]))
        if step in gaps:
            walk.reconsider(gaps[step])
    found.x_adv[alive] = walk.best
    return found
