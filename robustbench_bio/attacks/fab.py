"""Fast adaptive boundary attack: the smallest perturbation, by steps onto the linearised decision boundary."""

from dataclasses import dataclass, fields
from typing import ClassVar, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal
from robustbench_bio.attacks.losses import label_target_pairs, likely_targets, targeted_margin
from robustbench_bio.attacks.runs import Runs, border_start, same_example, target_groups
from robustbench_bio.core.parameters import at_least
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
    # The shortest step moves every value that has room in proportion to its slope (l2), or all by the same (linf).
    speed = slope if norm == "l2" else torch.ones_like(slope)
    length, free = torch.zeros_like(rise), room > 0
    while True:
        # What the values at the border cannot rise any more, the free ones must: the step grows, more values arrive.
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
    # In l1 a unit of length is worth most where the slope is largest, so nobody else moves while it has room.
    gain = steep * free
    missing = rise[:, None] - (gain.cumsum(1) - gain)
    used = torch.minimum((missing / steep.clamp_min(1e-30)).clamp_min(0), free)
    return torch.zeros_like(used).scatter(1, order, used)


@dataclass
class _Nearest:
    """The smallest perturbation known of each example; all tensors have one row for each.

    Attributes:
        point: the nearest point that fools the network; while there is none the last try, of a random network the one
            that its mean answer judges worst.
        size: its distance, infinite while there is none.
        margin: of the tries at a random network, by its mean answer.
    """

    point: Tensor
    size: Tensor
    margin: Tensor
    queries: Tensor
    steps: Tensor

    @classmethod
    def begin(cls, x: Tensor, y: Tensor, queries: int) -> "_Nearest":
        infinite = torch.full_like(x[:, 0, 0, 0], torch.inf)
        return cls(x.clone(), infinite, -infinite, torch.full_like(y, queries), torch.zeros_like(y))

    def record(self, rows: Tensor, point: Tensor, size: Tensor, fooled: Tensor, margin: Tensor | None = None) -> None:
        """Keep the points that fool the network and are nearer than what is known.

        Where nothing is known, all are kept, or those of larger margin if there is one.
        """
        untold = self.size[rows].isinf()
        if margin is not None:
            untold &= margin > self.margin[rows]
        better = torch.where(fooled, size < self.size[rows], untold)
        self.point[rows[better]] = point[better]
        self.size[rows[better & fooled]] = size[better & fooled]
        if margin is not None:
            self.margin[rows[better]] = margin[better]

    def merge(self, rows: Tensor, runs: "_Nearest", k: int) -> None:
        """Take over what k runs on each of some examples have found, all first runs before all second ones."""
        n = len(rows)
        smallest, run = runs.size.view(k, n).min(0)
        margin, worst = runs.margin.view(k, n).max(0)
        fooled = smallest.isfinite()
        weighed = margin.isfinite().any()
        run = torch.where(fooled | ~weighed, run, worst)
        point = runs.point.view(k, n, *runs.point.shape[1:])[run, torch.arange(n, device=rows.device)]
        self.record(rows, point, smallest, fooled, margin if weighed else None)
        self.queries[rows] += runs.queries.view(k, n).sum(0)
        self.steps[rows] += runs.steps.view(k, n).sum(0)


