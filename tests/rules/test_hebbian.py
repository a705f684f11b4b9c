from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.rules.base import RULES, Draw, Layer
from robustbench_bio.rules.hebbian import HardWta, Hebbian, Oja, SoftHebb
from robustbench_bio.rules.layers import LayerRules
from robustbench_bio.rules.options import own_options

KINDS = {"oja": Oja, "hard-wta": HardWta, "softhebb": SoftHebb}
LR = 0.05


@dataclass(frozen=True)
class Case:
    stride: int = 1
    padding: int | str = 0
    dilation: int = 1
    groups: int = 1
    mode: str = "zeros"
    kernel: tuple[int, int] = (3, 3)

    def layer(self) -> nn.Conv2d:
        return nn.Conv2d(
            4,
            8,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.mode,
        )

    def patches(self, x: Tensor) -> Tensor:
        if self.padding == "same":
            excess = [self.dilation * (k - 1) for k in self.kernel]
            before = [e // 2 for e in excess]
            pad = [before[1], excess[1] - before[1], before[0], excess[0] - before[0]]
        else:
            pad = [int(self.padding)] * 4
        x = F.pad(x, pad, mode="constant" if self.mode == "zeros" else self.mode)
        rows = F.unfold(x, self.kernel, self.dilation, 0, self.stride)
        return rows.view(len(x), self.groups, -1, rows.shape[-1]).permute(1, 0, 3, 2).flatten(1, 2)


CASES = [Case(s, p, d, g) for s, p, d, g in product((1, 2), (0, 1, 2), (1, 2), (1, 2, 4))]
CASES += [Case(1, 2, 1, 2, mode) for mode in ("reflect", "replicate", "circular")]
CASES += [Case(1, "same", 1, 1, "zeros", (2, 4)), Case(1, "same", 1, 2, "reflect", (2, 3))]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "test"), dtype=torch.float64)


def prepared(layer: Layer, kind: str, *, std: float = 0.4, **options: object) -> Hebbian:
    layer.double()
    with torch.no_grad():
        layer.weight.copy_(std * random(*layer.weight.shape, seed=1))
        if layer.bias is not None:
            layer.bias.copy_(random(*layer.bias.shape, seed=2))
    values = {"local_lr": LR, "softhebb_inverse_temperature": 1.7, **options}
    return KINDS[kind](layer, Draw(0, "layer", own_options(KINDS[kind].takes, values)))


def expected_change(kind: str, patches: Tensor, w: Tensor) -> Tensor:
    """Patches [P, K] and weights [O, K] of one group, unit by unit as in the papers."""
    u = patches @ w.T
    p = torch.exp(1.7 * u) / torch.exp(1.7 * u).sum(1, keepdim=True)
    rows = []
    for o in range(len(w)):
        wins = u[:, o] == u.max(1).values
        if kind == "oja":
            rows.append(LR * (u[:, o, None] * (patches - u[:, o, None] * w[o])).mean(0))
        elif kind == "hard-wta":
            rows.append(LR * (wins[:, None] * (patches - w[o])).mean(0))
        else:
            y = torch.where(wins, p[:, o], -p[:, o])
            rows.append((y[:, None] * (patches - u[:, o, None] * w[o])).sum(0))
    change = torch.stack(rows)
    if kind == "softhebb":
        rate = LR * ((w.square().sum(1).sqrt() - 1).abs() + 1e-10) ** 0.5
        change = rate[:, None] * change / change.abs().max()
    return change


