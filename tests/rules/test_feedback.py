import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robustbench_bio import nets
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets.base import Inputs, Net
from robustbench_bio.nets.operations import operation
from robustbench_bio.rules import LayerRules, attach, initialise
from robustbench_bio.rules.base import RULES, Draw, Layer, Loss, Rule, fans
from robustbench_bio.rules.options import RuleOptions

FEEDBACK = ("bp", "fa", "usf", "frsf", "brsf")
SIGNED = ("usf", "frsf", "brsf")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "feedback test"), dtype=torch.float64)


def filled(layer: Layer, seed: int = 1) -> Layer:
    layer.double()
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = 0.4 * random(*parameter.shape, seed=10 * seed + i)
    return layer


def made(kind: str, layer: Layer, *, seed: int = 0, name: str = "layer", **options: object) -> Rule:
    return RULES.get(kind)(layer, Draw(seed, name, RuleOptions(**options), classes=3))


def prescribed(kind: str, layer: Layer, rule: Rule) -> Tensor:
    """B by its definition, from the stored state alone."""
    state, w = dict(rule.named_buffers()), layer.weight.detach()
    if kind == "usf":
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        window = math.prod(w.shape[2:])
        return math.sqrt(2 / (w.shape[1] * window + w.shape[0] // groups * window)) * w.sign()
    return {
        "bp": lambda: w,
        "fa": lambda: state["feedback"],
        "frsf": lambda: state["magnitude"] * w.sign(),
        "brsf": lambda: state["magnitude"] * w.sign(),
    }[kind]()


def used(rule: Rule, layer: Layer) -> Tensor:
    """B as a backward pass shows it: each unit's own error sent through a layer of the same weight, unpadded."""
    weight = layer.weight
    signal = torch.eye(len(weight)).to(weight)
    if isinstance(layer, nn.Linear):
        x = torch.zeros(len(weight), layer.in_features).to(weight).requires_grad_(True)
        return torch.autograd.grad(rule(layer, x), x, signal)[0]
    kernel, groups = tuple(weight.shape[2:]), layer.groups
    bare = nn.Conv2d(layer.in_channels, len(weight), kernel, groups=groups, bias=False, device="meta")
    bare.weight = weight
    x = torch.zeros(len(weight), layer.in_channels, *kernel).to(weight).requires_grad_(True)
    (down,) = torch.autograd.grad(rule(bare, x), x, signal[:, :, None, None])
    return torch.stack([d.chunk(groups)[o * groups // len(weight)] for o, d in enumerate(down)])


def angle(a: Tensor, b: Tensor) -> float:
    cosine = F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0)
    return math.degrees(math.acos(min(1.0, cosine.item())))


@dataclass(frozen=True)
class Case:
    kernel: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    padding: int | str | tuple[int, int] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1
    bias: bool = True
    mode: str = "zeros"

    def layer(self) -> nn.Conv2d:
        args = (self.kernel, self.stride, self.padding, self.dilation, self.groups, self.bias, self.mode)
        layer = filled(nn.Conv2d(4, 8, *args))
        assert isinstance(layer, nn.Conv2d)
        return layer


def grid(kernel: int, dilation: int) -> Iterator[Case]:
    paddings = range(kernel // 2 * dilation + 1)
    for padding, stride, groups, bias in product(paddings, (1, 2), (1, 2, 4), (True, False)):
        yield Case(kernel, stride, padding, dilation, groups, bias)


UNUSUAL = [
    *(Case(padding=2, groups=2, mode=mode) for mode in ("reflect", "circular", "replicate")),
    *(Case(k, padding="same", dilation=d, groups=2) for k, d in product((1, 2, 3, 4, (2, 5), (3, 4)), (1, 2))),
    *(Case((4, 3), padding="same", mode=mode) for mode in ("reflect", "circular")),
    Case(5, 2, "valid", groups=4),
    Case(3, padding="valid", mode="reflect"),
    Case((1, 5), (1, 2), (0, 2), (1, 2), 2),
    Case((5, 1), (2, 1), (2, 0), (1, 1), 4, bias=False),
    Case(3, (2, 3), (1, 0), (2, 1), mode="circular"),
]


def check_passes(kind: str, layer: Layer, x: Tensor) -> None:
    rule = made(kind, layer)
    out, plain = rule(layer, x), layer(x)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-14)
    g = random(*out.shape, seed=5)
    wanted = (x, *layer.parameters())
    down, *learned = torch.autograd.grad(out, wanted, g)
    _, *exact = torch.autograd.grad(plain, wanted, g)
    through_b = functional_call(layer, {"weight": prescribed(kind, layer, rule)}, (x,))
    torch.testing.assert_close(down, torch.autograd.grad(through_b, x, g)[0], rtol=0, atol=1e-10)
    for mine, theirs in zip(learned, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("kind", FEEDBACK)
def test_conv_gradients_are_autograds_but_for_b_on_the_way_down(kind: str, kernel: int, dilation: int) -> None:
    x = random(2, 4, 11, 10).requires_grad_(True)
    for case in grid(kernel, dilation):
        check_passes(kind, case.layer(), x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", UNUSUAL, ids=str)
def test_conv_gradients_with_unusual_padding_and_kernels(case: Case) -> None:
    for kind in FEEDBACK:
        check_passes(kind, case.layer(), random(2, 4, 11, 10).requires_grad_(True))


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (2, 3, 4, 5), (1, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", FEEDBACK)
def test_linear_gradients_with_extra_leading_dimensions(kind: str, bias: bool, shape: tuple[int, ...]) -> None:
    layer = filled(nn.Linear(5, 4, bias=bias))
    check_passes(kind, layer, random(*shape).requires_grad_(True))


@pytest.mark.parametrize("kind", FEEDBACK)
def test_conv_gradients_equal_a_sum_over_connections(kind: str) -> None:
    layer = Case(3, 2, 1, 2, 2).layer()
    rule = made(kind, layer)
    b = prescribed(kind, layer, rule)
    x = random(2, 4, 6, 5).requires_grad_(True)
    out = rule(layer, x)
    g = random(*out.shape, seed=5)
    down, weights = torch.zeros_like(x), torch.zeros_like(layer.weight)
    for o, i, row, column in product(range(8), range(2), range(3), range(3)):
        channel = o // 4 * 2 + i
        for y, z in product(range(out.shape[2]), range(out.shape[3])):
            y_in, z_in = 2 * y - 1 + 2 * row, 2 * z - 1 + 2 * column
            if 0 <= y_in < 6 and 0 <= z_in < 5:
                down[:, channel, y_in, z_in] += g[:, o, y, z] * b[o, i, row, column]
                weights[o, i, row, column] += (g[:, o, y, z] * x[:, channel, y_in, z_in]).sum().detach()
    got = torch.autograd.grad(out, (x, layer.weight, layer.bias), g)
    for mine, theirs in zip(got, (down, weights, g.sum((0, 2, 3))), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [Case().layer(), Case(groups=4).layer(), filled(nn.Linear(6, 5))], ids=str)
@pytest.mark.parametrize("kind", FEEDBACK)
def test_the_matrix_that_a_backward_pass_shows_is_the_prescribed_one(kind: str, layer: Layer) -> None:
    rule = made(kind, layer)
    torch.testing.assert_close(used(rule, layer), prescribed(kind, layer, rule), rtol=1e-15, atol=0)


@pytest.mark.parametrize("kind", SIGNED)
def test_zero_weight_passes_no_feedback(kind: str) -> None:
    layer = filled(nn.Linear(6, 5))
    with torch.no_grad():
        layer.weight[2, 3] = 0.0
    b = used(made(kind, layer), layer)
    assert b[2, 3] == 0
    assert (b != 0).sum() == b.numel() - 1


def tower() -> nn.Sequential:
    return nn.Sequential(
        filled(nn.Conv2d(3, 4, 3), 1),
        nn.BatchNorm2d(4).double(),
        nn.Tanh(),
        filled(nn.Conv2d(4, 8, 3, groups=2), 2),
        nn.Tanh(),
        nn.Flatten(),
        filled(nn.Linear(72, 6), 3),
        nn.Tanh(),
        filled(nn.Linear(6, 3), 4),
    )


LABELS = torch.tensor([0, 2, 1, 2, 0])


def cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, LABELS, reduction="none")


def ruled_tower(kind: str, seed: int = 0, **options: object) -> tuple[nn.Sequential, LayerRules]:
    net = tower()
    rules = LayerRules(net, dict.fromkeys("0368", kind), options, seed, 3)
    return net, rules


def learn(net: nn.Module, rules: LayerRules, lr: float = 0.3) -> None:
    optimiser = torch.optim.SGD(net.parameters(), lr)
    optimiser.zero_grad()
    rules.backward(net, random(5, 3, 7, 7), cross_entropy)
    optimiser.step()
    rules.step(net)


def matrices(net: nn.Module, rules: LayerRules) -> list[Tensor]:
    return [used(rule, layer) for layer, rule in rules.pairs(net)]


@pytest.mark.parametrize("kind", FEEDBACK)
def test_the_last_layers_gradient_is_exact_and_those_below_are_not(kind: str) -> None:
    net, rules = ruled_tower(kind)
    x = random(5, 3, 7, 7)
    exact = torch.autograd.grad(cross_entropy(net(x)).mean(), list(net.parameters()))
    rules.backward(net, x, cross_entropy)
    below = True
    for (name, parameter), wanted in zip(net.named_parameters(), exact, strict=True):
        below = below and not name.startswith("8")
        if kind == "bp" or not below:
            torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=1e-12)
        else:
            assert angle(parameter.grad, wanted) > 5, name


@pytest.mark.parametrize("kind", FEEDBACK)
def test_a_single_layers_gradient_is_exact(kind: str) -> None:
    net = nn.Sequential(filled(nn.Conv2d(3, 3, 7)), nn.Flatten())
    x = random(5, 3, 7, 7)
    exact = torch.autograd.grad(cross_entropy(net(x)).mean(), list(net.parameters()))
    LayerRules(net, {"0": kind}, {}, 0, 3).backward(net, x, cross_entropy)
    assert all(torch.equal(p.grad, wanted) for p, wanted in zip(net.parameters(), exact, strict=True))


@pytest.mark.parametrize("kind", SIGNED)
def test_feedback_takes_the_signs_of_the_weights_bitwise_also_after_they_flip(kind: str) -> None:
    net, rules = ruled_tower(kind)
    first = {name: net.get_submodule(name).weight.detach().clone() for name in "0368"}
    before = matrices(net, rules)
    learn(net, rules, lr=3.0)
    for old, b, (layer, rule) in zip(first.values(), before, rules.pairs(net), strict=True):
        assert (old.sign() != layer.weight.sign()).any()
        now = used(rule, layer)
        assert torch.equal(now.sign(), layer.weight.sign())
        assert torch.equal(now, (b.abs().max() if kind == "usf" else now.abs()) * layer.weight.sign())
        torch.testing.assert_close(now, prescribed(kind, layer, rule), rtol=1e-15, atol=0)
        assert torch.equal(b.abs(), now.abs()) == (kind != "brsf")


def test_fa_feedback_stays_bitwise_the_same_over_training() -> None:
    net, rules = ruled_tower("fa")
    before = matrices(net, rules)
    weights = [layer.weight.detach().clone() for layer, _ in rules.pairs(net)]
    for _ in range(3):
        learn(net, rules)
    assert all(torch.equal(a, b) for a, b in zip(before, matrices(net, rules), strict=True))
    assert not any(torch.equal(w, layer.weight) for w, (layer, _) in zip(weights, rules.pairs(net), strict=True))


def test_brsf_magnitudes_change_with_every_step_and_with_nothing_else() -> None:
    net, rules = ruled_tower("brsf")
    x = random(5, 3, 7, 7)
    seen: list[Tensor] = []
    for training in (True, False):
        net.train(training)
        for _ in range(2):
            rules.backward(net, x, cross_entropy)
            rules.input_gradient(net, x, cross_entropy)
            with rules.attached(net):
                net(x)
            seen.append(used(rules.by_layer["6"], net[6]))
    assert all(torch.equal(seen[0], b) for b in seen[1:])
    for _ in range(3):
        rules.step(net)
        seen.append(used(rules.by_layer["6"], net[6]))
    assert len({tuple(b.flatten().tolist()) for b in seen}) == 4


def test_gradients_accumulate_over_parts_of_a_batch_under_one_draw() -> None:
    net, rules = ruled_tower("brsf")
    net.eval()
    x = random(4, 3, 7, 7)

    def loss(part: Tensor) -> Loss:
        return lambda logits: F.cross_entropy(logits, part, reduction="none")

    rules.backward(net, x, loss(LABELS[:4]))
    whole = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for part, labels in zip(x.split(2), LABELS[:4].split(2), strict=True):
        rules.backward(net, part, loss(labels))
    for p, wanted in zip(net.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad / 2, wanted, rtol=0, atol=1e-14)


def test_two_seeds_and_two_layers_of_one_shape_draw_different_feedback() -> None:
    layer = filled(nn.Linear(6, 5))
    for kind in ("fa", "frsf", "brsf"):
        draws = [made(kind, layer, seed=seed, name=name) for seed, name in product((0, 1), "ab")]
        seen = {tuple(used(rule, layer).abs().flatten().tolist()) for rule in draws}
        assert len(seen) == 4
        assert torch.equal(used(made(kind, layer), layer), used(made(kind, layer), layer))


def brsf_net(seed: int) -> tuple[Net, LayerRules]:
    net = nets.build("cnn", Inputs((3, 7, 7), 3, (0.0,) * 3, (1.0,) * 3), seed=seed, widths=(4, 6)).double()
    rules = attach(net, "brsf", seed=seed)
    assert isinstance(rules, LayerRules)
    return net, rules


def test_brsf_goes_on_with_the_same_draws_from_a_networks_saved_state() -> None:
    (net, rules), (resumed, its_rules) = brsf_net(0), brsf_net(9)
    for _ in range(2):
        learn(net, rules)
    resumed.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
    for _ in range(3):
        pairs = zip(matrices(net, rules), matrices(resumed, its_rules), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        learn(net, rules)
        learn(resumed, its_rules)
        state = resumed.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("kind", FEEDBACK)
def test_rules_draw_from_private_streams(kind: str) -> None:
    layer = Case().layer()
    before = torch.get_rng_state()
    rule = made(kind, layer)
    rule(layer, random(2, 4, 5, 5).requires_grad_(True)).sum().backward()
    rule.step(layer)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(params=["xavier", "kaiming"])
def law(request: pytest.FixtureRequest) -> RuleOptions:
    return RuleOptions(init=request.param)


ANGLES = {"bp": (0, 1e-3), "usf": (30.0, 0.5), "frsf": (41.4, 0.7), "brsf": (41.4, 0.7), "fa": (90, 2)}


@pytest.mark.parametrize("kind", FEEDBACK)
def test_initial_angles_and_norms_of_feedback_against_the_weights(kind: str, law: RuleOptions) -> None:
    net = nets.build("cnn", Inputs((64, 4, 4), 40, (0.0,) * 64, (1.0,) * 64), seed=0, widths=(32, 64))
    net.stages[1].conv = nn.Conv2d(256, 512, 3, groups=8, bias=False)
    attach(net, kind, options=vars(law))
    if kind == "bp":
        net.rules = LayerRules(net, dict.fromkeys(("stages.0.conv", "stages.1.conv"), "bp"), vars(law), 0, 40)
    initialise(net, law, seed=0)
    assert isinstance(net.rules, LayerRules)
    for layer, rule in net.rules.pairs(net):
        if layer.weight.numel() < 10_000:
            continue
        b, w = used(rule, layer), layer.weight.detach()
        centre, within = ANGLES[kind]
        assert angle(b, w) == pytest.approx(centre, abs=within)
        assert (b.norm() / w.norm()).item() == pytest.approx(1, abs=0.02)


def test_random_feedback_follows_the_uniform_law_of_the_weights(law: RuleOptions) -> None:
    layer = nn.Conv2d(96, 192, 3, groups=4, bias=False)
    fan_in, per_group = 24 * 9, 192 * 9 // 4
    bound = 1 / fan_in**0.5 if law.init == "kaiming" else (6 / (fan_in + per_group)) ** 0.5
    quantiles = torch.linspace(0.05, 0.95, 19)
    for kind, low in {"fa": -bound, "frsf": 0.0, "brsf": 0.0}.items():
        rule = RULES.get(kind)(layer, Draw(3, "layer", law))
        b = used(rule, layer) * (1 if kind == "fa" else layer.weight.detach().sign())
        assert low <= b.min()
        assert b.max() <= bound
        wanted = low + quantiles * (bound - low)
        torch.testing.assert_close(b.flatten().quantile(quantiles), wanted, rtol=0, atol=0.02 * bound)


@pytest.mark.parametrize(
    ("init", "depthwise", "pointwise"), [("xavier", 1 / 3, 0.25), ("kaiming", 1 / 27**0.5, 1 / 48**0.5)]
)
def test_golden_scale_of_sep_conv_with_16_channels(init: str, depthwise: float, pointwise: float) -> None:
    op = operation("sep_conv_3x3", 16, 1)
    assert sum(p.numel() for p in op.parameters()) == 864
    for name, layer in op.named_modules():
        if isinstance(layer, nn.Conv2d):
            b = used(made("usf", layer, init=init), layer)
            wanted = depthwise if name.endswith("depthwise") else pointwise
            torch.testing.assert_close(b.abs(), torch.full_like(b, wanted), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("layer", "grouped", "reference"),
    [
        (nn.Linear(7, 5), (7, 5), (7, 5)),
        (nn.Conv2d(6, 4, (3, 5)), (90, 60), (90, 60)),
        (nn.Conv2d(16, 16, 3, groups=16), (9, 9), (9, 144)),
        (nn.Conv2d(8, 12, 1, groups=4), (2, 3), (2, 12)),
    ],
    ids=str,
)
def test_fans(layer: Layer, grouped: tuple[int, int], reference: tuple[int, int]) -> None:
    assert fans(layer) == grouped
    # BioTorch takes the shape of the tensor.
    window = layer.weight[0, 0].numel()
    assert (layer.weight.shape[1] * window, layer.weight.shape[0] * window) == reference


def test_the_depthwise_feedback_of_biotorch_is_weaker_than_ours() -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
    biotorch = math.sqrt(2 / (9 + 144))
    assert biotorch == pytest.approx(0.11433, abs=5e-6)
    torch.testing.assert_close(
        used(made("usf", layer), layer).abs(), torch.full((16, 1, 3, 3), biotorch * 153**0.5 / 18**0.5)
    )


def test_angles_of_what_is_handed_down_order_the_rules() -> None:
    cosines: dict[str, float] = {}
    for kind in FEEDBACK:
        found = []
        for seed in range(6):
            layer = nn.Conv2d(8, 8, 3, padding=1, bias=False).double()
            layer.weight.data.copy_(Draw(seed, "layer", RuleOptions()).like_weight(layer, "weight"))
            x = random(4, 8, 8, 8, seed=seed).requires_grad_(True)
            g = random(4, 8, 8, 8, seed=seed + 50)
            mine = torch.autograd.grad(made(kind, layer, seed=seed)(layer, x), x, g)[0]
            exact = torch.autograd.grad(layer(x), x, g)[0]
            found.append(F.cosine_similarity(mine.flatten(), exact.flatten(), dim=0).item())
        cosines[kind] = sum(found) / len(found)
    assert cosines["bp"] == pytest.approx(1, abs=1e-12)
    assert cosines["usf"] == pytest.approx(math.sqrt(3) / 2, abs=0.03)
    assert cosines["frsf"] == pytest.approx(3 / 4, abs=0.05)
    assert cosines["brsf"] == pytest.approx(3 / 4, abs=0.05)
    assert cosines["fa"] == pytest.approx(0, abs=0.1)


def teacher(seed: int, activation: nn.Module) -> tuple[nn.Sequential, LayerRules, Tensor, Loss]:
    """512 samples of a linear map, and a 30-20-10 network with fixed random feedback that is to learn it."""
    x = random(512, 30, seed=seed).float()
    y = x @ (random(30, 10, seed=seed + 1) / 30**0.5).float()
    net = nn.Sequential(nn.Linear(30, 20, bias=False), activation, nn.Linear(20, 10, bias=False))
    for i in (0, 2):
        net[i].weight.data = 0.1 * random(*net[i].weight.shape, seed=seed + 2 + i).float()
    rules = LayerRules(net, {"0": "fa", "2": "fa"}, {}, seed, 10)
    return net, rules, x, lambda logits: (logits - y).square().sum(1) / 2


@pytest.mark.parametrize("seed", [0, 20, 40])
@pytest.mark.parametrize("activation", [nn.Identity(), nn.Tanh()], ids=["linear", "tanh"])
def test_weights_turn_towards_fixed_random_feedback(activation: nn.Module, seed: int) -> None:
    net, rules, x, loss = teacher(seed, activation)
    feedback = rules.by_layer["2"].feedback
    assert isinstance(feedback, Tensor)
    unrelated = Draw(seed + 1, "another", RuleOptions()).like_weight(net[2], "fa")
    assert 75 < angle(feedback, net[2].weight) < 105
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(250):
        optimiser.zero_grad()
        rules.backward(net, x, loss)
        optimiser.step()
    assert angle(feedback, net[2].weight) < 60
    assert 75 < angle(unrelated, net[2].weight) < 105


@pytest.mark.parametrize(("sign", "compare"), [(1, torch.lt), (-1, torch.gt)], ids=["aligned", "opposed"])
def test_hidden_layer_descends_by_the_weights_and_climbs_by_their_opposite(
    sign: int, compare: Callable[[Tensor, Tensor], Tensor]
) -> None:
    net, rules, x, loss = teacher(0, nn.Tanh())
    rules.by_layer["2"].feedback.copy_(sign * net[2].weight.detach())
    optimiser = torch.optim.SGD(net[0].parameters(), 0.1)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        losses.append(loss(rules.backward(net, x, loss)).mean())
        optimiser.step()
    assert all(compare(after, before) for before, after in pairwise(losses))


def test_backward_twice_through_the_bp_rule_is_that_of_autograd() -> None:
    layer = replace(Case(), stride=2, padding=1, groups=2).layer()
    rule = made("bp", layer)
    x = random(2, 4, 6, 6).requires_grad_(True)
    second = []
    for forward in (layer, lambda z: rule(layer, z)):
        (g,) = torch.autograd.grad(forward(x).tanh().square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(g.square().sum(), (x, layer.weight, layer.bias)))
    for mine, autograds in zip(second[1], second[0], strict=True):
        torch.testing.assert_close(mine, autograds, rtol=0, atol=1e-12)
