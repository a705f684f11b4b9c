from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets.base import Inputs, Net, weight_layers
from robustbench_bio.nets.small import Cnn, Mlp
from robustbench_bio.rules import LayerRules, attach
from robustbench_bio.rules.base import Loss
from robustbench_bio.rules.predictive import PredictiveCoding, PredictiveOptions, energy, infer

SETTLED = {"pc_steps": 400, "pc_gamma": 0.2}


class Stages(Net):
    def __init__(self, *stages: nn.Module) -> None:
        super().__init__(Inputs((2, 9, 8), 3, (0.0,) * 2, (1.0,) * 2))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x

    def chain(self) -> list[nn.Module]:
        return list(self.stages)


@dataclass(frozen=True)
class Problem:
    net: Net
    x: Tensor
    loss: Loss

    def exact(self) -> dict[str, Tensor]:
        """Backpropagation's gradient of the mean loss for parameters, of the summed loss for the input."""
        x = self.x.clone().requires_grad_(True)
        names = [name for name, _ in self.net.named_parameters()]
        loss = self.loss(self.net(x))
        (at_x,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
        gradients = torch.autograd.grad(loss.mean(), list(self.net.parameters()))
        return dict(zip(names, gradients, strict=True)) | {"x": at_x}

    def coded(self, **options: object) -> dict[str, Tensor]:
        """Predictive coding's gradients, in the same form."""
        rules = coding(self.net, **options)
        self.net.zero_grad()
        logits = rules.backward(self.net, self.x, self.loss)
        at_x = rules.input_gradient(self.net, self.x, self.loss)
        plain = self.net(self.x).detach()
        assert torch.equal(logits, plain)
        assert torch.equal(at_x.logits, plain)
        assert not logits.requires_grad
        gradients = {name: p.grad.clone() for name, p in self.net.named_parameters() if p.grad is not None}
        return gradients | {"x": at_x.gradient}


def coding(net: Net, **options: object) -> PredictiveCoding:
    return PredictiveCoding(net, dict.fromkeys(weight_layers(net), "pc"), options)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "pc test"), dtype=torch.float64)


def squared_error(target: Tensor) -> Loss:
    return lambda logits: 0.5 * (target - logits).square().sum(1)


def cross_entropy(labels: Tensor) -> Loss:
    return lambda logits: F.cross_entropy(logits, labels, reduction="none")


def drawn(net: Net, std: float, seed: int = 0) -> Net:
    net.double()
    for i, parameter in enumerate(net.parameters()):
        parameter.data = std * random(*parameter.shape, seed=10 * seed + i)
    return net


def mlp(seed: int = 0) -> Problem:
    net = drawn(Mlp(Inputs((6, 1, 1), 5, (0.0,) * 6, (1.0,) * 6), hidden=(8, 7), activation="tanh"), 0.5, seed)
    return Problem(net, random(10, 6, 1, 1, seed=seed + 100), squared_error(random(10, 5, seed=seed + 200)))


def convolutional() -> Problem:
    net = Stages(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Sequential(nn.Tanh(), nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)),
        nn.Sequential(nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)),
    )
    return Problem(drawn(net, 0.3), random(4, 2, 9, 8, seed=50), cross_entropy(torch.tensor([0, 2, 1, 2])))


def relu_cnn() -> Problem:
    net = drawn(Cnn(Inputs((2, 9, 8), 3, (0.1, 0.2), (0.7, 0.9)), widths=(4, 5), norm="none"), 0.3)
    return Problem(net, random(4, 2, 9, 8, seed=51), cross_entropy(torch.tensor([0, 2, 1, 2])))


PROBLEMS = {"mlp": mlp, "convolutional": convolutional, "relu-cnn": relu_cnn}


