"""The exact gradient cannot be bent by what a network says of its own gradient."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio import nets
from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.access.record import Untraceable
from robustbench_bio.attacks.access.trace import trace
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.diagnosis.diagnose import diagnose
from robustbench_bio.diagnosis.differences import finite_difference_error
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.nets.base import Inputs, Net

INPUTS = Inputs((3, 12, 12), 10, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))


class _Lie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.randn(g.shape, generator=torch_generator("lie")).to(g)


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module, before: Any = lambda x: x, after: Any = lambda z: z) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


@pytest.fixture
def net() -> Net:
    """A network whose norms have statistics worth folding."""
    built = nets.build("resnet", INPUTS, seed=3, depth=20, width=4)
    generator = torch_generator("statistics")
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.3)
    return built.eval()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch_generator("data")
    return torch.rand((9, 3, 12, 12), generator=generator), torch.randint(10, (9,), generator=generator)


def by_autograd(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x)
    return gradient


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_trace_gives_logits_and_gradient_of_an_honest_network(net: Net, data: tuple[Tensor, Tensor], n: int) -> None:
    x, y = data[0][:n], data[1][:n]
    graph = trace(net, data[0][:2])
    torch.testing.assert_close(graph(x), net(x), rtol=1e-4, atol=1e-5)
    found = WhiteBoxModel(net).gradient(x, y, cross_entropy)
    torch.testing.assert_close(found.gradient, by_autograd(net, x, y), rtol=1e-3, atol=1e-6)
    assert not [node for node in graph.graph.nodes if "batch_norm" in str(node.target)]


def test_norms_that_follow_no_convolution_are_kept_as_a_multiply_add(data: tuple[Tensor, Tensor]) -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean, norm.running_var = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.5, 1.5, 2.5])
    net = nn.Sequential(norm, nn.ReLU(), nn.Flatten(), nn.Linear(432, 10)).eval()
    torch.testing.assert_close(trace(net, data[0])(data[0]), net(data[0]), rtol=1e-5, atol=1e-6)


def test_a_false_backward_pass_is_seen_through(net: Net, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    liar = Wrapped(net, before=_Lie.apply)
    truth = by_autograd(net, x, y)
    assert F.cosine_similarity(by_autograd(liar, x, y).flatten(), truth.flatten(), dim=0) < 0.2
    torch.testing.assert_close(WhiteBoxModel(liar).gradient(x, y, cross_entropy).gradient, truth, rtol=1e-3, atol=1e-6)


def test_a_network_that_the_last_bits_decide_is_traced_without_folding(data: tuple[Tensor, Tensor]) -> None:
    class Parity(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return (z * 2**22).round() % 2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(4)
        norm.running_mean, norm.running_var = torch.rand(4), torch.rand(4) + 0.3
        net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, Parity(), nn.Flatten(), nn.Linear(400, 10)).eval()
    x, y = data
    graph = trace(net, x[:2])
    torch.testing.assert_close(graph(x), net(x))
    assert torch.equal(WhiteBoxModel(net).fooled(x, y), net(x).argmax(1) != y)
    assert WhiteBoxModel(net, "surrogate:arctan").gradient(x, y, cross_entropy).gradient.abs().max() > 0


def test_trace_follows_changed_weights(net: Net, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    WhiteBoxModel(net).gradient(x, y, cross_entropy)
    with torch.no_grad():
        net.conv1.weight.mul_(-1)  # type: ignore[operator, union-attr]
    found = WhiteBoxModel(net).gradient(x, y, cross_entropy).gradient
    torch.testing.assert_close(found, by_autograd(net, x, y), rtol=1e-3, atol=1e-6)


def test_the_network_itself_is_not_changed(net: Net, data: tuple[Tensor, Tensor]) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    WhiteBoxModel(net).gradient(*data, cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_control_flow_on_values_is_trusted_with_a_notice(net: Net, data: tuple[Tensor, Tensor]) -> None:
    branching = Wrapped(net, before=lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(Untraceable):
        trace(branching, data[0])
    result = evaluate(branching, data, eps=1 / 255, steps=2)
    assert any(notice.startswith("not traced") for notice in result.provenance.notices)


def test_finite_differences_confirm_the_trace_and_refute_a_threshold(net: Net, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    assert finite_difference_error(Wrapped(net, before=_Lie.apply), x, y) < 1e-4
    assert finite_difference_error(Wrapped(net, before=lambda x: (x * 8).round() / 8 + 0.01 * x), x, y) < 1e-4

    class Soft(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.double().mul(1e7).round().div(1e7).to(x.dtype)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    assert finite_difference_error(Wrapped(net, before=Soft.apply), x, y) > 0.02


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A backpropagation network of the zoo and digits: honest, and not robust at 24/255."""
    from robustbench_bio import load_data, load_model

    return load_model("bp-resnet20"), *load_data("digits", n_examples=80)


