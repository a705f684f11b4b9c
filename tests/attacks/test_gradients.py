"""Expectations over random networks and surrogates for steps: what is averaged, and against what it is held."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_bio import evaluate
from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.access.mean_prediction import MeanPrediction, is_random, seeded_by_input
from robustbench_bio.attacks.access.surrogate import has_steps, with_surrogate
from robustbench_bio.attacks.access.trace import trace
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets.surrogates import SURROGATES
from robustbench_bio.records.gradient import Gradient

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


class Linear(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        generator = torch_generator(0, "linear")
        self.weight = nn.Parameter(torch.randn(classes, 16, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Noisy(Linear):
    """Logits that move by Gaussian noise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 3 * torch.randn(len(x), len(self.weight))


class Coin(nn.Module):
    """Class 1 with probability 0.3, whatever the input: a single answer is luck."""

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.rand(len(x)) < 0.3
        return torch.stack([(~heads).float(), heads.float()], 1) * 10 + 0 * x.flatten(1)[:, :2]


class Spikes(Linear):
    """Two steps of a leaky neuron with threshold 0.5 and hard reset, then the mean spikes, weighted."""

    def forward(self, x: Tensor) -> Tensor:
        current, v, spikes = super().forward(x), torch.zeros(1), torch.zeros(1)
        for _ in range(2):
            v = v + (current - v) / 2
            fired = (v > 0.5).float()
            v, spikes = v * (1 - fired), spikes + fired
        return spikes


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch_generator(0, "images"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("exact", ("exact", "", 0)),
        ("rule", ("rule", "", 0)),
        ("eot:8", ("exact", "", 8)),
        ("rule+eot:3", ("rule", "", 3)),
        ("surrogate:arctan", ("surrogate", "arctan", 0)),
        ("surrogate:arctan+eot:2", ("surrogate", "arctan", 2)),
    ],
)
def test_a_gradient_is_read_and_written(text: str, parts: tuple[Any, ...]) -> None:
    assert Gradient.read(text) == Gradient(*parts)
    assert str(Gradient.read(text)) == text


def test_exact_with_draws_has_one_spelling() -> None:
    assert str(Gradient.read("exact+eot:4")) == "eot:4"


@pytest.mark.parametrize(
    "text", ["", "true", "eot", "eot:0", "eot:-1", "eot:1.5", "eot:99999", "eot:²", "rule+", "rule+eot", "surrogate",
             "surrogate:", "rule:x", "exact+rule", "eot:2+eot:2", "rule+eot:2+eot:3", "both"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected a gradient such as"):
        Gradient.read(text)


def test_eot_averages_the_gradients_of_the_draws() -> None:
    x, y = images(), torch.tensor([0, 1, 2, 0, 1, 2])
    net = Noisy().eval()
    found = WhiteBoxModel(net, "eot:5", seed=3).gradient(x, y, cross_entropy)
    expected = torch.zeros_like(x)
    probabilities = torch.zeros(6, 3)
    with seeded_by_input("gradient", 3, x=x):
        for _ in range(5):
            point = x.clone().requires_grad_(True)
            logits = net(point)
            expected += torch.autograd.grad(cross_entropy(logits, y).sum(), point)[0] / 5
            probabilities += logits.detach().softmax(1) / 5
    torch.testing.assert_close(found.gradient, expected)
    torch.testing.assert_close(found.logits.exp(), probabilities)


def test_the_mean_over_draws_comes_closer_to_the_expectation() -> None:
    x, y = images(1), torch.tensor([0])
    net = Noisy().eval()
    clean = Linear()(x)
    noise = torch.randn(20_000, 3, generator=torch_generator(0, "noise"))
    inner = ((clean + 3 * noise).softmax(1) - torch.eye(3)[0]).mean(0)  # E softmax(z) − onehot
    expected = (inner @ net.weight.detach()).view(1, 1, 4, 4)
    errors = [
        (WhiteBoxModel(net, f"eot:{k}", seed=1).gradient(x, y, cross_entropy).gradient - expected).norm().item()
        for k in (1, 400)
    ]
    assert errors[1] < 0.1 * expected.norm()
    assert errors[1] < errors[0]


def test_a_random_network_is_judged_by_its_mean_answer() -> None:
    x = images(200)
    assert is_random(Coin().eval(), x)
    assert not is_random(Linear().eval(), x)
    voted = MeanPrediction(Coin().eval(), 25, seed=0, purpose="judge")
    answer = voted(x)
    assert torch.equal(answer, voted(x))
    assert not torch.equal(answer, MeanPrediction(Coin().eval(), 25, seed=0, purpose="attack")(x))
    assert not torch.equal(answer, MeanPrediction(Coin().eval(), 25, seed=1, purpose="judge")(x))
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(200))
    # P[more than half of 25 coins of 0.3] = 0.017
    assert (answer.argmax(1) == 1).float().mean() < 0.06


def test_luck_does_not_break_a_random_network() -> None:
    x, y = images(60), torch.zeros(60, dtype=torch.int64)
    result = evaluate(Coin().eval(), (x, y), attack="noise", queries=50, eps=0.1, gradient="eot:2")
    assert result.spec.draws == 20
    # Every one of 50 tries would succeed on a single answer with probability 0.3, on the mean of 20 with 0.05; the
    # judge draws anew, so that nothing that was lucky once counts.
    assert result.clean_accuracy > 0.85
    assert result.robust_accuracy > 0.75
    assert "a random network" in result.provenance.notices[0]


def test_a_measurement_of_a_random_network_can_be_repeated() -> None:
    x = images(40)
    y = Linear()(x).argmax(1)
    first, second = (
        evaluate(Noisy().eval(), (x, y), attack="pgd", steps=4, eps=0.2, gradient="eot:3").outcomes_record
        for _ in range(2)
    )
    assert first == second


def test_a_random_network_without_expectation_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="the network is random, ask for the mean over its draws with gradient eot:20"):
        evaluate(Noisy().eval(), (images(), torch.zeros(6, dtype=torch.int64)))


