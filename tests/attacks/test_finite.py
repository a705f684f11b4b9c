"""Slopes that are infinite or undefined at some pixels stop neither the attack on that image nor on others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.diagnosis.diagnose import diagnose
from robustbench_bio.diagnosis.differences import finite_difference_error
from robustbench_bio.evaluation.evaluate import evaluate


class Before(nn.Module):
    """A network and what is done to its inputs."""

    def __init__(self, net: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.function = net, function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.function(x))  # type: ignore[no-any-return]


def gamma(x: Tensor) -> Tensor:
    return x ** (1 / 2.2)


class Undefined(torch.autograd.Function):
    """The identity, without a slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * torch.nan


def untraceable(x: Tensor) -> Tensor:
    return Undefined.apply(x) if x.sum() > -1 else x  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    from robustbench_bio import load_data, load_model

    return load_model("pc-cnn"), *load_data("digits", n_examples=40)


def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def test_infinite_slopes_keep_their_sign_and_undefined_ones_are_zero() -> None:
    net, x, y = linear(), torch.full((3, 1, 4, 4), 0.25), torch.tensor([0, 1, 2])
    x[1, 0, 0, 0] = 0
    access = WhiteBoxModel(Before(net, torch.sqrt))
    found = access.gradient(x, y, cross_entropy).gradient
    direct = WhiteBoxModel(net).gradient(x.sqrt(), y, cross_entropy).gradient
    torch.testing.assert_close(found[[0, 2]], direct[[0, 2]])  # d sqrt(x) / dx is 1 at a quarter
    torch.testing.assert_close(found[1].flatten()[1:], direct[1].flatten()[1:])
    assert found[1, 0, 0, 0] == direct[1, 0, 0, 0].sign() * direct[1].flatten()[1:].abs().max()
    assert [notice[:29] for notice in access.notices] == ["1 of 3 gradients were not fini"[:29]]
    access.gradient(x[1:], y[1:], cross_entropy)
    assert [notice[:6] for notice in access.notices] == ["2 of 5"]

    blind = WhiteBoxModel(Before(net, untraceable)).gradient(x, y, cross_entropy)
    assert blind.gradient.abs().max() == 0


def test_one_broken_image_changes_nothing_for_the_others(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = trained
    # Every slope of an image whose first pixel is above a half is NaN, and only one is.
    x = x.clone()
    x[:, 0, 0, 0] = 0
    x[3, 0, 0, 0] = 1

    def breaks(x: Tensor) -> Tensor:
        mark = x[:, :, :1, :1] + 0 * x.sum((2, 3), keepdim=True)
        return x + 0 * ((1 - mark) * (mark < 0.5)).sqrt()

    lame = WhiteBoxModel(Before(net, breaks)).gradient(x, y, cross_entropy).gradient.flatten(1).abs().amax(1) == 0
    assert lame.nonzero().tolist() == [[3]]
    broken = evaluate(Before(net, breaks), (x, y), eps=24 / 255, steps=5).outcomes
    whole = evaluate(net, (x, y), eps=24 / 255, steps=5).outcomes
    others = broken.index != 3
    assert broken[others].equals(whole[others])
    assert 0 < whole.robust[others].mean() < 1


def test_a_gamma_curve_makes_no_network_robust(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = trained
    y = Before(net, gamma)(x).argmax(1)
    assert (x == 0).flatten(1).any(1).all()
    threat: dict[str, Any] = {"norm": "linf", "eps": 8 / 255, "steps": 20}
    curved = evaluate(Before(net, gamma), (x, y), **threat)
    # Of equal reach but without black pixels: a curve that is steep there, not infinitely so.
    steep = evaluate(Before(net, lambda x: (x + 1e-4) ** (1 / 2.2)), (x, y), **threat)
    assert curved.robust_accuracy <= steep.robust_accuracy + 0.05
    assert any("gradients were not finite" in notice for notice in curved.provenance.notices)


@pytest.mark.parametrize("function", [gamma, untraceable], ids=lambda f: f.__name__)
def test_a_diagnosis_copes_with_slopes_that_are_not_finite(
    trained: tuple[nn.Module, Tensor, Tensor], function: Callable[[Tensor], Tensor]
) -> None:
    net, x = Before(trained[0], function), trained[1]
    report = diagnose(net, (x, net(x).argmax(1)), eps=8 / 255, steps=4, queries=20)
    assert ("untraceable" in report.flags) == (function is untraceable)
    assert ("finite-differences" in report.flags) == (function is untraceable)


def test_finite_differences_hold_where_there_is_a_slope(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = trained
    assert finite_difference_error(Before(net, gamma), x[:4], y[:4]) < 1e-3
    assert finite_difference_error(Before(net, untraceable), x[:4], y[:4]) == 1
