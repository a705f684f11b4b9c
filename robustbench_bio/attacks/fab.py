"""Fast adaptive boundary attack: the smallest perturbation, by steps onto the linearised decision boundary."""

from dataclasses import dataclass, fields
from typing import ClassVar, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.apgd import border_start, together
from robustbench_bio.attacks.apgd_run import belong
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal, at_least
from robustbench_bio.attacks.losses import likely_targets, targeted_margin
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat


def onto_hyperplane(point: Tensor, w: Tensor, rise: Tensor, norm: Norm, bounds: tuple[float, float]) -> Tensor:
    """Return the smallest d with ⟨w, d⟩ = rise for which point + d stays in the box.

    Where no point of the box rises that much, d leads to the one that rises most. Without a sort for linf and l2:
    the values at the border of the box are found by Newton's method, which ends after finitely many rounds
    because the rise is concave in the length of the step.

    Args:
        point: [n, d] inside the bounds.
        w: [n, d], normal of the hyperplane.
        rise: [n], by how much ⟨w, ·⟩ shall change.
        norm: "linf", "l2" or "l1", in which d is smallest.
        bounds: of the box.
    """
    low, high = bounds
    direction = w.sign() * rise.sign()[:, None]
    scale = w.abs().amax(1).clamp_min(1e-30)  # squares of tiny gradients would be 0 in float32
    slope, rise = w.abs() / scale[:, None], rise.abs() / scale
    room = torch.where(direction > 0, high - point, point - low) * (direction != 0)
    if norm == "l1":
        return direction * _steepest_first(slope, room, rise)
    speed = slope if norm == "l2" else torch.ones_like(slope)
    length, free = torch.zeros_like(rise), room > 0
    while True:
        missing = rise - (slope * room).masked_fill(free, 0).sum(1)
        length = torch.maximum(length, missing / (slope * speed * free).sum(1).clamp_min(1e-30))
        still = free & (length[:, None] * speed < room)
        if torch.equal(still, free):
            return direction * torch.where(free, length[:, None] * speed, room)
        free = still


def _steepest_first(slope: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """Use up the room of the steepest values, one after the other, until they rise enough: [n, d]."""
    order = slope.argsort(dim=1, descending=True)
    steep, free = slope.gather(1, order), room.gather(1, order)
    gain = steep * free
    missing = rise[:, None] - (gain.cumsum(1) - gain)
    used = torch.minimum((missing / steep.clamp_min(1e-30)).clamp_min(0), free)
    return torch.zeros_like(used).scatter(1, order, used)


@dataclass
class _Search:
    """What is known of each example; all tensors have one row for each.

    Attributes:
        nearest: the smallest point that fools the network; the last try while there is none.
        size: its distance, infinite while there is none.
    """

    nearest: Tensor
    size: Tensor
    queries: Tensor
    steps: Tensor

    @classmethod
    def begin(cls, x: Tensor, y: Tensor, queries: int) -> "_Search":
        infinite = torch.full_like(x[:, 0, 0, 0], torch.inf)
        return cls(x.clone(), infinite, torch.full_like(y, queries), torch.zeros_like(y))

    def record(self, rows: Tensor, point: Tensor, size: Tensor, fooled: Tensor) -> None:
        """Keep the points that fool the network and are nearer than what is known, or all where nothing is."""
        better = torch.where(fooled, size < self.size[rows], self.size[rows].isinf())
        self.nearest[rows[better]] = point[better]
        self.size[rows[better & fooled]] = size[better & fooled]

    def take(self, rows: Tensor, part: "_Search", walks: int) -> None:
        """Take over what several walks of some examples have found: `part` holds all rows for the first, and so on."""
        n = len(rows)
        smallest, walk = part.size.view(walks, n).min(0)
        nearest = part.nearest.view(walks, n, *part.nearest.shape[1:])[walk, torch.arange(n, device=rows.device)]
        self.record(rows, nearest, smallest, smallest.isfinite())
        self.queries[rows] += part.queries.view(walks, n).sum(0)
        self.steps[rows] += part.steps.view(walks, n).sum(0)


@dataclass(frozen=True, kw_only=True)
class _Boundary(Attack):
    """What fab-t and min-norm share: walks along the boundary towards one likely class after the other."""

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})

    steps: int = 100
    restarts: int = 1
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        at_least(**{field.name: (getattr(self, field.name), 0) for field in fields(self)})
        at_least(steps=(self.steps, 1), restarts=(self.restarts, 1), targets=(self.targets, 1), eta=(self.eta, 1))

    def _search(
        self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng, *, enough: float
    ) -> _Search:
        """Look for the smallest perturbation; an example is left alone once one of size <= enough is known."""
        likely = likely_targets(model, x, y, self.targets)
        found = _Search.begin(x, y, queries=1)
        for numbers in together(likely.shape[1], x):
            for restart in range(self.restarts):
                alive = (found.size > enough).nonzero().flatten()
                if len(alive) == 0:
                    return found
                here, walks = x[alive], len(numbers)
                start = here.repeat(walks, 1, 1, 1)
                if restart > 0:
                    radius = found.size[alive].clamp_max(threat.eps) / 2
                    draws = [rng.take(alive).child(f"{number}/{restart}") for number in numbers]
                    start = torch.cat([border_start(threat, here, draw, radius) for draw in draws])
                pair = torch.stack([y[alive].repeat(walks), likely[alive][:, numbers].T.flatten()], 1)
                owner = torch.arange(len(alive), device=y.device).repeat(walks)
                part = _Search.begin(here.repeat(walks, 1, 1, 1), pair[:, 0], queries=0)
                self._walk(model, here.repeat(walks, 1, 1, 1), pair, threat, part, start, owner, enough)
                found.take(alive, part, walks)
        return found

    def _walk(
        self,
        model: WhiteBoxModel,
        x: Tensor,
        pair: Tensor,
        threat: Threat,
        found: _Search,
        point: Tensor,
        owner: Tensor,
        enough: float,
    ) -> None:
        """Step onto the linearised boundary from `point`, biased to x, and back inside whenever it is crossed.

        Rows of one owner are walks of one example: all are over when one has found enough.

        Both passes of a step test a point: after the step, and after the way back. The released code tests the
        first only; a point that it passes over may be the smallest.
        """
        y, alive = pair[:, 0], torch.arange(len(pair), device=pair.device)
        for _ in range(self.steps):
            gradient, logits = model.gradient(point, pair[alive], targeted_margin)
            found.queries[alive] += 1
            size = threat.size(point - x[alive])
            fooled, asked = model.confirm(point, y[alive], logits)
            found.queries[alive] += asked
            fooled &= size < found.size[alive]
            found.record(alive, point, size, fooled)
            stands = ~belong(owner[alive], owner[alive[found.size[alive] <= enough]])
            alive, point, gradient, logits = alive[stands], point[stands], gradient[stands], logits[stands]
            if len(alive) == 0:
                return
            point = self._step(x[alive], point, gradient, -targeted_margin(logits, pair[alive]), threat)
            fooled = model.fooled(point, y[alive])
            found.queries[alive] += 1
            found.steps[alive] += 1
            found.record(alive, point, threat.size(point - x[alive]), fooled)
            stands = ~belong(owner[alive], owner[alive[found.size[alive] <= enough]])
            alive, point, fooled = alive[stands], point[stands], fooled[stands]
            if len(alive) == 0:
                return
            back = x[alive] + self.beta * (point - x[alive])
            point = torch.where(fooled.view(-1, 1, 1, 1), back, point)

    def _step(self, x: Tensor, point: Tensor, gradient: Tensor, rise: Tensor, threat: Threat) -> Tensor:
        """Return the next point: [n, C, H, W], between those nearest to `point` and to x on the hyperplane."""
        w = gradient.flatten(1)
        here, origin = point.flatten(1), x.flatten(1)
        from_x = rise + (w * (here - origin)).sum(1)
        near = onto_hyperplane(here, w, rise, threat.norm, threat.bounds).view_as(x)
        home = onto_hyperplane(origin, w, from_x, threat.norm, threat.bounds).view_as(x)
        a, b = threat.size(near).clamp_min(1e-8), threat.size(home).clamp_min(1e-8)
        alpha = (a / (a + b)).clamp_max(self.alpha_max).view(-1, 1, 1, 1)
        return ((1 - alpha) * (point + self.eta * near) + alpha * (x + self.eta * home)).clamp(*threat.bounds)