def test_a_fixed_network_needs_a_single_pass_and_says_so() -> None:
    x = images()
    result = evaluate(Linear().eval(), (x, Linear()(x).argmax(1)), steps=3, gradient="eot:2")
    assert result.spec.draws == 1
    assert "averages equal gradients" in result.provenance.notices[0]


def test_surrogates_are_densities_but_for_straight_through() -> None:
    u = torch.linspace(-2000, 2000, 800_001, dtype=torch.float64)
    for name, derivative in SURROGATES.items():
        area = torch.trapezoid(derivative(u), u).item()
        assert math.isclose(area, 4000 if name == "straight-through" else 1, rel_tol=1e-2), name
        assert (derivative(u) >= 0).all()


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_a_softened_spiking_network_fires_the_same_and_has_the_gradient_by_hand(name: str) -> None:
    net, x = Spikes().eval(), images() - 0.5
    soft = with_surrogate(trace(net, x), name)
    assert torch.equal(soft(x), net(x))
    point = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(soft(point).sum(), point)

    g = SURROGATES[name]
    current = (x.flatten(1) @ net.weight.T).detach()
    v1 = current / 2
    s1 = (v1 > 0.5).float()
    d1 = g(v1 - 0.5) / 2  # d spike 1 / d current
    reset = (1 - s1) / 2 - v1 * d1  # d (v1 (1 − s1)) / d current
    v2 = v1 * (1 - s1) + (current - v1 * (1 - s1)) / 2
    d2 = g(v2 - 0.5) * (reset + (1 - reset) / 2)
    expected = ((d1 + d2) @ net.weight.detach()).view_as(x)
    torch.testing.assert_close(found, expected)


