import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.records.threat import NORMS, Norm, Threat

SHAPE = (3, 4, 5)
#: Norms with a projection, a random start and a steepest direction.
SMOOTH: tuple[Norm, ...] = ("linf", "l2", "l1")


def images(n: int, *key: str, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch_generator(*key))


def noise(n: int, *key: str, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(n, *shape, generator=torch_generator(*key))


def p_norm(delta: Tensor, norm: Norm) -> Tensor:
    """The norms of Threat.size by torch.linalg, in float64; l0 by a loop."""
    delta = delta.double()
    if norm == "l0":
        return torch.tensor([float((d != 0).any(0).sum()) for d in delta])
    return torch.linalg.vector_norm(delta.flatten(1), {"linf": math.inf, "l2": 2, "l1": 1}[norm], dim=1)


# --- sizes and membership -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_sizes_are_those_of_linear_algebra(norm: Norm) -> None:
    delta = noise(20, "delta") * (images(20, "mask") < 0.3)
    torch.testing.assert_close(Threat(norm, 1.0).size(delta), p_norm(delta, norm).float())


def test_sizes_of_one_known_perturbation() -> None:
    delta = torch.zeros(1, 3, 2, 2)
    delta[0, :, 0, 0] = torch.tensor([0.3, 0.0, -0.4])  # one pixel, two of its channels
    delta[0, 1, 1, 1] = 1.2
    expected = {"linf": 1.2, "l2": 1.3, "l1": 1.9, "l0": 2.0}
    assert {norm: Threat(norm, 1.0).size(delta).item() for norm in NORMS} == pytest.approx(expected)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5), ("l1", 12.0)])
def test_the_border_belongs_to_the_ball_and_one_percent_more_does_not(norm: Norm, eps: float) -> None:
    shape = (3, 32, 32)
    x = 0.25 + 0.5 * images(50, "x", shape=shape)
    direction = noise(50, "direction", shape=shape)
    if norm == "linf":
        direction = direction.sign()
    direction = direction / p_norm(direction, norm).view(-1, 1, 1, 1)
    threat = Threat(norm, eps)
    for factor, legal in ((0.5, True), (1.0, True), (1.01, False), (3.0, False)):
        x_adv = (x + factor * eps * direction).float()
        assert threat.contains(x, x_adv).tolist() == [legal] * 50, factor


def test_adding_eps_in_float32_stays_in_the_linf_ball() -> None:
    x = images(1000, "x")
    for eps in (1 / 255, 8 / 255, 0.3):
        assert Threat("linf", eps).contains(x, (x + eps).clamp(0, 1)).all()
        assert Threat("linf", eps).contains(x, (x - eps).clamp(0, 1)).all()


def test_l0_counts_pixels_without_slack() -> None:
    x = images(1, "x")
    one, two = x.clone(), x.clone()
    one[:, :, 0, 0] = 1 - one[:, :, 0, 0]
    two[:, :, 0, 0] = 1 - two[:, :, 0, 0]
    two[:, 0, 3, 4] += 1e-6
    assert Threat("l0", 1).contains(x, one).item()
    assert not Threat("l0", 1).contains(x, two).item()


@pytest.mark.parametrize("norm", NORMS)
def test_membership_is_decided_for_each_example(norm: Norm) -> None:
    x = torch.full((4, *SHAPE), 0.5)
    x_adv = x.clone()
    x_adv[1] = 0.9
    x_adv[3, 0, 0, 0] = math.nan
    assert Threat(norm, 0.1).contains(x, x_adv).tolist() == [True, False, True, False]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [-1e-6, 1 + 1e-6])
def test_nothing_outside_the_box_is_legal(norm: Norm, value: float) -> None:
    x = torch.full((1, *SHAPE), float(round(value)))
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] = value
    assert not Threat(norm, 5.0).contains(x, x_adv).item()
    assert Threat(norm, 5.0, bounds=(-1.0, 2.0)).contains(x, x_adv).item()


