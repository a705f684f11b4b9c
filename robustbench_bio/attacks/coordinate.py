"""Coordinate search: small patches moved one after the other to a corner of the ball, annealed."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

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
    """Annealed search over the corners of the linf ball, for networks that no gradient describes.

    A short run of gradient ascent on the margin of the logits finds the neighbourhood; from there every patch of
    `SHAPES` is set to x − eps, x or x + eps in random order, one forward pass each. A move stays where the margin
    does not fall: logits of spiking networks are counts, and their landscape is one of plateaus. One that lowers
    the margin by d stays with probability exp(−d / T) (Kirkpatrick et al. 1983, doi:10.1126/science.220.4598.671),
    and T falls in a line from `heat` times the size of the margin that the search begins at to 0 at its end.
    Coordinate-wise searches over corners go back to Moon et al. 2019 (arXiv:1905.06635); shapes, order and plateaus are
    ours. What heat finds that greed does not is in docs/findings.md.

    Args:
        queries: forward passes of the search, per restart; more of them cool more slowly.
        steps: of the ascent before it; 0 starts at random corners.
        restarts: fresh starts and orders, each only for the examples that are still robust.
        heat: temperature at the beginning, as a share of the first margin; 0 is greedy.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf"})

    queries: int = 2000
    steps: int = 30
    restarts: int = 5
    heat: float = 0.05

    def __post_init__(self) -> None:
        at_least(queries=(self.queries, 1), steps=(self.steps, 0), restarts=(self.restarts, 1), heat=(self.heat, 0))

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
        x_adv, queries, steps = start.clone(), torch.full_like(y, model.answer_cost), torch.zeros_like(y)
        margins, ever_fooled = model.lead(start, y)
        rows = torch.arange(len(y), device=y.device)
        walk = _Walk(rows, x, y, start, margins, margins, start, self.heat * margins.abs()).take(~ever_fooled)
        moves = _Moves(x)
        for query in range(self.queries - 1):
            if len(walk.rows) == 0:
                break
            turn = query % moves.count
            if turn == 0:
                draws = rng.take(walk.rows)
                order, luck = (draws.uniform((moves.count,), x) for _ in range(2))
                walk = walk._replace(order=order.argsort(1), luck=luck)
            tried = moves.made(walk.x, walk.point, walk.order[:, turn], threat)
            margins, fooled = model.lead(tried, walk.y)
            walk, kept = walk.moved(tried, margins, 1 - query / self.queries, walk.luck[:, turn])
            kept |= fooled
            queries[walk.rows] += model.answer_cost
            steps[walk.rows] += kept.long()
            if fooled.any():
                x_adv[walk.rows[fooled]], ever_fooled[walk.rows[fooled]] = tried[fooled], True
                walk = walk.take(~fooled)
        x_adv[walk.rows] = walk.best
        return Proposal(x_adv, queries, steps, ever_fooled)


class _Walk(NamedTuple):
    """Where the search stands with the examples that are still robust, a row for each.

    Attributes:
        rows: int64 [n], which examples these are.
        x: [n, C, H, W] clean.
        y: int64 [n].
        point: [n, C, H, W], where the search is.
        margin: [n] there.
        highest: [n], of all margins seen.
        best: [n, C, H, W], where it was seen.
        heat: [n], the temperature at the beginning, in units of the margin.
        order: int64 [n, moves], of this sweep.
        luck: U[0, 1) [n, moves], of this sweep.
    """

    rows: Tensor
    x: Tensor
    y: Tensor
    point: Tensor
    margin: Tensor
    highest: Tensor
    best: Tensor
    heat: Tensor
    order: Tensor = torch.empty(0)
    luck: Tensor = torch.empty(0)

    def take(self, mask: Tensor) -> "_Walk":
        """Return the rows that a bool mask [n] selects; no order is drawn before the first sweep."""
        return _Walk(*(part[mask] if len(part) else part for part in self))

    def moved(self, tried: Tensor, margins: Tensor, cooled: float, luck: Tensor) -> tuple["_Walk", Tensor]:
        """Return the walk after a move to `tried` [n, C, H, W], where it is taken, and where that is: bool [n].

        Args:
            tried: the points that are asked about.
            margins: [n] there.
            cooled: the temperature as a share of the first one.
            luck: [n], U[0, 1).
        """
        # luck < exp(change / T), with the logarithm on the other side: nothing is divided where T is 0.
        taken = margins - self.margin >= cooled * self.heat * luck.clamp_min(1e-30).log()
        higher = margins > self.highest
        walk = self._replace(
            point=_where(taken, tried, self.point),
            margin=margins.where(taken, self.margin),
            highest=margins.where(higher, self.highest),
            best=_where(higher, tried, self.best),
        )
        return walk, taken


def _where(rows: Tensor, images: Tensor, others: Tensor) -> Tensor:
    return torch.where(rows[:, None, None, None], images, others)


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
