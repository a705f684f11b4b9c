from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.core.rng import torch_generator
from robustbench_bio.rules.base import Draw, Layer, Loss
from robustbench_bio.rules.dfa import DfaOptions, DirectFeedbackAlignment
from robustbench_bio.rules.layers import LayerRules

STOP = {"dfa_pass": "stop"}
LABELS = torch.tensor([0, 2, 1, 2])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "dfa test"), dtype=torch.float64)


def filled(net: nn.Module, seed: int = 0) -> nn.Module:
    net.double()
    for i, parameter in enumerate(net.parameters()):
        parameter.data = 0.3 * random(*parameter.shape, seed=100 * seed + i)
    return net


def cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS, reduction="none")


def linear_in_the_logits(seed: int = 0) -> Loss:
    """A loss whose gradient at the logits is the same whatever they are."""
    weights = random(4, 3, seed=seed + 500)
    return lambda logits: (weights * logits).sum(1)


def projections(rules: LayerRules, name: str) -> tuple[Tensor, Tensor]:
    state = dict(rules.by_layer[name].named_buffers())
    return state["to_output"], state["to_input"]


@dataclass(frozen=True)
class Case:
    kernel: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    padding: int | str = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    mode: str = "zeros"

    def layer(self) -> nn.Conv2d:
        args = (self.kernel, self.stride, self.padding, self.dilation, self.groups, self.bias, self.mode)
        return nn.Conv2d(4, 8, *args)