def test_wrong_norms_and_radii_are_refused() -> None:
    with pytest.raises(UserError, match="unknown norm 'l3': did you mean"):
        Threat("l3", 0.1)  # type: ignore[arg-type]
    for eps in (-0.1, math.nan):
        with pytest.raises(UserError, match="expected eps >= 0"):
            Threat("linf", eps)


def test_a_ball_without_a_geometry_says_so() -> None:
    threat, x = Threat("l0", 1.0), images(2, "x")
    for call in (
        lambda: threat.project(x, x),
        lambda: threat.random_start(x, ExampleRng(0, [0, 1])),
        lambda: threat.steepest(x),
    ):
        with pytest.raises(NotImplementedError, match="l0"):
            call()


# --- projection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", SMOOTH)
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.03, 0.5, 5.0])
def test_a_projection_is_legal_idempotent_and_leaves_legal_points_alone(norm: Norm, eps: float) -> None:
    threat, x = Threat(norm, eps), images(40, "x")
    once = threat.project(x, x + noise(40, "far"))
    assert threat.contains(x, once).all()
    slack = 1e-5 if norm == "l1" else 1e-6  # sixty values add up their rounding
    assert (threat.size(once.double() - x.double()) <= eps * (1 + slack) + slack).all()
    torch.testing.assert_close(threat.project(x, once), once, rtol=0, atol=1e-6)
    inside = (x + 0.9 * eps * threat.steepest(noise(40, "near"))).clamp(0, 1)
    torch.testing.assert_close(threat.project(x, inside), inside, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", SMOOTH)
def test_at_eps_zero_everything_is_projected_onto_x_exactly(norm: Norm) -> None:
    x = images(40, "x")
    assert torch.equal(Threat(norm, 0.0).project(x, x + noise(40, "far")), x)
    assert torch.equal(Threat(norm, 0.0).random_start(x, ExampleRng(0, range(40))), x)


def test_linf_projects_onto_the_nearest_point_of_ball_and_box() -> None:
    # Every point of a fine lattice over ball ∩ box, for three inputs: one inside, two at corners of the box.
    eps, ticks = 0.2, 21
    threat = Threat("linf", eps)
    for centre in ((0.5, 0.6), (0.05, 0.95), (0.0, 1.0)):
        x = torch.tensor(centre, dtype=torch.float64).view(1, 1, 1, 2)
        sides = [torch.linspace(max(c - eps, 0), min(c + eps, 1), ticks, dtype=torch.float64) for c in centre]
        lattice = torch.cartesian_prod(*sides)
        for target in itertools.product((-0.3, 0.1, 0.45, 0.7, 1.4), repeat=2):
            wanted = torch.tensor(target, dtype=torch.float64)
            found = threat.project(x, wanted.view_as(x)).flatten()
            nearest = torch.linalg.vector_norm(lattice - wanted, dim=1).min()
            assert torch.linalg.vector_norm(found - wanted) <= nearest + 1e-12


def test_l2_projects_onto_the_nearest_point_of_the_ball_and_then_of_the_box() -> None:
    threat, x = Threat("l2", 0.5), images(40, "x", shape=(1, 2, 3)).double()
    wanted = x + noise(40, "far", shape=(1, 2, 3)).double()
    delta = wanted - x
    length = p_norm(delta, "l2").view(-1, 1, 1, 1)
    on_ball = torch.where(length > 0.5, x + 0.5 * delta / length, wanted)
    torch.testing.assert_close(threat.project(x, wanted), on_ball.clamp(0, 1))
    assert (p_norm(threat.project(x, wanted) - x, "l2") <= 0.5 + 1e-12).all()


@pytest.mark.parametrize("eps", [0.05, 0.5, 2.0, 20.0])
def test_l1_projects_onto_the_nearest_point_of_ball_and_box(eps: float) -> None:
    x = images(60, "x").double()
    x[:20] = x[:20].round()
    wanted = x + noise(60, "far").double() * torch.logspace(-2, 1, 60).double().view(-1, 1, 1, 1)
    found = Threat("l1", eps).project(x, wanted)
    assert (p_norm(found - x, "l1") <= eps + 1e-9).all()
    # p is the nearest point of a convex set iff ⟨wanted − p, z − p⟩ ≤ 0 for all its z. The z that makes this largest
    # moves values to the border of the box, the most rewarding first, until eps is used up.
    pull = wanted - found
    room = torch.where(pull > 0, 1 - x, x).flatten(1)
    reward = pull.abs().flatten(1)
    order = reward.argsort(dim=1, descending=True)
    room, reward = room.gather(1, order), reward.gather(1, order)
    spent = torch.minimum(room, (eps - (room.cumsum(1) - room)).clamp_min(0))
    best = (reward * spent).sum(1)
    torch.testing.assert_close(best, (pull * (found - x)).flatten(1).sum(1), rtol=1e-9, atol=1e-9)
    assert ((found - wanted).abs().amax((1, 2, 3)) > 1e-3).any()


@pytest.mark.parametrize("norm", SMOOTH)
def test_other_bounds_are_kept(norm: Norm) -> None:
    threat = Threat(norm, 1.0, bounds=(-0.5, 0.25))
    x = images(10, "x") * 0.75 - 0.5
    found = torch.cat([threat.project(x, x + noise(10, "far")), threat.random_start(x, ExampleRng(0, range(10)))])
    assert found.min() == -0.5
    assert found.max() == 0.25


# --- random start -------------------------------------------------------------------------------------------


def starts(threat: Threat, n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Perturbations drawn around the middle of the box, where nothing is cut."""
    x = torch.full((n, *shape), 0.5, dtype=torch.float64)
    return threat.random_start(x, ExampleRng(seed, range(n))) - x


def test_linf_starts_are_uniform_in_the_cube() -> None:
    delta = starts(Threat("linf", 0.1), 3000, (2, 1, 2)).flatten(1)
    for i in range(4):
        assert stats.kstest(delta[:, i].numpy(), stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    assert torch.corrcoef(delta.T).fill_diagonal_(0).abs().max() < 0.08


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 2, 2)])
def test_l2_starts_are_uniform_in_the_ball(shape: tuple[int, ...]) -> None:
    eps, d = 0.1, math.prod(shape)
    delta = starts(Threat("l2", eps), 3000, shape).flatten(1)
    radius = delta.norm(dim=1)
    # In d dimensions the ball of radius r holds (r/eps)^d of the volume.
    assert stats.kstest(((radius / eps) ** d).numpy(), "uniform").pvalue > 1e-3
    direction = delta / radius[:, None]
    assert direction.mean(0).abs().max() < 4 / math.sqrt(3000 * d)
    spread = direction.T @ direction / 3000
    torch.testing.assert_close(spread, torch.eye(d).double() / d, rtol=0, atol=0.06 / math.sqrt(d))


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 2, 2)])
def test_l1_starts_are_uniform_in_the_ball(shape: tuple[int, ...]) -> None:
    eps, d = 0.1, math.prod(shape)
    delta = starts(Threat("l1", eps), 3000, shape).flatten(1)
    assert stats.kstest(((delta.abs().sum(1) / eps) ** d).numpy(), "uniform").pvalue > 1e-3
    # One value of a uniform point: P(|v| > t·eps) = (1 − t)^d, either sign alike.
    for values in delta.T:
        assert stats.kstest((values.abs() / eps).numpy(), stats.beta(1, d).cdf).pvalue > 1e-3
        assert abs((values > 0).double().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(3000)


@pytest.mark.parametrize("norm", SMOOTH)
def test_a_start_is_cut_to_the_box_and_legal(norm: Norm) -> None:
    x = images(50, "x").round()
    threat = Threat(norm, 0.5)
    start = threat.random_start(x, ExampleRng(0, range(50)))
    assert threat.contains(x, start).all()
    assert ((start == x).flatten(1).any(1) & (start != x).flatten(1).any(1)).all()


@pytest.mark.parametrize("norm", SMOOTH)
@pytest.mark.usefixtures("global_rng_untouched")
def test_a_start_depends_on_seed_and_id_alone(norm: Norm) -> None:
    x = images(6, "x")
    threat = Threat(norm, 0.1)
    whole = threat.random_start(x, ExampleRng(3, [10, 11, 12, 13, 14, 15]))
    order = torch.tensor([4, 0, 5])
    part = threat.random_start(x[order], ExampleRng(3, [14, 10, 15]))
    torch.testing.assert_close(part, whole[order], rtol=0, atol=1e-7)
    assert (threat.random_start(x, ExampleRng(4, range(10, 16))) != whole).flatten(1).any(1).all()
    same = torch.full_like(x, 0.5)
    drawn = threat.random_start(same, ExampleRng(3, range(6)))
    assert len({tuple(row.tolist()) for row in drawn.flatten(1)}) == 6


# --- steepest direction --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", SMOOTH)
def test_the_steepest_direction_beats_every_other_of_unit_norm(norm: Norm) -> None:
    gradient = noise(8, "gradient").double()
    steepest = Threat(norm, 0.1).steepest(gradient)
    torch.testing.assert_close(p_norm(steepest, norm), torch.ones(8).double())
    climbed = (steepest * gradient).flatten(1).sum(1)
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    torch.testing.assert_close(climbed, p_norm(gradient, dual))  # type: ignore[arg-type]
    for other in noise(500, "directions").double():
        unit = other / p_norm(other[None], norm)
        assert ((unit * gradient).flatten(1).sum(1) < climbed).all()


@pytest.mark.parametrize("norm", SMOOTH)
def test_a_gradient_of_any_size_has_a_finite_steepest_direction(norm: Norm) -> None:
    threat = Threat(norm, 0.1)
    assert torch.equal(threat.steepest(torch.zeros(2, *SHAPE)), torch.zeros(2, *SHAPE))
    for scale in (1e-20, 1e15):
        direction = threat.steepest(noise(4, "gradient") * scale)
        torch.testing.assert_close(p_norm(direction, norm), torch.ones(4).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"norm": "linf", "eps": "8/255"}, "linf 8/255"),
        ({"eps": 8 / 255}, "linf 8/255"),
        ({"norm": "l2", "eps": "0.5"}, "l2 0.5"),
        ({"norm": "l0", "eps": 3}, "l0 3 px"),
    ],
)
def test_a_threat_model_is_read_as_people_write_it(document: dict[str, Any], text: str) -> None:
    threat = Threat.read(document)
    assert str(threat) == text
    assert Threat.read(threat.document()) == threat == Threat.read(threat)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"norm": "l3", "eps": "8/255"}, "unknown norm 'l3'"),
        ({"norm": "linf"}, "expected a threat model such as"),
        ({"eps": "8/255", "bounds": [0, 1]}, "expected a threat model such as"),
        ("linf 8/255", "expected a threat model such as"),
        ({"eps": True}, "expected norm as a text and eps as a number"),
        ({"eps": "8"}, "did you mean 8/255"),
        ({"norm": "l0", "eps": 1.5}, "whole number of pixels"),
        ({"eps": "1e999"}, "expected eps as a number"),
        ({"eps": 10**400}, "too large"),
    ],
)
def test_what_is_no_threat_model_is_refused(document: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Threat.read(document)


@pytest.mark.parametrize(("norm", "farthest"), [("linf", 1), ("l2", 48**0.5), ("l1", 48), ("l0", 16)])
def test_a_radius_beyond_the_farthest_input_is_questioned(norm: Norm, farthest: float) -> None:
    assert Threat(norm, 99).size(torch.ones(1, 3, 4, 4)).item() == pytest.approx(farthest)
    Threat(norm, farthest).check_room((3, 4, 4))
    with pytest.raises(UserError, match=rf"expected eps <= {farthest:g} in {norm} for inputs \(3, 4, 4\), no two"):
        Threat(norm, farthest + 1).check_room((3, 4, 4))


def test_several_radii_share_a_norm() -> None:
    assert Threat.several("linf", "4/255,8/255") == [Threat("linf", 4 / 255), Threat("linf", 8 / 255)]
    with pytest.raises(UserError, match="expected eps > 0, got 0"):
        Threat.several("l2", "0.5,0")
    with pytest.raises(UserError, match="expected each radius once, got 8/255,8/255"):
        Threat.several("linf", "8/255,8/255")