def relative(value: Tensor, reference: Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()


def textbook(problem: Problem, steps: int, gamma: float, beta: float) -> tuple[dict[str, Tensor], list[float]]:
    """Predictive coding of the 6-8-7-5 tanh network, every derivative written out."""
    layers = weight_layers(problem.net)
    (w1, b1), (w2, b2), (w3, b3) = ((m.weight.detach(), m.bias.detach()) for m in layers.values())
    x, target = problem.x.flatten(1), random(10, 5, seed=200)
    mu1 = x @ w1.T + b1
    z1, z2 = mu1, mu1.tanh() @ w2.T + b2
    energies = []
    for step in range(steps + 1):
        e1 = z1 - mu1
        e2 = z2 - (z1.tanh() @ w2.T + b2)
        top = target - (z2.tanh() @ w3.T + b3)
        e3 = beta * top
        energies.append(0.5 * (e1.square().sum() + e2.square().sum() + beta * top.square().sum()).item())
        if step < steps:
            z1, z2 = (
                z1 - gamma * (e1 - (1 - z1.tanh() ** 2) * (e2 @ w2)),
                z2 - gamma * (e2 - (1 - z2.tanh() ** 2) * (e3 @ w3)),
            )
    rows = zip(layers, (e1, e2, e3), (x, z1.tanh(), z2.tanh()), strict=True)
    gradients = {"x": -(e1 @ w1).view_as(problem.x) / beta}
    for name, error, source in rows:
        gradients[f"{name}.weight"] = -error.T @ source / (beta * len(x))
        gradients[f"{name}.bias"] = -error.sum(0) / (beta * len(x))
    return gradients, energies


def total_energy(problem: Problem, activities: list[Tensor], beta: float) -> Tensor:
    """E as defined, with one joint graph over all stages."""
    value = torch.zeros((), dtype=torch.float64)
    *hidden, last = (stage(z) for stage, z in zip(problem.net.chain(), activities, strict=True))
    for z, mu in zip(activities[1:], hidden, strict=True):
        value = value + (z - mu).pow(2).sum() / 2
    return value + beta * problem.loss(last).sum()


@pytest.mark.parametrize("beta", [1.0, 0.03])
@pytest.mark.parametrize("steps", [1, 2, 7, 60])
def test_gradients_and_energies_are_those_of_the_textbook(steps: int, beta: float) -> None:
    problem = mlp()
    wanted, energies = textbook(problem, steps, 0.15, beta)
    got = problem.coded(pc_steps=steps, pc_gamma=0.15, pc_beta=beta)
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-10, atol=1e-13)
    options = PredictiveOptions(pc_steps=steps, pc_gamma=0.15, pc_beta=beta)
    chain = problem.net.chain()
    trace = [
        energy(chain, s.activities, problem.loss, beta).item() for s in infer(chain, problem.x, problem.loss, options)
    ]
    assert trace == pytest.approx(energies, rel=1e-12)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_inference_descends_the_energy_in_all_layers_at_once(kind: str) -> None:
    problem = PROBLEMS[kind]()
    options = PredictiveOptions(pc_steps=5, pc_gamma=0.1, pc_beta=0.5)
    before = None
    for state in infer(problem.net.chain(), problem.x, problem.loss, options):
        activities = [z.clone().requires_grad_(True) for z in state.activities]
        value = total_energy(problem, activities, 0.5)
        assert value.item() == pytest.approx(energy(problem.net.chain(), state.activities, problem.loss, 0.5).item())
        if before is not None:
            for z, wanted in zip(state.activities, before, strict=True):
                torch.testing.assert_close(z, wanted, rtol=0, atol=1e-13)
        slopes = torch.autograd.grad(value, activities[1:])
        moved = [z.detach() - 0.1 * slope for z, slope in zip(activities[1:], slopes, strict=True)]
        before = [problem.x, *moved]