QUICK = {"eps": 24 / 255, "steps": 10, "queries": 150, "n_examples": 80}


@pytest.mark.parametrize("eps", [pytest.param(8 / 255, marks=pytest.mark.slow), 24 / 255])
def test_an_honest_network_is_sound(trained: tuple[nn.Module, Tensor, Tensor], eps: float) -> None:
    net, x, y = trained
    report = diagnose(net, (x, y), **{**QUICK, "eps": eps, "steps": 20})  # type: ignore[arg-type]
    assert (report.verdict, report.flags) == ("sound", ())


DEFENCES = {
    "random backward": ({"before": _Lie.apply}, "masked", "false-own-gradient"),
    "quantised input": ({"before": lambda x: (x * 16).round() / 16}, "masked", "zero-gradient"),
    "saturated logits": ({"after": lambda z: z * 1000}, "masked", "zero-gradient"),
    "probabilities": ({"after": lambda z: z.softmax(1)}, "sound", "probabilities"),
    "random output": (
        {"after": lambda z: z + 0.1 * torch.randn(z.shape)},
        "inconclusive",
        "random-output",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("defence", DEFENCES)
def test_each_defence_raises_its_flag(trained: tuple[nn.Module, Tensor, Tensor], defence: str) -> None:
    net, x, y = trained
    parts, verdict, flag = DEFENCES[defence]
    report = diagnose(Wrapped(net, **parts), (x, y), **QUICK)  # type: ignore[arg-type]
    assert flag in report.flags
    assert report.verdict == verdict


def test_a_network_under_a_rule_is_masked_by_it(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    from robustbench_bio import load_model

    _, x, y = trained
    report = diagnose(load_model("fa-resnet20"), (x, y), **{**QUICK, "eps": 16 / 255})  # type: ignore[arg-type]
    assert report.verdict == "masked"
    gap = next(check for check in report.checks if check.name == "rule-far-above-exact").values["gap"]
    assert gap > 0.3
    assert report.reason.startswith("rule-far-above-exact")


def test_rows_that_are_listed_in_python_cannot_be_traced_and_say_so() -> None:
    class Listed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[torch.tensor(list(range(len(x))))]

    with pytest.raises(Untraceable, match="other constants"):
        trace(Listed().eval(), torch.rand(2, 1, 4, 4))


@pytest.mark.parametrize("form", ["view", "zeros", "time", "slice", "range", "width"])
def test_a_network_that_asks_for_the_length_of_the_batch_is_traced_for_any_batch(form: str) -> None:
    class Length(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                self.linear = nn.Linear(16, 422 if form == "width" else 3)

        def forward(self, x: Tensor) -> Tensor:
            match form:
                case "view":
                    return self.linear(x.view(len(x), -1))  # type: ignore[no-any-return]
                case "zeros":
                    return self.linear(x.flatten(1)) + torch.zeros(len(x), 3)
                case "slice":
                    return self.linear(x.flatten(1))[: len(x)]  # type: ignore[no-any-return]
                case "range":
                    return self.linear(x.flatten(1))[torch.arange(len(x))]  # type: ignore[no-any-return]
                case "width":  # a multiple of the batch that the trace is recorded with
                    return self.linear(x.flatten(1)).view(-1, 2, 211).mean(1)  # type: ignore[no-any-return]
                case _:
                    steps = torch.stack([x, x]).reshape(2 * len(x), 16)
                    return self.linear(steps).view(2, len(x), 3).mean(0)  # type: ignore[no-any-return]

    net = Length().eval()
    graph = trace(net, torch.rand(2, 1, 4, 4))
    for n in (1, 2, 7, 23, 46, 300):
        x = torch.rand(n, 1, 4, 4)
        torch.testing.assert_close(graph(x), net(x))
