"""Swift: as strong as what it replaces, within its budget, and what it gives up and aims at, by closed forms."""

import functools

import pytest
import torch
from torch import Tensor, nn

from robustbench_bio import load_model
from robustbench_bio.attacks import Proposal, WhiteBoxModel, make
from robustbench_bio.attacks.losses import nearest_targets, probability_margin
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.datasets import load_examples
from robustbench_bio.records.threat import Norm, Threat

#: Dual norms: what a linear function changes by in a unit ball, over the norm of its weights.
DUAL: dict[Norm, float] = {"linf": 1, "l2": 2, "l1": float("inf")}

#: Points of the runs on an example that nothing fools: two first ones, four targets, four restarts of twice the length.
#: Besides, an answer at the end of each of the first two and at x, and a gradient for each class that may be a target.
CHEAP = 2 * 21 + 3
FULL = CHEAP + 9 + 4 * 21 + 4 * 41


class Scaled(nn.Module):
    """A network whose logits are multiplied: the same decisions, other gradients."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.net(x)  # type: ignore[no-any-return]


@functools.cache
def right_digits(name: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of the zoo and the first n test digits that it gets right."""
    data, net = load_examples("digits", "test"), load_model(name)
    x, y = torch.from_numpy(data.x[: n + 30]).float() / 255, torch.from_numpy(data.y[: n + 30])
    right = ~WhiteBoxModel(net).fooled(x, y)
    return net, x[right][:n], y[right][:n]


def attacked(
    net: nn.Module, x: Tensor, y: Tensor, name: str = "swift", threat: Threat | None = None, **params: float
) -> tuple[Tensor, Proposal]:
    """Return who is robust, and the proposal."""
    threat = threat or Threat("linf", 16 / 255)
    white_box = WhiteBoxModel(net)
    proposal = make(name, threat.norm, params).perturb(white_box, x, y, threat, ExampleRng(0, range(len(y))))
    return ~white_box.fooled(proposal.x_adv, y), proposal


def linear(classes: int = 6) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A linear classifier, and sixty inputs with its own answers, far enough from the box to be free of it."""
    generator = torch_generator("linear")
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).eval()
    net[1].weight.data = torch.randn(classes, 16, generator=generator)
    net[1].bias.data = torch.randn(classes, generator=generator) / 10
    x = 0.4 + 0.2 * torch.rand(60, 1, 4, 4, generator=generator)
    return net, x, net(x).argmax(1)


def distances(net: nn.Sequential, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """How far each class's boundary is, infinite for the own one: float64 [n, K]."""
    layer = net.double()[1]
    logits, own = net(x.double()), y[:, None]
    away = torch.linalg.vector_norm(layer.weight[y][:, None] - layer.weight, ord=DUAL[norm], dim=2)
    distance = (logits.gather(1, own) - logits) / away
    net.float()
    return distance.detach().scatter(1, own, float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize("radius", [8, 16])
@pytest.mark.parametrize("name", ["pc-cnn", "fa-resnet20", "hebbian-softhebb"])
def test_it_is_not_weaker_than_what_it_replaces(name: str, radius: int) -> None:
    net, x, y = right_digits(name, 64)
    threat = Threat("linf", radius / 255)
    robust, proposal = attacked(net, x, y, threat=threat)
    assert 0 < robust.sum() < 64
    for other in ("pgd", "apgd-ce", "apgd-dlr"):
        assert robust.sum() <= attacked(net, x, y, other, threat)[0].sum() + 1
    # Rounding may have a narrow lead put to the network once more.
    assert proposal.queries[robust].max() <= FULL + 2


def test_an_image_costs_no_more_than_its_rounds() -> None:
    net, x, y = right_digits("pc-cnn", 32)
    robust, proposal = attacked(net, x, y)
    assert 8 < robust.sum() < 28
    costs = set(proposal.queries[robust].tolist())
    assert costs == {CHEAP, FULL}
    assert (proposal.queries[~robust] < FULL).all()
    # What is given up is none that the whole attack would have fooled.
    whole, _ = attacked(net, x, y, hopeless=1e9)
    assert torch.equal(robust, whole)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_exact_on_a_linear_classifier(norm: Norm) -> None:
    net, x, y = linear()
    distance = distances(net, x, y, norm).amin(1)
    threat = Threat(norm, distance.median().item() * 1.01)
    robust, proposal = attacked(net, x, y, threat=threat)
    sure = (distance / threat.eps - 1).abs() > 0.03
    assert sure.sum() > 50
    assert torch.equal(robust[sure], (distance > threat.eps)[sure])
    far = distance > 2 * threat.eps
    assert far.any()
    assert (proposal.queries[far] == CHEAP).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_targets_come_by_the_distance_of_their_boundaries(norm: Norm) -> None:
    net, x, y = linear(classes=14)
    logits = net(x).detach()
    likely = logits.scatter(1, y[:, None], -torch.inf).topk(9).indices
    expected = likely.gather(1, distances(net, x, y, norm).gather(1, likely).argsort(1))[:, :4]
    assert torch.equal(nearest_targets(WhiteBoxModel(net), x, logits, y, Threat(norm, 0.1), 4), expected)
    assert (expected[:, 0] != likely[:, 0]).any()


def test_the_margin_of_probabilities_lies_between_minus_one_and_one() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]]).log().add(7).clamp_min(-50)
    for label, expected in ((0, -1 / 3), (1, 1 / 3), (2, 2 / 3)):
        assert probability_margin(logits, torch.tensor([label])).item() == pytest.approx(expected, abs=1e-6)


def test_no_scale_of_the_logits_hides_a_network() -> None:
    net, x, y = right_digits("pc-cnn", 32)
    plain, scaled = attacked(net, x, y)[0], attacked(Scaled(net, 1e4), x, y)[0]
    assert abs(int(plain.sum()) - int(scaled.sum())) <= 1


@pytest.mark.parametrize("classes", [2, 3])
def test_a_network_of_few_classes_is_attacked_without_a_word(classes: int) -> None:
    net, x, y = linear(classes)
    distance = distances(net, x, y, "linf").amin(1)
    white_box, threat = WhiteBoxModel(net), Threat("linf", distance.median().item())
    proposal = make("swift", "linf", {}).perturb(white_box, x, y, threat, ExampleRng(0, range(60)))
    assert white_box.fooled(proposal.x_adv, y)[distance < 0.97 * threat.eps].all()
    assert white_box.notices == []