@dataclass(frozen=True, kw_only=True)
class _Boundary(Attack):
    """What fab-t and min-norm share: runs along the boundary towards one likely class after the other."""

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
    ) -> _Nearest:
        """Look for the smallest perturbation; an example is left alone once one of size <= enough is known."""
        pairs = label_target_pairs(y, likely_targets(model, x, y, self.targets))
        nearest = _Nearest.begin(x, y, queries=model.answer_cost)
        for targets in target_groups(len(pairs), x):
            for restart in range(self.restarts):
                rows = (nearest.size > enough).nonzero().flatten()
                if len(rows) == 0:
                    return nearest
                starts = [x[rows]] * len(targets)
                if restart > 0:
                    # Nothing beyond the smallest known perturbation is of interest, so begin well inside of it.
                    radius = nearest.size[rows].clamp_max(threat.eps) / 2
                    draws = [rng.take(rows).child(f"{target}/{restart}") for target in targets]
                    starts = [border_start(threat, x[rows], draw, radius) for draw in draws]
                runs = Runs.towards(x[rows], y[rows], starts, pairs[targets][:, rows])
                nearest.merge(rows, self._run(model, runs, threat, enough), len(targets))
        return nearest

    def _run(self, model: WhiteBoxModel, runs: Runs, threat: Threat, enough: float) -> _Nearest:
        """Step onto the linearised boundary, biased to x, and back inside whenever it is crossed.

        Both passes of a step test a point: after the step, and after the way back. The released code tests the
        first only; a point that it passes over may be the smallest.
        """
        x, y, point, pairs, example = runs
        nearest = _Nearest.begin(x, y, queries=0)
        active = torch.arange(len(y), device=y.device)

        def goes_on() -> Tensor:
            return ~same_example(example[active], nearest.size[active] <= enough)

        for _ in range(self.steps):
            gradient, logits = model.gradient(point, pairs[active], targeted_margin)
            fooled, asked = model.confirm(point, y[active], logits)
            nearest.queries[active] += model.gradient_cost + asked * model.answer_cost
            # The logits of a few draws do not weigh a try.
            unweighed = -torch.inf * torch.ones_like(nearest.margin[active]) if model.random else None
            nearest.record(active, point, threat.size(point - x[active]), fooled, unweighed)
            on = goes_on()
            active, point, gradient, logits = active[on], point[on], gradient[on], logits[on]
            if len(active) == 0:
                break
            point = self._step(x[active], point, gradient, -targeted_margin(logits, pairs[active]), threat)
            # A step to the boundary of a random network lands amid its noise: what counts is the worst point in reach.
            point = threat.project(x[active], point) if model.random else point
            margin, fooled = model.lead(point, y[active]) if model.random else (None, model.fooled(point, y[active]))
            nearest.queries[active] += model.answer_cost
            nearest.steps[active] += 1
            nearest.record(active, point, threat.size(point - x[active]), fooled, margin)
            on = goes_on()
            active, point, fooled = active[on], point[on], fooled[on]
            if len(active) == 0:
                break
            # Who has crossed the boundary goes part of the way back to x: the next step starts from a smaller size.
            back = x[active] + self.beta * (point - x[active])
            point = torch.where(fooled.view(-1, 1, 1, 1), back, point)
        return nearest

    def _step(self, x: Tensor, point: Tensor, gradient: Tensor, rise: Tensor, threat: Threat) -> Tensor:
        """Return the next point: [n, C, H, W], between those nearest to `point` and to x on the hyperplane."""
        w, start, origin = gradient.flatten(1), point.flatten(1), x.flatten(1)
        # The hyperplane is where the margin, linearised at `point`, is 0: seen from x it rises by another amount.
        rise_from_x = rise + (w * (start - origin)).sum(1)
        from_point = onto_hyperplane(start, w, rise, threat.norm, threat.bounds).view_as(x)
        from_x = onto_hyperplane(origin, w, rise_from_x, threat.norm, threat.bounds).view_as(x)
        # The farther away `point` is from the hyperplane, the more the step is drawn to where x would cross it.
        a, b = threat.size(from_point).clamp_min(1e-8), threat.size(from_x).clamp_min(1e-8)
        alpha = (a / (a + b)).clamp_max(self.alpha_max).view(-1, 1, 1, 1)
        # Overshooting by eta lands on the far side although the boundary is not quite its linearisation.
        step = (1 - alpha) * (point + self.eta * from_point) + alpha * (x + self.eta * from_x)
        return step.clamp(*threat.bounds)


def _within(nearest: _Nearest, x: Tensor, threat: Threat) -> Proposal:
    """Propose what is small enough, elsewhere the nearest legal point to it."""
    legal = (nearest.size <= threat.eps).view(-1, 1, 1, 1)
    x_adv = torch.where(legal, nearest.point, threat.project(x, nearest.point))
    return Proposal(x_adv, nearest.queries, nearest.steps)


@final
@ATTACKS.register("fab-t")
@dataclass(frozen=True, kw_only=True)
class FABTargeted(_Boundary):
    """Fast adaptive boundary attack, targeted (Croce & Hein 2020, arXiv:1907.02044, alg. 1; targets: 2003.01690).

    On purpose different from the released code: an example is left alone once a point inside the threat model
    is found, and the points after the way back count too.

    Args:
        steps: per target and restart, two queries each.
        restarts: runs per target; all but the first begin at a random point.
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
    interest. For an example that is fooled, the outcome's `distance` is the size of its smallest known perturbation;
    `evaluation.worst_case.median_distance` reads the median from a result, and accuracies at smaller radii follow by
    counting.

    Args:
        steps: per target and restart, two queries each.
        restarts: runs per target; all but the first begin at a random point.
        targets: how many of the most likely wrong classes.
        alpha_max: the largest weight of the step from x against that from the present point.
        eta: how far a step overshoots the boundary.
        beta: how far it goes back towards x after crossing it, as a share of the way from x.
        halvings: bisections between x and the smallest perturbation, one query each; each is kept if it fools.
    """

    halvings: int = 10

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        nearest = self._search(model, x, y, threat, rng, enough=0.0)
        rows = nearest.size.isfinite().nonzero().flatten()
        # x is classified right and the nearest known point is not: somewhere between them lies a boundary.
        low, high = torch.zeros_like(nearest.size[rows]), torch.ones_like(nearest.size[rows])
        delta = nearest.point[rows] - x[rows]
        for _ in range(self.halvings if len(rows) else 0):
            middle = (low + high) / 2
            point = x[rows] + middle.view(-1, 1, 1, 1) * delta
            fooled = model.fooled(point, y[rows])
            nearest.queries[rows] += model.answer_cost
            nearest.record(rows, point, threat.size(point - x[rows]), fooled)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        return _within(nearest, x, threat)