@pytest.mark.parametrize("kind", PROBLEMS)
def test_learning_follows_the_energy_where_inference_ends(kind: str) -> None:
    problem = PROBLEMS[kind]()
    options = {"pc_steps": 30, "pc_gamma": 0.1, "pc_beta": 0.5}
    *_, last = infer(problem.net.chain(), problem.x, problem.loss, PredictiveOptions(**options))
    activities = [z.clone().requires_grad_(True) for z in last.activities]
    value = total_energy(problem, activities, 0.5)
    names = [name for name, _ in problem.net.named_parameters()]
    slopes = torch.autograd.grad(value, [activities[0], *problem.net.parameters()])
    got = problem.coded(**options)
    torch.testing.assert_close(got["x"], slopes[0] / 0.5, rtol=0, atol=1e-12)
    for name, slope in zip(names, slopes[1:], strict=True):
        torch.testing.assert_close(got[name], slope / (0.5 * len(problem.x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "convolutional"])
def test_energy_falls_at_every_step_of_a_smooth_network(kind: str) -> None:
    problem = PROBLEMS[kind]()
    chain = problem.net.chain()
    states = infer(chain, problem.x, problem.loss, PredictiveOptions(**SETTLED))  # type: ignore[arg-type]
    trace = torch.stack([energy(chain, s.activities, problem.loss, 1.0).detach() for s in states])
    assert len(trace) == 401
    assert (trace[:40].diff() < 0).all()
    assert (trace.diff() <= 1e-14 * trace[0]).all()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_update_tends_to_backpropagation_in_proportion_to_beta(seed: int) -> None:
    ranges = {1.0: (0.6, 1.3), 1e-2: (0.02, 0.13), 1e-4: (0.0002, 0.0015)}
    problem = mlp(seed)
    for layer in weight_layers(problem.net).values():
        nn.init.zeros_(layer.bias)
    exact = problem.exact()
    weights = [name for name in exact if name.endswith("weight")]
    errors = {}
    for beta, (low, high) in ranges.items():
        coded = problem.coded(pc_beta=beta, **SETTLED)
        errors[beta] = [relative(coded[name], exact[name]) for name in weights]
        assert all(low < error < high for error in errors[beta]), (beta, errors[beta])
    for coarse, fine in zip(errors[1e-2], errors[1e-4], strict=True):
        assert coarse / fine == pytest.approx(100, rel=0.15)


@pytest.mark.parametrize("beta", [1.0, 1e-6])
@pytest.mark.parametrize("options", [SETTLED, {"pc_steps": 2, "pc_gamma": 1.0}], ids=["settled", "two-full-steps"])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_fixed_predictions_give_backpropagation(kind: str, options: dict[str, float], beta: float) -> None:
    problem = PROBLEMS[kind]()
    exact = problem.exact()
    coded = problem.coded(pc_fixed_prediction=True, pc_beta=beta, **options)
    assert coded.keys() == exact.keys()
    assert all(relative(coded[name], exact[name]) < 1e-13 for name in exact)


def test_fixed_predictions_approach_backpropagation_geometrically() -> None:
    net = drawn(Mlp(Inputs((6, 1, 1), 5, (0.0,) * 6, (1.0,) * 6), hidden=(8,), activation="tanh"), 0.5)
    problem = Problem(net, random(10, 6, 1, 1), squared_error(random(10, 5, seed=1)))
    exact = problem.exact()
    hidden = next(iter(weight_layers(net)))
    for steps in (1, 3, 10):
        coded = problem.coded(pc_fixed_prediction=True, pc_steps=steps, pc_gamma=0.2)
        share = 1 - 0.8**steps
        for name in (f"{hidden}.weight", f"{hidden}.bias", "x"):
            torch.testing.assert_close(coded[name], share * exact[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_an_error_descends_one_stage_per_step(kind: str, fixed: bool) -> None:
    problem = PROBLEMS[kind]()
    exact = problem.exact()
    layers = list(weight_layers(problem.net))
    for steps in range(3):
        coded = problem.coded(pc_steps=steps, pc_fixed_prediction=fixed)
        reached = [bool(coded[f"{name}.weight"].any()) for name in layers]
        assert reached == [steps >= 2, steps >= 1, True]
        assert bool(coded["x"].any()) == (steps >= 2)
        if steps == 0 or fixed:
            torch.testing.assert_close(coded[f"{layers[-1]}.weight"], exact[f"{layers[-1]}.weight"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("fixed", [False, True])
def test_single_stage_is_backpropagation(fixed: bool) -> None:
    net = drawn(Mlp(Inputs((6, 1, 1), 5, (0.0,) * 6, (1.0,) * 6), hidden=()), 0.5)
    problem = Problem(net, random(10, 6, 1, 1), cross_entropy(torch.arange(10) % 5))
    exact, coded = problem.exact(), problem.coded(pc_fixed_prediction=fixed, pc_beta=0.3)
    assert all(relative(coded[name], exact[name]) < 1e-13 for name in exact)


@pytest.mark.parametrize("fixed", [False, True])
def test_two_calls_agree_and_gradients_add_up(fixed: bool) -> None:
    problem = convolutional()
    first = problem.coded(pc_fixed_prediction=fixed)
    second = problem.coded(pc_fixed_prediction=fixed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    rules = coding(problem.net, pc_fixed_prediction=fixed)
    rules.backward(problem.net, problem.x, problem.loss)
    for name, parameter in problem.net.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * first[name], rtol=0, atol=1e-15)


@pytest.mark.parametrize("fixed", [False, True])
def test_nothing_but_gradients_changes(fixed: bool) -> None:
    net = Stages(
        nn.Conv2d(2, 4, 3, stride=2),
        nn.Sequential(nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(), nn.Conv2d(4, 2, 3)),
        nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
    ).double()
    net.train()
    net.stages[2].eval()
    x, loss = random(4, 2, 9, 8), cross_entropy(torch.tensor([0, 2, 1, 2]))
    rules = coding(net, pc_fixed_prediction=fixed)
    before = {name: value.clone() for name, value in (net.state_dict() | {"x": x}).items()}
    modes, randomness = [m.training for m in net.modules()], torch.get_rng_state()

    rules.input_gradient(net, x, loss)
    assert all(p.grad is None for p in net.parameters())
    rules.backward(net, x, loss)
    rules.step(net)

    after = net.state_dict() | {"x": x}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), randomness)
    assert not x.requires_grad
    assert x.grad is None
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert not list(rules.parameters())
    assert not rules.state_dict()


def test_frozen_layers_get_no_gradient_and_pass_errors_on() -> None:
    problem = mlp()
    free = problem.coded(pc_steps=10)
    for frozen in weight_layers(problem.net):
        layer = problem.net.get_submodule(frozen).requires_grad_(False)
        coded = problem.coded(pc_steps=10)
        assert coded.keys() == {name for name in free if not name.startswith(frozen)}
        assert all(torch.equal(coded[name], free[name]) for name in coded)
        layer.requires_grad_(True)


def test_works_without_grad_mode_and_ignores_autocast() -> None:
    problem = mlp()
    problem.net.float()
    problem = Problem(problem.net, problem.x.float(), cross_entropy(torch.arange(10) % 5))
    wanted = problem.coded()
    with torch.no_grad():
        plain = problem.coded()
    rules = coding(problem.net)
    problem.net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        assert rules.backward(problem.net, problem.x, problem.loss).dtype == torch.float32
        at_x = rules.input_gradient(problem.net, problem.x, problem.loss).gradient
    mixed = {name: p.grad for name, p in problem.net.named_parameters()} | {"x": at_x}
    assert all(torch.equal(wanted[name], plain[name]) for name in wanted)
    assert all(torch.equal(wanted[name], mixed[name]) for name in wanted)


def test_owns_every_weight_layer_and_is_no_rule_of_one_layer() -> None:
    net = mlp().net
    rules = attach(net, "pc", options={"pc_steps": 3})
    assert isinstance(rules, PredictiveCoding)
    assert rules.assignment == dict.fromkeys(weight_layers(net), "pc")
    assert rules.options == PredictiveOptions(pc_steps=3)
    with pytest.raises(UserError, match="expected a rule of single layers, got pc, which rules whole networks"):
        LayerRules(net, rules.assignment, {}, seed=0, classes=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pc_beta": 0.0}, "pc_beta > 0, got 0.0"),
        ({"pc_steps": -1}, "pc_steps >= 0, got -1"),
        ({"pc_gamma": 0.0}, r"pc_gamma in \(0, 1\], got 0.0"),
        ({"pc_gamma": 1.5}, r"pc_gamma in \(0, 1\], got 1.5"),
    ],
)
def test_options_out_of_range_are_the_users_mistake(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        coding(mlp().net, **options)


def test_network_that_is_no_chain_is_the_users_mistake() -> None:
    net = Cnn(Inputs((2, 9, 8), 3, (0.0,) * 2, (1.0,) * 2), norm="batch")
    with pytest.raises(UserError, match="norm"):
        coding(net)
