"""Coordinate search: small patches moved one after the other to a corner of the ball, what helps is kept."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel, margin
from robustbench_bio.attacks.base import ATTACKS, Attack, Attempts, Proposal
from robustbench_bio.attacks.pgd import ascend
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat

#: Patches that are moved as one: height and width. Neurons with thresholds notice a pixel or none at all, so the search
#: needs single pixels as well as groups that cross a threshold together.
SHAPES = ((1, 1), (2, 2), (1, 3), (3, 1))

#: Where a patch is moved, in units of eps from the clean image: the corners of the ball and back.
LEVELS = (-1.0, 0.0, 1.0)


@final
@ATTACKS.register("coordinate")
@dataclass(frozen=True, kw_only=True)
class Coordinate(Attack):
    """Greedy search over the corners of the linf ball, for networks that no gradient describes.

    A short run of gradient ascent on the margin of the logits finds the neighbourhood; from there every patch of
    `SHAPES` is set to x − eps, x or x + eps in random order, one forward pass each, and stays where the margin does
    not fall. A move that changes nothing is kept: logits of spiking networks are counts, and their landscape is one
    of plateaus. Coordinate-wise searches over corners go back to Moon et al. 2019 (arXiv:1905.06635); shapes, order
    and plateaus are ours.

    Args:
        queries: forward passes of the search, per restart.
        steps: of the ascent before it; 0 starts at random corners.
        restarts: fresh starts and orders, each only for the examples that are still robust.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf"})

    queries: int = 2000
    steps: int = 30
    restarts: int = 5

    def __post_init__(self) -> None:
        at_least(queries=(self.queries, 1), steps=(self.steps, 0), restarts=(self.restarts, 1))

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        attempts = Attempts(model, x, y, self.restarts)
        for restart, rows in attempts:
            draws = rng.take(rows).child(str(restart))
            start = threat.random_start(x[rows], draws)
            if self.steps:
                size = 2.5 * threat.eps / self.steps
                run = ascend(model, x[rows], y[rows], threat, start, steps=self.steps, step_size=size, loss=margin)
            else:
                corners = x[rows] + threat.eps * (start - x[rows]).sign()
                run = Proposal(corners.clamp(*threat.bounds), torch.zeros_like(rows), torch.zeros_like(rows))
            found = self._search(model, x[rows], y[rows], run.x_adv, threat, draws)
            attempts.add(found._replace(queries=found.queries + run.queries, steps=found.steps + run.steps))
        return attempts.best

    def _search(
        self, model: WhiteBoxModel, x: Tensor, y: Tensor, start: Tensor, threat: Threat, rng: ExampleRng
    ) -> Proposal:
        """Return what the search from `start` proposes; steps count the moves that stayed."""
        x_adv, ever_fooled = start.clone(), torch.zeros_like(y, dtype=torch.bool)
        queries, steps = torch.full_like(y, model.answer_cost), torch.zeros_like(y)
        active, point = torch.arange(len(y), device=y.device), start.clone()
        best, fooled = model.lead(point, y)
        moves = _Moves(x)
        order = torch.empty((len(y), 0), dtype=torch.int64, device=y.device)
        for query in range(self.queries - 1):
            if fooled.any():
                x_adv[active[fooled]], ever_fooled[active[fooled]] = point[fooled], True
                parts = (x, y, point, active, best, order, fooled)
                x, y, point, active, best, order, fooled = (part[~fooled] for part in parts)
                if len(active) == 0:
                    break
            if query % moves.count == 0:
                order = rng.take(active).uniform((moves.count,), x).argsort(1)
            tried = moves.made(x, point, order[:, query % moves.count], threat)
            margins, fooled = model.lead(tried, y)
            better = (margins >= best) | fooled
            point = torch.where(better[:, None, None, None], tried, point)
            best = torch.where(better, margins, best)
            queries[active] += model.answer_cost
            steps[active] += better.long()
        x_adv[active], ever_fooled[active] = point, fooled
        return Proposal(x_adv, queries, steps, ever_fooled)


class _Moves:
    """Every patch at every place, for all channels together and for each alone, at every level.

    Args:
        x: [n, C, H, W], for its size.
    """

    def __init__(self, x: Tensor) -> None:
        channels, height, width = x.shape[1:]
        masks = []
        for rows, columns in SHAPES:
            for top in range(height - rows + 1):
                for left in range(width - columns + 1):
                    mask = torch.zeros(1, height, width, dtype=torch.bool)
                    mask[:, top : top + rows, left : left + columns] = True
                    masks.append(mask)
        places = torch.stack(masks)
        single = torch.eye(channels, dtype=torch.bool)[:, :, None, None]
        groups = torch.cat([torch.ones_like(single[:1]), single]) if channels > 1 else torch.ones_like(single)
        self.masks = (places[:, None] & groups[None]).flatten(0, 1).to(x.device)
        self.levels = torch.tensor(LEVELS, device=x.device)
        self.count = len(self.masks) * len(LEVELS)

    def made(self, x: Tensor, point: Tensor, number: Tensor, threat: Threat) -> Tensor:
        """Return the points after move `number` [n]; one that would change nothing goes to the next level instead."""
        mask, level = self.masks[number // len(LEVELS)], number % len(LEVELS)
        for _ in LEVELS:
            moved = (x + threat.eps * self.levels[level][:, None, None, None]).clamp(*threat.bounds)
            tried = torch.where(mask, moved, point)
            idle = (tried == point).flatten(1).all(1)
            level = torch.where(idle, (level + 1) % len(LEVELS), level)
        return tried