@pytest.mark.parametrize("kind", KINDS)
def test_is_registered_as_a_local_rule(kind: str) -> None:
    assert RULES.get(kind) is KINDS[kind]
    assert KINDS[kind].local


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_conv_update_follows_the_equations_on_unfolded_patches(kind: str, case: Case) -> None:
    layer = case.layer()
    rule = prepared(layer, kind)
    x = random(3, 4, 7, 6)
    before = layer.weight.detach().clone()
    rule(layer, x)
    rule.step(layer)
    groups = zip(case.patches(x), before.flatten(1).chunk(case.groups), strict=True)
    change = torch.cat([expected_change(kind, patches, w) for patches, w in groups])
    torch.testing.assert_close(layer.weight.detach(), before + change.view_as(before), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 5), (3, 3, 5), (1, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_update_follows_the_equations(kind: str, shape: tuple[int, ...]) -> None:
    layer = nn.Linear(5, 4)
    rule = prepared(layer, kind)
    x = random(*shape)
    before = layer.weight.detach().clone()
    bias = layer.bias.detach().clone()
    rule(layer, x)
    rule.step(layer)
    after = before + expected_change(kind, x.reshape(-1, 5), before)
    torch.testing.assert_close(layer.weight.detach(), after, rtol=0, atol=1e-12)
    assert torch.equal(layer.bias, bias)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("local_pass", ["exact", "stop"])
@pytest.mark.parametrize("kind", KINDS)
def test_output_is_that_of_the_plain_layer(kind: str, local_pass: str, training: bool) -> None:
    layers = [(case.layer(), random(3, 4, 7, 6).float()) for case in CASES]
    layers += [
        (nn.Linear(5, 4), random(2, 3, 5).float()),
        (nn.Linear(5, 4, bias=False), random(7, 5).float()),
    ]
    for layer, x in layers:
        rule = prepared(layer, kind, local_pass=local_pass)
        layer.float().train(training)
        assert torch.equal(rule(layer, x), layer(x))


@pytest.mark.parametrize("layer", [Case(2, 1, 1, 2).layer(), Case(1, 2, 2, 1, "reflect").layer(), nn.Linear(6, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_hands_down_the_exact_gradient_or_zeros(kind: str, layer: Layer) -> None:
    x = random(3, 4, 7, 6).requires_grad_(True)
    weights = random(*prepared(layer, kind)(layer, x).shape, seed=3)
    (exact,) = torch.autograd.grad((layer(x).tanh() * weights).sum(), x)
    for local_pass, wanted in [("exact", exact), ("stop", torch.zeros_like(x))]:
        rule = prepared(layer, kind, local_pass=local_pass)
        x.grad = None
        (rule(layer, x).tanh() * weights).sum().backward()
        torch.testing.assert_close(x.grad, wanted, rtol=0, atol=1e-14)
        assert layer.weight.grad is None
        assert layer.bias is not None
        assert layer.bias.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_changes_no_tensor(kind: str) -> None:
    layer = Case(1, 1, 1, 2).layer()
    rule = prepared(layer, kind)
    x = random(3, 4, 7, 6)
    before = {k: v.clone() for k, v in (layer.state_dict() | rule.state_dict() | {"x": x}).items()}
    layer.eval()
    rule(layer, x.clone().requires_grad_(True)).sum().backward()
    rule.step(layer)
    layer.train()
    with torch.no_grad():
        rule(layer, x)
    rule.step(layer)
    after = layer.state_dict() | rule.state_dict() | {"x": x}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("kind", KINDS)
def test_several_passes_before_a_step_are_one_batch_and_a_step_forgets(kind: str) -> None:
    whole, parts = Case(2, 1).layer(), Case(2, 1).layer()
    rule, rule_of_parts = prepared(whole, kind), prepared(parts, kind)
    x = random(5, 4, 7, 6)
    rule(whole, x)
    for part in x.split((1, 3, 1)):
        rule_of_parts(parts, part)
    rule.step(whole)
    rule_of_parts.step(parts)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=0, atol=1e-14)
    moved = parts.weight.detach().clone()
    rule_of_parts.step(parts)
    assert torch.equal(parts.weight, moved)


def test_oja_finds_the_top_principal_direction_of_the_patches_at_unit_norm() -> None:
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    rule = prepared(layer, "oja", local_lr=0.1)
    x = 0.3 * random(4, 2, 9, 9) + random(1, 2, 9, 9, seed=5)
    for _ in range(2000):
        rule(layer, x)
        rule.step(layer)
    patches = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    top = torch.linalg.eigh(patches.T @ patches).eigenvectors[:, -1]
    w = layer.weight.detach().flatten(1)
    torch.testing.assert_close(w.norm(dim=1), torch.ones(3).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close((w @ top).abs(), torch.ones(3).double(), rtol=0, atol=1e-8)


def test_diverging_update_is_named_before_it_reaches_the_weight() -> None:
    layer = nn.Linear(6, 5)
    rule = prepared(layer, "oja", local_lr=3.0)

    def learn() -> None:
        for _ in range(100):
            rule(layer, 2 * random(20, 6))
            rule.step(layer)

    with pytest.raises(UserError, match=r"finite Hebbian update.*local_lr below 3\.0"):
        learn()
    assert layer.weight.isfinite().all()


def test_hard_wta_moves_only_the_winner_towards_the_input() -> None:
    layer = nn.Linear(6, 5)
    rule = prepared(layer, "hard-wta")
    x = random(1, 6)
    before = layer.weight.detach().clone()
    # A bias large enough to reverse the order: the competition is decided without it.
    with torch.no_grad():
        layer.bias.copy_(-10 * (x @ before.T)[0])
    winner = int((x @ before.T).argmax())
    rule(layer, x)
    rule.step(layer)
    losers = torch.arange(5) != winner
    assert torch.equal(layer.weight[losers], before[losers])
    wanted = (1 - LR) * before[winner] + LR * x[0]
    torch.testing.assert_close(layer.weight[winner].detach(), wanted, rtol=0, atol=1e-15)


def test_hard_wta_settles_on_the_means_of_clusters() -> None:
    layer = nn.Linear(2, 2, bias=False)
    rule = prepared(layer, "hard-wta", local_lr=0.5)
    centres = torch.tensor([[3.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    clusters = [centre + 0.1 * random(20, 2, seed=i) for i, centre in enumerate(centres)]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 0.0], [0.0, 0.1]]))
    for _ in range(100):
        rule(layer, torch.cat(clusters))
        rule.step(layer)
    torch.testing.assert_close(layer.weight.detach(), torch.stack([c.mean(0) for c in clusters]))


def test_softhebb_activities_share_one_unit_of_probability_with_one_winner() -> None:
    rule = prepared(nn.Linear(6, 5), "softhebb")
    u = random(4, 2, 5, 3, 3)
    y = rule.respond(u).activity
    torch.testing.assert_close(y.abs().sum(2), torch.ones(4, 2, 3, 3).double(), rtol=0, atol=1e-14)
    assert torch.equal((y > 0).sum(2), torch.ones(4, 2, 3, 3, dtype=torch.int64))
    assert torch.equal(y.argmax(2), u.argmax(2))


@pytest.mark.parametrize(("norm", "factor"), [(1.0, 1e-5), (1.25, 0.5), (0.0, 1.0)])
def test_softhebb_largest_change_is_the_rate_that_the_norm_allows(norm: float, factor: float) -> None:
    layer = nn.Conv2d(4, 8, 3)
    rule = prepared(layer, "softhebb")
    with torch.no_grad():
        scale = norm / layer.weight.flatten(1).norm(dim=1)
        layer.weight.mul_(scale.view(-1, 1, 1, 1))
    before = layer.weight.detach().clone()
    rule(layer, random(3, 4, 7, 6))
    rule.step(layer)
    largest = (layer.weight.detach() - before).abs().max().item()
    assert largest == pytest.approx(LR * factor, rel=1e-5)


def test_softhebb_stays_finite_without_input() -> None:
    layer = nn.Linear(6, 5)
    rule = prepared(layer, "softhebb")
    before = layer.weight.detach().clone()
    rule(layer, torch.zeros(3, 6, dtype=torch.float64))
    rule.step(layer)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("handed", ["exact", "stop"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_network_others_learn_by_gradient_and_the_local_layer_by_its_step(kind: str, handed: str) -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(30, 3),
    ).double()
    x, y = random(4, 4, 7, 6), torch.tensor([0, 1, 2, 1])

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none")

    names = [name for name, _ in net.named_parameters()]
    exact = dict(zip(names, torch.autograd.grad(loss(net(x)).mean(), list(net.parameters())), strict=True))
    rules = LayerRules(net, {"2": kind}, {"local_pass": handed}, seed=0, classes=3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert torch.equal(rules.backward(net, x, loss), net(x))
    assert {id(p) for p in rules.local_parameters(net)} == {id(net[2].weight), id(net[2].bias)}
    for name, parameter in net.named_parameters():
        if name.startswith("2."):
            assert parameter.grad is None
        elif name.startswith("0.") and handed == "stop":
            assert not parameter.grad.any()
        else:
            torch.testing.assert_close(parameter.grad, exact[name], rtol=0, atol=1e-14)
    rules.step(net)
    assert {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])} == {"2.weight"}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("local_pass", ["exact", "stop"])
def test_update_keeps_the_weights_precision_under_autocast(local_pass: str, bias: bool) -> None:
    layers = [nn.Conv2d(4, 8, 3, bias=bias), nn.Conv2d(4, 8, 3, bias=bias)]
    x = random(3, 4, 7, 6).float().requires_grad_(True)
    for layer, enabled in zip(layers, (False, True), strict=True):
        rule = prepared(layer, "oja", local_pass=local_pass)
        layer.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = rule(layer, x)
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        out.sum().backward()
        rule.step(layer)
    assert layers[1].weight.dtype == torch.float32
    torch.testing.assert_close(layers[1].weight, layers[0].weight, rtol=0, atol=2e-3)
