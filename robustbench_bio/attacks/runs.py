"""Runs towards several targets at once: rows of one batch that belong to the same example."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Threat

#: Values of one example's runs that are made at once: all nine of AutoAttack's for images of 32 × 32 pixels.
VALUES_PER_EXAMPLE = 9 * 3 * 32 * 32


class Runs(NamedTuple):
    """Runs of a gradient attack, one a row.

    Attributes:
        x: [n, C, H, W], centres of the balls.
        y: int64 [n], true labels.
        start: [n, C, H, W], first iterates.
        against: [n, ...], what the loss of each run is held against.
        example: int64 [n], equal for runs on the same example: when one fools the network, all are over.
    """

    x: Tensor
    y: Tensor
    start: Tensor
    against: Tensor
    example: Tensor

    @classmethod
    def towards(cls, x: Tensor, y: Tensor, starts: list[Tensor], against: Tensor) -> "Runs":
        """Return k runs for each example, all first runs before all second ones: k starts like x, against [k, n, ...].

        In this order what comes back is a view of [k, n, ...], see `first_success`.
        """
        k = len(starts)
        example = torch.arange(len(y), device=y.device).repeat(k)
        return cls(x.repeat(k, 1, 1, 1), y.repeat(k), torch.cat(starts), against.flatten(0, 1), example)

    def take(self, rows: Tensor, start: Tensor) -> "Runs":
        """Return some of the runs, from other first iterates [m, C, H, W]."""
        return Runs(self.x[rows], self.y[rows], start, self.against[rows], self.example[rows])


def same_example(example: Tensor, over: Tensor) -> Tensor:
    """Tell which runs are over because one on their example is: int64 [n], bool [n] → bool [n]."""
    return torch.isin(example, example[over])


def target_groups(targets: int, x: Tensor) -> list[list[int]]:
    """Return which of several targets are aimed at at once: the likeliest alone, the rest in groups that fit.

    Most examples that are fooled at all are fooled on the way to the first. What is left takes as many passes to one
    target as to a group, and a processor is faster with more rows; how many, the images' size decides and never the
    batch, so that an example's queries do not depend on its neighbours.
    """
    size = max(1, VALUES_PER_EXAMPLE // x[0].numel())
    rest = list(range(1, targets))
    return [[0], *(rest[i : i + size] for i in range(0, len(rest), size))] if targets else []


def first_success(fooled: Tensor) -> Tensor:
    """Return the first run that fooled the network, the last where none did: bool [k, n] → int64 [n]."""
    last = len(fooled) - 1
    numbers = torch.arange(len(fooled), device=fooled.device)[:, None]
    return torch.where(fooled, numbers, last).amin(0)


def border_start(threat: Threat, x: Tensor, rng: ExampleRng, radius: Tensor | None = None) -> Tensor:
    """Return a random point of the ball's border for linf and l2, the projection of a normal draw for l1.

    This is where the released code of AutoAttack starts, rather than anywhere in the ball; all is cut to the box.

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