def _within(found: _Search, x: Tensor, threat: Threat) -> Proposal:
    """Propose what was found where it is small enough, elsewhere the nearest legal point to it."""
    legal = (found.size <= threat.eps).view(-1, 1, 1, 1)
    x_adv = torch.where(legal, found.nearest, threat.project(x, found.nearest))
    return Proposal(x_adv, found.queries, found.steps)


@final
@ATTACKS.register("fab-t")
@dataclass(frozen=True, kw_only=True)
class FABTargeted(_Boundary):
    """Fast adaptive boundary attack, targeted (Croce & Hein 2020, arXiv:1907.02044, alg. 1; targets: 2003.01690).

    On purpose different from the released code: an example is left alone once a point inside the threat model
    is found, and the points after the way back count too.

    Args:
        steps: per target and restart, two queries each.
        restarts: walks per target; all but the first begin at a random point.
        targets: how many of the most likely wrong classes.
        alpha_max: the largest weight of the step from x against that from the present point.
        eta: how far a step overshoots the boundary.
        beta: how far it goes back towards x after crossing it, as a share of the way from x.
    """

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        return _within(self._search(model, x, y, threat, rng, enough=threat.eps), x, threat)


@final
@ATTACKS.register("min-norm")
@dataclass(frozen=True, kw_only=True)
class MinNorm(_Boundary):
    """Size of the smallest perturbation that fools the network: FAB-T without a radius, and a final search.

    The judge takes nothing outside of the threat model: ask with an eps as large as the largest distance of
    interest. For an example that falls, the outcome's `distance` is the size of its smallest known perturbation;
    `stats.median_distance` reads the median from a result, and accuracies at smaller radii follow by counting.

    Args:
        steps: per target and restart, two queries each.
        restarts: walks per target; all but the first begin at a random point.
        targets: how many of the most likely wrong classes.
        alpha_max: the largest weight of the step from x against that from the present point.
        eta: how far a step overshoots the boundary.
        beta: how far it goes back towards x after crossing it, as a share of the way from x.
        halvings: bisections between x and the smallest perturbation, one query each; each is kept if it fools.
    """

    halvings: int = 10

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        found = self._search(model, x, y, threat, rng, enough=0.0)
        rows = found.size.isfinite().nonzero().flatten()
        low, high = torch.zeros_like(found.size[rows]), torch.ones_like(found.size[rows])
        far, near = found.nearest[rows], x[rows]
        for _ in range(self.halvings if len(rows) else 0):
            middle = (low + high) / 2
            point = near + middle.view(-1, 1, 1, 1) * (far - near)
            fooled = model.fooled(point, y[rows])
            found.queries[rows] += 1
            found.record(rows, point, threat.size(point - near), fooled)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        return _within(found, x, threat)