class Written(Linear):
    """The same step, as people write it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        u = super().forward(x)
        match self.form:
            case "greater":
                return (u > 0.25).to(u.dtype)
            case "not less":
                return 1 - (u < 0.25).float()
            case "product":
                return torch.ones_like(u) * (u >= 0.25)
            case "heaviside":
                return torch.heaviside(u - 0.25, torch.zeros(()))
            case "tensor":
                return torch.gt(u, torch.full_like(u, 0.25)).float()
            case _:
                return (torch.sign(u - 0.25) + 1) / 2


@pytest.mark.parametrize("form", ["greater", "not less", "product", "heaviside", "tensor", "sign"])
def test_every_way_to_write_a_step_gets_the_same_gradient(form: str) -> None:
    net, x = Written(form).eval(), images() - 0.5
    graph = trace(net, x)
    assert has_steps(graph)
    point = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(with_surrogate(graph, "arctan")(point).sum(), point)
    u = (x.flatten(1) @ net.weight.T).detach()
    torch.testing.assert_close(found, (SURROGATES["arctan"](u - 0.25) @ net.weight.detach()).view_as(x))


@pytest.mark.parametrize("stairs", [torch.round, torch.floor, torch.ceil, torch.trunc], ids=lambda f: f.__name__)
def test_stairs_have_the_slope_that_they_have_on_average(stairs: Any) -> None:
    class Quantised(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(stairs(x * 15) / 15)

    net, x = Quantised().eval(), images()
    exact = WhiteBoxModel(net).gradient(x, torch.zeros(6, dtype=torch.int64), cross_entropy)
    assert exact.gradient.abs().max() == 0
    point = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(with_surrogate(trace(net, x), "sigmoid")(point).sum(), point)
    torch.testing.assert_close(found, net.weight.detach().sum(0).expand(6, -1).reshape_as(x))


def test_relu_and_pools_keep_their_exact_gradient_and_are_no_steps() -> None:
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)).eval()
    assert not has_steps(trace(net, images()))
    with pytest.raises(UserError, match="expected a network with thresholds or roundings for surrogate:arctan"):
        WhiteBoxModel(net, "surrogate:arctan").gradient(images(), torch.zeros(6, dtype=torch.int64), cross_entropy)


def test_quantised_inputs_hide_from_the_exact_gradient_but_not_from_a_surrogate() -> None:
    class Quantised(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.round(x * 8) / 8)

    net, x = Quantised().eval(), images(60)
    data = (x, net(x).argmax(1))
    exact, soft = (
        evaluate(net, data, attack="pgd", eps=0.3, steps=10, random_start=False, gradient=g).robust_accuracy
        for g in ("exact", "surrogate:arctan")
    )
    assert exact == 1
    assert soft < 0.5


class Rounded(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.round(255 * x) / 255)


@pytest.mark.parametrize(("net", "gradient"), [(Spikes(), "exact"), (Rounded(), "exact"), (Rounded(), "own")])
@pytest.mark.parametrize("attack", ["pgd", "apgd-dlr", "fab-t"])
def test_a_zero_is_not_a_result_and_says_so(net: nn.Module, gradient: str, attack: str) -> None:
    x = images(7)
    result = evaluate(net.eval(), (x, net(x).argmax(1)), attack=attack, steps=2, gradient=gradient, batch_size=3)
    (notice,) = (text for text in result.provenance.notices if "zero" in text)
    assert notice.startswith(f"the {gradient} gradient is zero for 100% of the images, whose robustness to an attack")
    assert "try gradient surrogate:arctan or" in notice


def test_images_are_counted_once_whatever_an_attack_asks() -> None:
    class Partly(Linear):
        """Rounds inputs of one kind: the others have a gradient."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.where(x[:, :1, :1, :1] < 0.5, torch.round(8 * x) / 8, x))

    net, x = Partly().eval(), images(8)
    x[:, 0, 0, 0] = torch.tensor([0.2] * 2 + [0.8] * 6)
    result = evaluate(net, (x, net(x).argmax(1)), steps=9, restarts=3, eps=0.2, batch_size=3)
    (notice,) = result.provenance.notices
    assert "zero for 25% of the images" in notice
    assert evaluate(net, (x, net(x).argmax(1)), attack="square", queries=9).provenance.notices == []
    assert evaluate(net, (x[2:], net(x[2:]).argmax(1)), steps=2).provenance.notices == []


def test_an_unknown_surrogate_is_refused() -> None:
    with pytest.raises(UserError, match="unknown surrogate 'arctang': did you mean arctan"):
        WhiteBoxModel(Spikes().eval(), "surrogate:arctang")


def test_close_calls_are_put_to_the_network_itself() -> None:
    class Rounded(Linear):
        """Two classes whose lead is the first pixel, in steps too fine for the trace's agreement."""

        asked = 0

        def forward(self, x: Tensor) -> Tensor:
            Rounded.asked += len(x) if not torch.is_grad_enabled() and not torch.jit.is_tracing() else 0
            first = x[:, 0, 0, 0] - 0.5
            return torch.stack([-first, first, first - 20], 1)

    net = Rounded().eval()
    x = images(4)
    x[:, 0, 0, 0] = torch.tensor([0.1, 0.9, 0.5 + 1e-4, 0.5 - 1e-4])
    white_box = WhiteBoxModel(net)
    white_box.fooled(x, torch.zeros(4, dtype=torch.int64))
    Rounded.asked = 0
    assert white_box.fooled(x, torch.zeros(4, dtype=torch.int64)).tolist() == [False, True, True, False]
    assert Rounded.asked == 2
