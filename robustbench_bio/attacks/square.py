"""Square Attack: random search with square patches, without any gradient."""

from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Attempts, Proposal
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat

#: The share of changed pixels halves after each of these queries, out of 10000.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

#: Queries for which one call draws the random numbers of an example.
BLOCK = 64


def share(p_init: float, query: int, queries: int) -> float:
    """Return the share of pixels that a query changes, the published schedule stretched to `queries`."""
    return float(p_init / 2 ** bisect_left(HALVINGS, int(query / queries * 10000)))


@final
@ATTACKS.register("square")
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square Attack on the margin of the logits (Andriushchenko et al. 2020, arXiv:1912.00049, alg. 1–3).

    Parameters follow AutoAttack (Croce & Hein 2020). On purpose different: every example draws squares of its own,
    so that its result does not depend on its batch; squares may touch the right and the lower border; under linf,
    a square that would change nothing takes the opposite signs; the first point counts as a query.

    Args:
        queries: forward passes per restart.
        p_init: share of the pixels that the first squares cover.
        restarts: fresh starts, each only for the examples that are still robust.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    white_box: ClassVar[bool] = False

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        at_least(queries=(self.queries, 1), restarts=(self.restarts, 1), p_init=(self.p_init, 0))

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        attempts = Attempts(model, x, y, self.restarts)
        for restart, rows in attempts:
            attempts.add(self._search(model, x[rows], y[rows], threat, rng.take(rows).child(str(restart))))
        return attempts.best

    def _search(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        """Return what one random search proposes; steps count the squares that stayed."""
        moves = MOVES[threat.norm](threat)
        x_adv, ever_fooled = x.clone(), torch.zeros_like(y, dtype=torch.bool)
        queries, steps = torch.full_like(y, model.answer_cost), torch.zeros_like(y)
        active, point = torch.arange(len(y), device=y.device), moves.start(x, rng)
        loss, fooled = model.lead(point, y)
        draws = x.new_empty((len(y), 0))
        for query in range(self.queries - 1):
            if fooled.any():
                x_adv[active[fooled]], ever_fooled[active[fooled]] = point[fooled], True
                # Copies shrink with the active rows: indexing whole tensors at every query would cost as much as it.
                parts = (x, y, point, active, loss, draws, fooled)
                x, y, point, active, loss, draws, fooled = (part[~fooled] for part in parts)
                if len(active) == 0:
                    break
            if query % BLOCK == 0:
                draws = rng.take(active).uniform((BLOCK, moves.numbers(x)), x)
            patches = moves.propose(x, point, share(self.p_init, query, self.queries), draws[:, query % BLOCK])
            # The patches are written into the only copy, and taken back where they do not help.
            pixels = point.flatten(2)
            before = [pixels.gather(2, patch.at) for patch in patches]
            for patch in patches:
                pixels.scatter_(2, patch.at, patch.values)
            new_loss, fooled = model.lead(point, y)
            better = (new_loss > loss) | fooled
            after = [pixels.gather(2, patch.at) for patch in patches]
            for patch, old, new in zip(patches, before, after, strict=True):
                pixels.scatter_(2, patch.at, torch.where(better[:, None, None], new, old))
            loss = torch.where(better, new_loss, loss)
            queries[active] += model.answer_cost
            steps[active] += better.long()
        x_adv[active], ever_fooled[active] = point, fooled
        return Proposal(x_adv, queries, steps, ever_fooled)


class Patch(NamedTuple):
    """New values for some pixels of every example.

    Attributes:
        at: int64 [n, C, k], places in the flattened image.
        values: [n, C, k].
    """

    at: Tensor
    values: Tensor


@dataclass(frozen=True)
class Moves(ABC):
    """How the search starts and moves under one norm."""

    threat: Threat

    @abstractmethod
    def numbers(self, x: Tensor) -> int:
        """Return how many random numbers a query needs."""

    @abstractmethod
    def start(self, x: Tensor, rng: ExampleRng) -> Tensor:
        """Return the first points, [n, C, H, W], contiguous."""

    @abstractmethod
    def propose(self, x: Tensor, point: Tensor, share: float, u: Tensor) -> list[Patch]:
        """Return patches to write one after the other, from u [n, numbers] in [0, 1)."""

    def boxed(self, values: Tensor) -> Tensor:
        return values.clamp(*self.threat.bounds)


@final
class LinfMoves(Moves):
    """Vertical stripes of ±eps, then squares of x ± eps, one sign per channel (alg. 2)."""

    def numbers(self, x: Tensor) -> int:
        return 2 + x.shape[1]

    def start(self, x: Tensor, rng: ExampleRng) -> Tensor:
        stripes = _signs(rng.uniform((x.shape[1], 1, x.shape[3]), x))
        return self.boxed(x + self.threat.eps * stripes).contiguous()

    def propose(self, x: Tensor, point: Tensor, share: float, u: Tensor) -> list[Patch]:
        height, width = x.shape[2:]
        side = min(max(round(sqrt(share * height * width)), 1), height, width)
        at = _places(_corner(u[:, :2], side, x), side, x)
        clean, move = x.flatten(2).gather(2, at), self.threat.eps * _signs(u[:, 2:, None])
        values = self.boxed(clean + move)
        # Late squares cover a few pixels and often repeat the signs that these have: a query spent on nothing.
        idle = (values == point.flatten(2).gather(2, at)).flatten(1).all(1)
        return [Patch(at, torch.where(idle[:, None, None], self.boxed(clean - move), values))]


@final
class L2Moves(Moves):
    """A grid of tiles, then one window that takes over the perturbation of another (alg. 3)."""

    def numbers(self, x: Tensor) -> int:
        return 5 + x.shape[1]

    def start(self, x: Tensor, rng: ExampleRng) -> Tensor:
        n, channels, height, width = x.shape
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        u = rng.uniform((down, across, 1 + channels), x).movedim(3, 1)
        tiles = _eta(side, x)[(u[:, 0] > 0.5).long()]  # [n, down, across, side, side]
        tiles = _signs(u[:, 1:])[..., None, None] * tiles[:, None]
        delta = torch.zeros_like(x, memory_format=torch.contiguous_format)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        block = tiles.transpose(3, 4).reshape(n, channels, down * side, across * side)
        delta[:, :, top : top + down * side, left : left + across * side] = block
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1).view(-1, 1, 1, 1)
        return self.boxed(x + delta / length * self.threat.eps)

    def propose(self, x: Tensor, point: Tensor, share: float, u: Tensor) -> list[Patch]:
        _, channels, height, width = x.shape
        side = min(max(round(sqrt(share * height * width)), 3) // 2 * 2 + 1, height, width)
        target, source = _corner(u[:, :2], side, x), _corner(u[:, 2:4], side, x)
        to, fro = _places(target, side, x), _places(source, side, x)
        delta = (point - x).flatten(2)
        at_target, at_source = delta.gather(2, to), delta.gather(2, fro)
        # What the two windows hold together, a pixel in both counted once, and what clipping to the box has freed: the
        # target window spends all of it, so that the perturbation keeps to the border of the ball.
        shared = _shared(target, source, side)[:, None]
        held = at_target.square().sum(2) + at_source.square().masked_fill(shared, 0).sum(2)
        freed = (self.threat.eps**2 - delta.square().sum((1, 2))).clamp_min(0)
        length = (held + freed[:, None] / channels).sqrt()
        eta = _eta(side, x)[(u[:, 4] > 0.5).long()].flatten(1)
        fresh = _signs(u[:, 5:, None]) * eta[:, None]
        mixed = fresh + _unit(at_target)
        # The same window with the opposite sign would cancel, and the perturbation would lose what it holds.
        mixed = torch.where(mixed.abs().amax(2, keepdim=True) > 1e-5, mixed, fresh)
        clean = x.flatten(2)
        moved = self.boxed(clean.gather(2, to) + _unit(mixed) * length[:, :, None])
        return [Patch(fro, clean.gather(2, fro)), Patch(to, moved)]


MOVES: dict[Norm, type[Moves]] = {"linf": LinfMoves, "l2": L2Moves}


def _signs(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0).to(u)


def _unit(values: Tensor) -> Tensor:
    unit: Tensor = values / torch.linalg.vector_norm(values, dim=2, keepdim=True).clamp_min(1e-12)
    return unit


def _corner(u: Tensor, side: int, x: Tensor) -> Tensor:
    """Return the upper left corners of squares inside the image: u [n, 2] → int64 [n, 2]."""
    free = torch.tensor([size - side for size in x.shape[2:]], device=x.device)
    return torch.minimum((u * (free + 1)).long(), free)  # u·k may round up to k


def _places(corner: Tensor, side: int, x: Tensor) -> Tensor:
    """Return the places of the squares' pixels in the flattened image: [n, 2] → int64 [n, C, side²]."""
    steps = torch.arange(side, device=x.device)
    rows, columns = corner[:, :1] + steps, corner[:, 1:] + steps
    flat = (rows[:, :, None] * x.shape[3] + columns[:, None, :]).flatten(1)
    return flat[:, None].expand(-1, x.shape[1], -1)


def _shared(target: Tensor, source: Tensor, side: int) -> Tensor:
    """Tell which pixels of the source squares lie in the target squares as well: bool [n, side²]."""
    steps = torch.arange(side, device=target.device)
    away = (source - target)[:, :, None] + steps  # [n, 2, side]
    inside = (away >= 0) & (away < side)
    return (inside[:, 0, :, None] & inside[:, 1, None, :]).flatten(1)


def _eta(side: int, like: Tensor) -> Tensor:
    """Return the published window, upright and lying: unit norm, positive above negative, [2, side, side]."""
    upright = _window(side)
    return torch.stack([upright, upright.T]).to(like)


@cache
def _window(side: int) -> Tensor:
    half = side // 2
    window = torch.cat([_rings(half, side), -_rings(side - half, side)])
    return window / torch.sqrt(window.square().sum())


def _rings(height: int, width: int) -> Tensor:
    """Return Σ_k 1/(k+1)² over growing centred rectangles, with unit norm: float64 [height, width]."""
    values = torch.zeros(height, width, dtype=torch.float64)
    top, left = height // 2, width // 2
    for k in range(max(height // 2, width // 2) + 1):
        rows = slice(max(top - k, 0), min(top + k + 1, height))
        values[rows, max(left - k, 0) : min(left + k + 1, width)] += 1 / (k + 1) ** 2
    return values / torch.sqrt(values.square().sum()).clamp_min(1e-12)
