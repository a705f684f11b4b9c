"""Momentum, noise and transfer beside closed forms, torchattacks and the attacks that they are made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.mi_fgsm import MIFGSM
from robustbench_bio.attacks.noise import Noise
from robustbench_bio.attacks.pgd import PGD
from robustbench_bio.attacks.transfer import Transfer
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.core.stats import wilson
from robustbench_bio.datasets import load_examples
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.nets import Inputs, build
from robustbench_bio.records.threat import Norm, Threat
from robustbench_bio.zoo.loading import load_model, source_network


class Smooth(nn.Module):
    """A small convolutional network in float64 with a gradient that never vanishes."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch_generator("smooth")
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3, generator=generator, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(5, 6 * 36, generator=generator, dtype=torch.float64) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.conv2d(x.double() - 0.5, self.kernel)).flatten(1) @ self.head.T


@pytest.fixture
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    net = Smooth().eval()
    x = torch.rand(20, 2, 8, 8, generator=torch_generator("x"))
    return net, x, net(x).argmax(1)


def digits(n: int) -> tuple[Tensor, Tensor]:
    data = load_examples("digits", "test", n)
    return torch.from_numpy(data.x).float() / 255, torch.from_numpy(data.y)


# --- momentum ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_momentum_iterates_equal_those_of_torchattacks(
    decay: float, problem: tuple[nn.Module, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ta = pytest.importorskip("torchattacks")
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    net, x, y = problem
    x = x.double()
    for steps in range(1, 11):
        other = ta.MIFGSM(net, eps=0.1, alpha=0.03, steps=steps, decay=decay)(x, y)
        attack = MIFGSM(steps=steps, step_size=0.03, decay=decay, early_exit=False)
        proposal = attack.perturb(WhiteBoxModel(net), x, y, Threat("linf", 0.1), ExampleRng(0, range(20)))
        torch.testing.assert_close(proposal.x_adv, other, rtol=0, atol=1e-12)
        assert (proposal.steps == steps).all()


def test_momentum_in_l2_is_the_decayed_sum_by_hand(problem: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = problem
    x = 0.3 + 0.4 * x
    point, sum_ = x.double(), torch.zeros_like(x).double()
    for _ in range(6):
        point.requires_grad_(True)
        loss = nn.functional.cross_entropy(net(point), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        sum_ = 0.7 * sum_ + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        point = point.detach() + 0.5 / 6 * sum_ / torch.linalg.vector_norm(sum_, dim=(1, 2, 3), keepdim=True)
    attack = MIFGSM(steps=6, decay=0.7, early_exit=False)
    proposal = attack.perturb(WhiteBoxModel(net), x, y, Threat("l2", 0.5), ExampleRng(0, range(20)))
    assert ((point > 0) & (point < 1)).all()
    torch.testing.assert_close(proposal.x_adv.double(), point, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_example_that_is_fooled_leaves_the_momentum_of_others_alone(
    norm: Norm, problem: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = problem
    threat = Threat(norm, 0.03 if norm == "linf" else 0.3)
    proposal, whole = (
        MIFGSM(early_exit=early).perturb(WhiteBoxModel(net), x, y, threat, ExampleRng(0, range(20)))
        for early in (True, False)
    )
    robust = ~WhiteBoxModel(net).fooled(proposal.x_adv, y)
    assert 0 < robust.sum() < 20
    assert proposal.steps[~robust].min() < 10
    torch.testing.assert_close(proposal.x_adv[robust], whole.x_adv[robust], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_momentum_on_a_real_network_is_as_strong_as_that_of_torchattacks(
    real_network: tuple[nn.Module, Tensor, Tensor],
) -> None:
    ta = pytest.importorskip("torchattacks")
    resnet, x, y = real_network
    other = ta.MIFGSM(resnet, eps=1 / 255, alpha=0.1 / 255, steps=10)(x, y)
    proposal = MIFGSM().perturb(WhiteBoxModel(resnet), x, y, Threat("linf", 1 / 255), ExampleRng(0, range(64)))
    robust = int((~WhiteBoxModel(resnet).fooled(proposal.x_adv, y)).sum())
    theirs = int((~WhiteBoxModel(resnet).fooled(other, y)).sum())
    assert 0 < robust < 64
    assert robust / 64 <= wilson(theirs, 64).high
    assert robust <= theirs + 1


# --- noise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.5)])
def test_noise_is_uniform_and_stops_at_the_first_point_that_fools(
    norm: Norm, eps: float, problem: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = problem
    threat = Threat(norm, eps)
    proposal = Noise(queries=40).perturb(WhiteBoxModel(net), x, y, threat, ExampleRng(3, range(20)))
    fooled = WhiteBoxModel(net).fooled(proposal.x_adv, y)
    assert 0 < fooled.sum() < 20
    assert (proposal.queries[~fooled] == 40).all()
    assert (proposal.steps == 0).all()
    for row in range(20):
        stream = ExampleRng(3, [row])
        points = [threat.random_start(x[row : row + 1], stream) for _ in range(40)]
        first = next((i for i, p in enumerate(points) if WhiteBoxModel(net).fooled(p, y[row : row + 1]).item()), 39)
        assert torch.equal(proposal.x_adv[row], points[first][0])
        assert proposal.queries[row] == first + 1


# --- transfer ---------------------------------------------------------------------------------------------------


def transferred(net: nn.Module, eps: float, norm: Norm = "linf", n: int = 40, **params: Any) -> Any:
    x, y = digits(n)
    return (
        Transfer(**params)
        .with_networks(source_network)
        .perturb(WhiteBoxModel(net), x, y, Threat(norm, eps), ExampleRng(0, range(n)))
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("attack", "kind"), [("pgd", PGD), ("mi-fgsm", MIFGSM)])
def test_what_is_transferred_is_the_exact_attack_on_the_source(
    attack: Any, kind: Any, norm: Norm, trained_card: Path
) -> None:
    source, target = load_model(str(trained_card)), load_model(str(trained_card))
    with torch.no_grad():
        for p in target.parameters():
            p.mul_(-1)
    x, y = digits(40)
    eps = 0.2 if norm == "linf" else 1.5
    proposal = transferred(target, eps, norm, source=str(trained_card), method=attack, steps=7)
    rng = ExampleRng(0, range(40))
    white_box = kind(steps=7, early_exit=False).perturb(WhiteBoxModel(source), x, y, Threat(norm, eps), rng)
    torch.testing.assert_close(proposal.x_adv, white_box.x_adv)
    assert (proposal.queries == 1).all()
    assert (proposal.steps == 7).all()
    # By the source's true gradient, not by that of its feedback weights.
    rule = kind(steps=7, early_exit=False).perturb(WhiteBoxModel(source, "rule"), x, y, Threat(norm, eps), rng)
    assert not torch.allclose(proposal.x_adv, rule.x_adv, atol=1e-3)


def test_examples_of_a_twin_fool_a_network_better_than_noise(trained_card: Path) -> None:
    net = load_model(str(trained_card))
    accuracy = {
        attack: evaluate(net, digits(150), attack=attack, eps=0.2, **params).robust_accuracy
        for attack, params in (("noise", {}), ("transfer", {"source": str(trained_card)}), ("pgd", {"steps": 40}))
    }
    assert accuracy["transfer"] < accuracy["noise"] - 0.3
    assert accuracy["transfer"] <= accuracy["pgd"] + 0.02


def test_a_source_that_does_not_fit_is_refused(trained_card: Path) -> None:
    net = load_model(str(trained_card))
    with pytest.raises(UserError, match="expected a source for transfer, got none: name a source"):
        transferred(net, 0.1)
    with pytest.raises(UserError, match=r"unknown model 'no-such-model'|no-such-model"):
        transferred(net, 0.1, source="no-such-model")
    with pytest.raises(UserError, match="has no weights for dataset 'cifar10'"):
        transferred(net, 0.1, source=str(trained_card), dataset="cifar10")
    for shape, classes in (((1, 8, 8), 7), ((3, 8, 8), 10), ((1, 9, 9), 10)):
        other = build("mlp", Inputs(shape, classes, (0.5,) * shape[0], (0.5,) * shape[0]), seed=0, hidden=(4,)).eval()
        x = torch.rand(3, *shape, generator=torch_generator("x"))
        with pytest.raises(UserError, match="name a source that was trained on the same data"):
            Transfer(source=str(trained_card)).with_networks(source_network).perturb(
                WhiteBoxModel(other), x, torch.zeros(3, dtype=torch.int64), Threat("linf", 0.1), ExampleRng(0, range(3))
            )


def test_what_must_be_named_is_declared() -> None:
    assert Transfer.needs == ("source",)
    assert PGD.needs == Noise.needs == ()
