"""FAB-T and min-norm: projections, closed forms on linear classifiers, the reference on a real network."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from robustbench_bio.attacks import WhiteBoxModel, make
from robustbench_bio.attacks.fab import MinNorm, onto_hyperplane
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.core.stats import wilson
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.evaluation.worst_case import median_distance
from robustbench_bio.records.threat import Norm, Threat

ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}
DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": math.inf}
NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch_generator("fab", *shape), dtype=torch.float64)


# --- projection onto the hyperplane ------------------------------------------------------------------------------


def problems(n: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points, normals and rises; half of the points lie on borders, some normals have zeros, a few rises are 0."""
    point, w = rand(n, d), torch.randn(n, d, generator=torch_generator("w"), dtype=torch.float64)
    point[: n // 2] = torch.where(point[: n // 2] < 0.3, point[: n // 2].round(), point[: n // 2])
    w[::3] *= rand(n, d)[::3] < 0.7
    rise = w.abs().sum(1) * torch.linspace(-0.35, 0.35, n, dtype=torch.float64)
    rise[::10] = 0
    return point, w, rise


def reachable(point: Tensor, w: Tensor, rise: Tensor) -> Tensor:
    most = torch.maximum(w * (1 - point), -w * point).sum(1)
    least = torch.minimum(w * (1 - point), -w * point).sum(1)
    return (rise < most - 1e-9) & (rise > least + 1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_projection_reaches_the_hyperplane_inside_the_box(norm: Norm) -> None:
    point, w, rise = problems(200, 30)
    d = onto_hyperplane(point, w, rise, norm, (0.0, 1.0))
    assert (point + d).min() >= -1e-12
    assert (point + d).max() <= 1 + 1e-12
    can = reachable(point, w, rise)
    assert can.sum() > 100
    torch.testing.assert_close((w * d).sum(1)[can], rise[can], rtol=1e-9, atol=1e-9)
    assert (d[rise == 0] == 0).all()


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_projection_is_as_short_as_that_of_linear_programming(norm: Norm) -> None:
    point, w, rise = problems(40, 8)
    sizes = torch.linalg.vector_norm(onto_hyperplane(point, w, rise, norm, (0.0, 1.0)), ORDER[norm], dim=1)
    checked = 0
    for p, normal, up, size in zip(point.numpy(), w.numpy(), rise.numpy(), sizes.numpy(), strict=True):
        # Variables: d = plus − minus, and for linf the bound t on both.
        eye, column = np.eye(8), np.ones((8, 1))
        sides = [(0.0, v) for v in 1 - p] + [(0.0, v) for v in p]
        equal = np.concatenate([normal, -normal])
        if norm == "l1":
            solved = linprog(np.ones(16), A_eq=equal[None], b_eq=[up], bounds=sides)
        else:
            above = np.vstack([np.hstack([eye, 0 * eye, -column]), np.hstack([0 * eye, eye, -column])])
            solved = linprog(
                np.r_[np.zeros(16), 1.0], above, np.zeros(16), np.r_[equal, 0.0][None], [up], [*sides, (0, None)]
            )
        if solved.status == 0:
            checked += 1
            assert size == pytest.approx(solved.fun, abs=1e-8)
    assert checked > 20


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_projection_is_that_of_the_reference(norm: Norm) -> None:
    reference = pytest.importorskip("pyautoattack.fab_projections")
    point, w, rise = problems(200, 30)
    can = reachable(point, w, rise)
    point, w, rise = point[can], w[can], rise[can]
    project = getattr(reference, f"projection_{norm}")
    theirs = project(point.float(), w.float(), ((w * point).sum(1) + rise).float()).double()
    mine = onto_hyperplane(point, w, rise, norm, (0.0, 1.0))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_projection_does_not_depend_on_the_length_of_the_normal(norm: Norm) -> None:
    point, w, rise = (v.float() for v in problems(100, 30))
    expected = onto_hyperplane(point, w, rise, norm, (0.0, 1.0))
    for scale in (1e-24, 1e12):
        d = onto_hyperplane(point, w * scale, rise * scale, norm, (0.0, 1.0))
        torch.testing.assert_close(d, expected, rtol=0, atol=1e-4)
    nothing = onto_hyperplane(point, 0 * w, rise, norm, (0.0, 1.0))
    assert (nothing == 0).all()


def test_where_the_hyperplane_is_out_of_reach_the_corner_that_rises_most_is_taken() -> None:
    point, w, _ = problems(20, 6)
    for norm in ORDER:
        d = onto_hyperplane(point, w, torch.full((20,), 1e3, dtype=torch.float64), norm, (0.0, 1.0))
        corner = torch.where(w > 0, 1.0, torch.where(w < 0, 0.0, point))
        torch.testing.assert_close(point + d, corner)


# --- the iterates of the reference ---------------------------------------------------------------------------------


class Wavy(nn.Module):
    """A network with many boundaries around every point, which remembers what it was asked for gradients."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        generator = torch_generator("wavy")
        self.first = nn.Parameter(frequency * torch.randn(48, 24, generator=generator))
        self.last = nn.Parameter(torch.randn(24, 4, generator=generator))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.append(x.detach().clone())
        return torch.sin((x.flatten(1) - 0.5) @ self.first) @ self.last


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, also where either code says float."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.usefixtures("float64")
def test_every_iterate_is_that_of_the_reference(norm: Norm) -> None:
    reference = pytest.importorskip("pyautoattack.fab_pt")
    mine, theirs = Wavy(0.6), Wavy(0.6)
    x = rand(20, 3, 4, 4)
    y = WhiteBoxModel(mine).logits(x).argmax(1)
    other = reference.FABAttack_PT(theirs, norm=NAMES[norm], eps=1e-9, n_iter=12, targeted=True, n_target_classes=2)
    other.perturb(x, y)
    attack = MinNorm(steps=12, targets=2, halvings=0)
    attack.perturb(WhiteBoxModel(mine, traced=False), x, y, Threat(norm, 1e3), ExampleRng(0, range(20)))
    assert len(mine.seen) == len(theirs.seen) == 24
    for a, b in zip(mine.seen, theirs.seen, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert ((mine.seen[11] - x).abs().amax((1, 2, 3)) > 1e-4).all()


# --- closed forms --------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        generator = torch_generator("linear", classes)
        self.w = nn.Parameter(torch.randn(classes, 48, generator=generator))
        self.b = nn.Parameter(-self.w.detach().sum(1) / 2)  # the middle of the box lies on every boundary

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T + self.b

    def distance(self, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """The exact distance to the nearest boundary, without the box: min over classes of |margin| / ‖w‖_q."""
        z = self(x).double()
        lead = z.gather(1, y[:, None]) - z
        length = torch.linalg.vector_norm((self.w[y][:, None] - self.w[None]).double(), DUAL[norm], dim=2)
        return (lead / length).scatter(1, y[:, None], torch.inf).amin(1).detach()


def near_the_middle(net: nn.Module, n: int = 40) -> tuple[Tensor, Tensor]:
    x = (0.45 + 0.1 * rand(n, 3, 4, 4)).float()
    return x, WhiteBoxModel(net).logits(x).argmax(1)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_min_norm_finds_the_distance_to_the_boundary_of_a_linear_classifier(norm: Norm, classes: int) -> None:
    net = Linear(classes).eval()
    x, y = near_the_middle(net)
    x, y = (x[::2], y[::2]) if norm == "l1" else (x, y)
    exact = net.distance(x, y, norm)
    if norm == "l1":  # one value takes the whole step: only where it has the room
        roomy = exact < 0.4
        x, y, exact = x[roomy], y[roomy], exact[roomy]
    assert len(y) >= 10
    result = evaluate(net, (x, y), attack="min-norm", norm=norm, eps=1.0 if norm == "linf" else 6.9, steps=20)
    distance = torch.tensor(result.outcomes["distance"].to_numpy(), dtype=torch.float64)
    assert result.robust_accuracy == 0
    torch.testing.assert_close(distance, exact, rtol=2e-3, atol=1e-6)
    assert (distance >= exact * (1 - 1e-4)).all()
    assert median_distance(result) == pytest.approx(exact.quantile(0.5).item(), rel=5e-3)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_decides_at_a_radius_as_the_closed_form_does(norm: Norm) -> None:
    net = Linear(5).eval()
    x, y = near_the_middle(net)
    exact = net.distance(x, y, norm)
    eps = exact.quantile(0.6).item()
    result = evaluate(net, (x, y), attack="fab-t", norm=norm, eps=eps, steps=30)
    robust = torch.tensor(result.outcomes["robust"].to_numpy())
    assert robust[exact > eps * 1.001].all()
    assert not robust[exact < eps * 0.99].any()
    # Whoever is fooled is left alone: robust examples have runs towards all four classes.
    steps = torch.tensor(result.outcomes["steps"].to_numpy())
    assert (steps[robust] == 4 * 30).all()
    assert (steps[~robust] < 4 * 30).double().mean() > 0.9
    at_once = ~robust & (steps == 1)
    assert at_once.any()
    queries = torch.tensor(result.outcomes["queries"].to_numpy())
    assert (queries[at_once] == 3).all()


def test_the_median_distance_counts_wrong_examples_as_zero_and_survivors_as_infinite() -> None:
    net = Linear(5).eval()
    x, y = near_the_middle(net)
    wrong = torch.arange(40) < 8
    exact = net.distance(x, y, "l2").masked_fill(wrong, 0)
    given = torch.where(wrong, (y + 1) % 5, y)
    eps = exact.quantile(0.8).item()
    result = evaluate(net, (x, given), attack="min-norm", norm="l2", eps=eps, steps=10)
    assert result.outcomes["clean"].sum() == 32
    assert median_distance(result) == pytest.approx(exact.quantile(0.5).item(), rel=1e-2)
    small = evaluate(net, (x, given), attack="min-norm", norm="l2", eps=exact.quantile(0.3).item(), steps=10)
    assert median_distance(small) == math.inf
    none = evaluate(net, (x, (y + 1) % 5), attack="min-norm", norm="l2", eps=1.0, steps=2)
    assert median_distance(none) == 0


def test_the_final_search_never_enlarges_what_was_found() -> None:
    net = Linear(5).eval()
    x, y = near_the_middle(net)
    sizes = []
    for halvings in (0, 3, 12):
        attack = MinNorm(steps=4, halvings=halvings)
        proposal = attack.perturb(WhiteBoxModel(net), x, y, Threat("l2", 50.0), ExampleRng(0, range(40)))
        assert WhiteBoxModel(net).fooled(proposal.x_adv, y).all()
        sizes.append(Threat("l2", 50.0).size(proposal.x_adv - x))
    assert (sizes[1] <= sizes[0]).all()
    assert (sizes[2] <= sizes[1]).all()
    assert (sizes[2] < sizes[0]).any()


def test_more_restarts_never_enlarge_the_perturbation() -> None:
    net = Wavy(6.0).eval()
    x = rand(40, 3, 4, 4).float()
    y = WhiteBoxModel(net).logits(x).argmax(1)
    sizes = []
    for restarts in (1, 4):
        attack = MinNorm(steps=5, targets=1, halvings=0, restarts=restarts)
        proposal = attack.perturb(WhiteBoxModel(net), x, y, Threat("l2", 5.0), ExampleRng(0, range(40)))
        assert (proposal.steps == 5 * restarts).all()
        fooled = WhiteBoxModel(net).fooled(proposal.x_adv, y)
        sizes.append(Threat("l2", 5.0).size(proposal.x_adv - x).masked_fill(~fooled, torch.inf))
    assert sizes[0].isfinite().sum() > 30
    assert (sizes[1] <= sizes[0]).all()
    assert (sizes[1] < sizes[0] - 1e-6).any()


def test_parameters_are_checked() -> None:
    for params, message in (
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"targets": 0}, "expected targets >= 1, got 0"),
        ({"eta": 0.9}, "expected eta >= 1, got 0.9"),
        ({"beta": -0.1}, "expected beta >= 0, got -0.1"),
    ):
        with pytest.raises(UserError, match=message):
            make("fab-t", "linf", params)


# --- the reference on a real network -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 1 / 255), ("linf", 2 / 255), ("l2", 0.25)])
def test_robust_accuracy_on_a_real_network_is_not_above_the_reference(
    norm: Norm, eps: float, real_network: tuple[nn.Module, Tensor, Tensor]
) -> None:
    reference = pytest.importorskip("pyautoattack.fab_pt")
    net, x, y = real_network
    right = ~WhiteBoxModel(net).fooled(x, y)
    other = reference.FABAttack_PT(net, norm=NAMES[norm], eps=eps, n_iter=20, targeted=True, n_target_classes=9)
    theirs = (~WhiteBoxModel(net).fooled(other.perturb(x, y), y) & right).sum().item()
    result = evaluate(net, (x, y), attack="fab-t", norm=norm, eps=eps, steps=20)
    robust = round(result.robust_accuracy * 64)
    assert robust / 64 <= wilson(theirs, 64).high
    assert robust <= theirs + 3