CASES = [Case(3, s, p, d, g) for s, p, d, g in product((1, 2), (0, 2), (1, 2), (1, 2, 4))]
CASES += [Case(padding=2, groups=2, mode=mode) for mode in ("reflect", "circular", "replicate")]
CASES += [Case(k, padding="same") for k in (1, 4, (2, 5))] + [Case((4, 3), padding="same", mode="reflect")]
CASES += [Case(5, (2, 1), "valid", groups=4, bias=False), Case(1, 2, bias=False)]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("handed", ["input", "stop"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_conv_layer_learns_from_the_projected_error_and_hands_down_another(case: Case, handed: str) -> None:
    x = random(4, 4, 9, 8)
    head = nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    check_layer(case.layer(), head, x, handed)


@pytest.mark.parametrize("handed", ["input", "stop"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_a_linear_layer_does_so_at_every_extra_position(shape: tuple[int, ...], bias: bool, handed: str) -> None:
    x = random(4, *shape)
    head = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(x[0].numel() // 5 * 6, 3))
    check_layer(nn.Linear(5, 6, bias=bias), head, x, handed)


def check_layer(layer: Layer, head: nn.Module, x: Tensor, handed: str) -> None:
    net = filled(nn.Sequential(layer, head))
    rules = LayerRules(net, {"0": "dfa"}, {"dfa_pass": handed}, seed=0, classes=3)
    units_first = isinstance(layer, nn.Conv2d)

    logits = net(x).detach().requires_grad_(True)
    (e,) = torch.autograd.grad(cross_entropy(logits).mean(), logits)
    z = layer(x)
    to_output = dict(rules.by_layer["0"].named_buffers())["to_output"]
    assert to_output.shape == (3, layer.weight.shape[0])
    signal = spread(e @ to_output, z, units_first)
    wanted = torch.autograd.grad(z, list(layer.parameters()), signal)

    x = x.clone().requires_grad_(True)
    assert torch.equal(rules.backward(net, x, cross_entropy), logits)
    for parameter, gradient in zip(layer.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-13)
    down = torch.zeros_like(x)
    if handed == "input":
        down = spread(e @ projections(rules, "0")[1], x, units_first)
    torch.testing.assert_close(x.grad, down.detach(), rtol=0, atol=1e-15)


def spread(signal: Tensor, like: Tensor, units_first: bool) -> Tensor:
    """The same signal [N, units] at every position of `like`."""
    every = torch.ones_like(like[:, 0] if units_first else like[..., 0])
    return torch.einsum("nu,n...->nu..." if units_first else "nu,n...->n...u", signal, every)


def chain() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, dilation=2, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )
    filled(net)
    return net


IMAGES = random(4, 2, 9, 9, seed=7)


def gradients(net: nn.Module, rules: LayerRules, loss: Loss) -> dict[str, Tensor]:
    net.zero_grad()
    rules.backward(net, IMAGES, loss)
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("handed", ["input", "stop"])
def test_no_later_weight_matters_to_an_update_once_the_error_is_fixed(handed: str) -> None:
    net = chain()
    options = {"dfa_pass": handed}
    direct = LayerRules(net, dict.fromkeys("026", "dfa"), options, seed=0, classes=3)
    bp = LayerRules(net, dict.fromkeys("026", "bp"), options, seed=0, classes=3)
    loss = linear_in_the_logits()
    for later in (2, 6, 8):
        before, exact = gradients(net, direct, loss), gradients(net, bp, loss)
        with torch.no_grad():
            net[later].weight += random(*net[later].weight.shape, seed=later)
        after, exact_after = gradients(net, direct, loss), gradients(net, bp, loss)
        for name in (f"{i}.{part}" for i in (0, 2, 6) if i < later for part in ("weight", "bias")):
            assert torch.equal(before[name], after[name])
            assert not torch.equal(exact[name], exact_after[name])
            assert before[name].any()


def test_an_update_follows_the_error() -> None:
    net = chain()
    rules = LayerRules(net, dict.fromkeys("026", "dfa"), {}, seed=0, classes=3)
    first, second = linear_in_the_logits(), linear_in_the_logits(seed=1)
    one, two = gradients(net, rules, first), gradients(net, rules, second)
    both = gradients(net, rules, lambda logits: 2 * first(logits) - 3 * second(logits))
    for name in one:
        torch.testing.assert_close(both[name], 2 * one[name] - 3 * two[name], rtol=0, atol=1e-13)


def test_the_last_layer_learns_as_by_autograd_and_those_below_do_not() -> None:
    net = chain()
    rules = LayerRules(net, dict.fromkeys("026", "dfa"), {}, seed=0, classes=3)
    got = gradients(net, rules, cross_entropy)
    exact = torch.autograd.grad(cross_entropy(net(IMAGES)).mean(), list(net.parameters()))
    for name, wanted in zip(got, exact, strict=True):
        assert torch.equal(got[name], wanted) == name.startswith("8"), name


def test_the_input_receives_the_first_layers_projection_or_nothing() -> None:
    net = chain().eval()
    rules = LayerRules(net, dict.fromkeys("026", "dfa"), {}, seed=0, classes=3)
    logits = net(IMAGES).detach().requires_grad_(True)
    (e,) = torch.autograd.grad(cross_entropy(logits).sum(), logits)
    wanted = (e @ projections(rules, "0")[1])[:, :, None, None].expand_as(IMAGES)
    torch.testing.assert_close(rules.input_gradient(net, IMAGES, cross_entropy).gradient, wanted, rtol=0, atol=1e-15)
    stopped = LayerRules(net, dict.fromkeys("026", "dfa"), STOP, seed=0, classes=3)
    assert not stopped.input_gradient(net, IMAGES, cross_entropy).gradient.any()


@pytest.mark.parametrize("below", ["bp", "fa"])
def test_layers_of_other_rules_below_learn_only_if_something_is_handed_down(below: str) -> None:
    for handed in ("input", "stop"):
        net = chain()
        options = {"dfa_pass": handed}
        rules = LayerRules(net, {"0": below, "2": "dfa", "6": "dfa"}, options, seed=0, classes=3)
        got = gradients(net, rules, cross_entropy)
        assert bool(got["0.weight"].any()) == bool(got["3.weight"].any()) == (handed == "input")
        assert got["2.weight"].any()
        assert got["6.weight"].any()


def test_a_loss_that_never_meets_the_logits_is_an_error_also_after_one_that_did() -> None:
    net = chain()
    rules = LayerRules(net, dict.fromkeys("026", "dfa"), {}, seed=0, classes=3)
    for _ in range(2):
        with rules.attached(net):
            net(IMAGES)
            hidden = net[:3](IMAGES)
        with pytest.raises(RuntimeError, match="loss on the network's logits"):
            hidden.sum().backward()
        rules.backward(net, IMAGES, cross_entropy)


def test_the_error_of_each_backward_pass_is_its_own() -> None:
    net = chain()
    rules = LayerRules(net, dict.fromkeys("026", "dfa"), {}, seed=0, classes=3)
    losses = (linear_in_the_logits(), linear_in_the_logits(seed=1))
    wanted = [gradients(net, rules, loss) for loss in losses]
    with rules.attached(net):
        graphs = [loss(net(IMAGES)).mean() for loss in losses]
        rules.input_gradient(net, IMAGES, cross_entropy)
    for graph, gradient in zip(graphs, wanted, strict=True):
        net.zero_grad()
        graph.backward()
        assert all(torch.equal(p.grad, gradient[name]) for name, p in net.named_parameters())


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.Linear(5, 6), nn.Linear(6, 6)
        self.auxiliary, self.classifier = nn.Linear(6, 3), nn.Linear(6, 3)
        self.beside = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lower(x).tanh()
        self.beside = self.auxiliary(h)
        return self.classifier(self.upper(h).tanh())


def test_a_second_loss_on_hidden_units_does_not_enter_the_error() -> None:
    net = filled(TwoHeads())
    rules = LayerRules(net, {"lower": "dfa", "upper": "dfa"}, {}, seed=0, classes=3)
    x = random(4, 5)
    rules.backward(net, x, cross_entropy)
    alone = {name: net.get_submodule(name).weight.grad.clone() for name in ("lower", "upper")}
    net.zero_grad()
    rules.backward(net, x, lambda logits: cross_entropy(logits) + 3 * cross_entropy(net.beside))
    assert all(torch.equal(net.get_submodule(name).weight.grad, gradient) for name, gradient in alone.items())
    assert net.auxiliary.weight.grad.any()


def test_projections_are_xavier_uniform_one_for_each_place_and_seed() -> None:
    layer = nn.Conv2d(300, 400, 1, groups=4)
    seen = []
    for seed, name in product((0, 1), "ab"):
        rule = DirectFeedbackAlignment(layer, Draw(seed, name, DfaOptions(), classes=20))
        assert rule.to_output.shape == (20, 400)
        assert rule.to_input.shape == (20, 300)
        for matrix, units in ((rule.to_output, 400), (rule.to_input, 300)):
            bound = (6 / (20 + units)) ** 0.5
            assert matrix.abs().max() <= bound
            quantiles = torch.linspace(0.05, 0.95, 19)
            torch.testing.assert_close(
                matrix.flatten().quantile(quantiles), bound * (2 * quantiles - 1), rtol=0, atol=0.05 * bound
            )
            seen.append(matrix[:, :300].flatten())
    correlation = torch.corrcoef(torch.stack(seen)) - torch.eye(8)
    assert correlation.abs().max() < 0.06


def test_projections_are_never_redrawn() -> None:
    net = chain()
    rules = LayerRules(net, dict.fromkeys("026", "dfa"), {}, seed=0, classes=3)
    before = {name: value.clone() for name, value in rules.state_dict().items()}
    assert len(before) == 6
    for _ in range(3):
        gradients(net, rules, cross_entropy)
        rules.step(net)
        rules.input_gradient(net, IMAGES, cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in rules.state_dict().items())


@pytest.mark.parametrize("handed", ["input", "stop"])
def test_a_network_learns_by_its_hidden_layers_and_not_by_its_last_alone(handed: str) -> None:
    x = random(256, 30)
    y = x @ random(30, 3, seed=1) / 30**0.5
    final = {}
    for frozen in (True, False):
        net = filled(nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)))
        rules = LayerRules(net, dict.fromkeys("02", "dfa"), {"dfa_pass": handed}, seed=0, classes=3)
        optimiser = torch.optim.SGD(net[4].parameters() if frozen else net.parameters(), 0.1)
        for _ in range(200):
            optimiser.zero_grad()
            logits = rules.backward(net, x, lambda out: (out - y).square().sum(1) / 2)
            optimiser.step()
        final[frozen] = (logits - y).square().sum(1).mean().item()
    assert final[False] < 0.5 * final[True], final
