"""What the gate refuses, what the judge refuses, and that neither refuses or alters what is honest."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.attacks import Attack, Proposal, WhiteBoxModel, make
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.evaluation.fingerprint import state_sha256
from robustbench_bio.evaluation.judge import AttackViolation, checked_logits, gate, judge
from robustbench_bio.records.threat import NORMS, Norm, Threat

SHAPE = (3, 4, 4)
LINF = Threat("linf", 0.1)


def same(tensor: Tensor) -> Tensor:
    return tensor


class Bent(nn.Module):
    """A fixed linear classifier, whose logits and inputs other functions bend."""

    def __init__(self, bend: Callable[[Tensor], Any] = same, before: Callable[[Tensor], Tensor] = same) -> None:
        super().__init__()
        weight = torch.randn(5, 48, generator=torch_generator("judge"))
        self.linear = nn.Linear(48, 5)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.zero_()
        self.bend = bend
        self.before = before

    def forward(self, x: Tensor) -> Any:
        return self.bend(self.linear(self.before(x).flatten(1)))


@pytest.fixture
def net() -> nn.Module:
    return Bent().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(12, *SHAPE, generator=torch_generator("x"))


@pytest.fixture
def y(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).argmax(1)


def through_gate(net: nn.Module, x: Tensor, y: Tensor, attack: Attack | None = None, threat: Threat = LINF) -> None:
    gate(net, attack or make("pgd", "linf", {"steps": 2}), WhiteBoxModel(net), x, y, threat)


# --- gate ---------------------------------------------------------------------------------------------------------


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.inner = Bent()

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.norm(x))


class Gaussian(nn.Module):
    """Noise on the activations in every mode, from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch_generator("noise")
        self.inner = Bent()

    def forward(self, x: Tensor) -> Any:
        return self.inner(x + 0.05 * torch.randn(x.shape, generator=self.generator))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Bent(lambda z: F.dropout(z, 0.5, training=True)), "the network is random"),
        (Gaussian(), "the network is random"),
        (BatchStatistics(), "do not depend on the rest of the batch.*batch statistics"),
        (Bent(lambda z: z - z.mean(0)), "do not depend on the rest of the batch"),
        (Bent(lambda z: z + torch.arange(len(z))[:, None]), "do not depend on the rest of the batch"),
        (Bent(lambda z: z + (len(z) == 1)), "do not depend on the rest of the batch"),
        (Bent(lambda z: torch.where(z > 4, math.nan, z)), "expected finite logits"),
        (Bent(lambda z: z / 0), "expected finite logits"),
        (Bent(lambda z: z[0]), r"expected logits \[\d+, K\] of K >= 2 classes, got \(5,\)"),
        (Bent(lambda z: z[:, :, None, None]), r"got \(8, 5, 1, 1\): pass lambda x: model\(x\).flatten\(1\)$"),
        (Bent(lambda z: z[:3]), r"expected logits \[\d+, K\] of K >= 2 classes, got \(3, 5\)$"),
        (Bent(lambda z: z[:, :1]), r"got \(8, 1\): of a single logit pass lambda x: torch.nn.functional.pad"),
        (Bent(lambda z: z[:, 0]), r"got \(8,\): of a single logit pass lambda x: torch.nn.functional.pad"),
        (
            Bent(lambda z: torch.stack([z, z, z])),
            r"got \(3, 8, 5\): of time steps pass lambda x: model\(x\).mean\(0\)$",
        ),
        (Bent(lambda z: (z.sum(), z)), r"K >= 2 classes, got tuple: pass lambda x: model\(x\)\[1\]$"),
        (Bent(lambda z: [z, z]), r"K >= 2 classes, got list: pass lambda x: model\(x\)\[0\]$"),
        (Bent(lambda _: None), r"K >= 2 classes, got NoneType$"),
        (Bent(lambda z: {"features": z}), r"got dict: pass lambda x: model\(x\)\['features'\]$"),
        (Bent(lambda z: {"features": z, "logits": z}), r"got dict: pass lambda x: model\(x\)\['logits'\]$"),
    ],
)
def test_the_gate_refuses_a_network_that_cannot_be_judged(net: nn.Module, message: str, x: Tensor) -> None:
    with pytest.raises(UserError, match=message):
        through_gate(net.eval(), x, torch.zeros(12, dtype=torch.int64))


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(48), nn.Identity()])
def test_the_gate_refuses_any_module_in_train_mode(part: nn.Module, x: Tensor, y: Tensor) -> None:
    net = nn.Sequential(nn.Flatten(), part, nn.Linear(48, 5)).eval()
    through_gate(net, x, y)
    part.train()
    with pytest.raises(UserError, match=r"expected the model in eval mode, got '1' in train mode: call model.eval\(\)"):
        through_gate(net, x, y)
    net.train()
    with pytest.raises(UserError, match="got 'Sequential' in train mode"):
        through_gate(net, x, y)


@pytest.mark.parametrize("row", [0, 11])
@pytest.mark.parametrize("label", [-1, 5, 1000])
def test_the_gate_refuses_labels_without_a_logit(net: nn.Module, x: Tensor, y: Tensor, row: int, label: int) -> None:
    y[row] = label
    with pytest.raises(UserError, match=r"expected labels in 0…4 for 5 logits, got .*" + str(label)):
        through_gate(net, x, y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed(Attack):
    """Proposes what a function of (x, threat) says."""

    norms: ClassVar[frozenset[Norm]] = frozenset(NORMS)

    move: Callable[[Tensor, Threat], Tensor]

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        del model, rng
        return Proposal(self.move(x, threat), torch.ones_like(y), torch.ones_like(y))


@pytest.mark.parametrize("norm", NORMS)
def test_the_gate_refuses_an_attack_that_moves_inputs_at_eps_zero(
    net: nn.Module, x: Tensor, y: Tensor, norm: Norm
) -> None:
    threat = Threat(norm, 2.0)
    through_gate(net, x, y, Fixed(move=lambda x, _: x), threat)
    through_gate(net, x, y, Fixed(move=lambda x, t: (x + t.eps).clamp(0, 1)), threat)
    for move in (
        lambda x, _: (x + 1e-4).clamp(0, 1),
        lambda x, t: 1 - x if t.eps == 0 else x,
        lambda x, _: x * math.nan,
        lambda x, _: x[:, :1],
    ):
        with pytest.raises(AttackViolation, match="moved an input at eps = 0"):
            through_gate(net, x, y, Fixed(move=move), threat)


class Branching(nn.Module):
    """Another way through the network for dark inputs; no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() < 0:
            return x.flatten(1)[:, :5]
        return x.flatten(1)[:, :5] * 10


@pytest.mark.parametrize(
    "net",
    [
        Bent(),
        Bent(lambda z: z.half()),
        Bent(lambda z: z.double()),
        Bent(lambda z: z * 1e-6),
        Bent(lambda z: z * 1e6),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)),
        nn.Sequential(nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(48, 5)),
        Branching(),
    ],
)
@pytest.mark.parametrize("n", [1, 2, 8, 12])
def test_honest_networks_pass_the_gate_unchanged(net: nn.Module, n: int, x: Tensor) -> None:
    net.eval()
    before = state_sha256(net)
    through_gate(net, x[:n], torch.zeros(n, dtype=torch.int64))
    assert state_sha256(net) == before
    assert not any(module.training for module in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_a_network_with_constant_logits_passes_the_gate(x: Tensor) -> None:
    through_gate(Bent(lambda z: z * 0).eval(), x, torch.zeros(12, dtype=torch.int64))


# --- judge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_the_judge_recomputes_prediction_and_size(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    threat = Threat(norm, 20.0)
    x_adv = (x + 0.4 * torch.randn(x.shape, generator=torch_generator("delta"))).clamp(0, 1)
    x_adv[3] = x[3]
    given = x_adv.clone()
    predicted, size = judge(net, x, x_adv, y, threat)
    assert torch.equal(x_adv, given)
    logits = [sum(w * v for w, v in zip(row, x_adv[0].flatten().tolist(), strict=True)) for row in net.linear.weight]
    assert predicted[0].item() == max(range(5), key=lambda k: logits[k].item())
    assert torch.equal(predicted, net(x_adv).argmax(1))
    delta = (x_adv.double() - x.double()).flatten(1)
    pixels = (x_adv != x).any(1).flatten(1).sum(1).double()
    expected = {"linf": delta.abs().amax(1), "l2": delta.square().sum(1).sqrt(), "l1": delta.abs().sum(1), "l0": pixels}
    torch.testing.assert_close(size.double(), expected[norm], rtol=1e-5, atol=1e-6)
    assert size[3].item() == 0
    assert predicted[3] == y[3]


def one_value(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[7, 1, 2, 3] = value
    return x


def beyond(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """Row 7 moved towards the middle of the box by a perturbation of size eps."""
    direction = (0.5 - x[7]).sign() if norm == "linf" else (0.5 - x[7]).sign() * torch.rand(SHAPE)
    if norm == "l0":
        chosen = torch.zeros(16)
        chosen[: int(eps)] = 1
        delta = (0.5 - x[7]) * chosen.view(1, 4, 4)
    else:
        delta = direction / torch.linalg.vector_norm(direction, {"linf": math.inf, "l2": 2, "l1": 1}[norm]) * eps
    x = x.clone()
    x[7] += delta
    return x


@pytest.mark.parametrize(
    ("norm", "eps", "more"), [("linf", 8 / 255, 1.01), ("l2", 0.5, 1.01), ("l1", 2.0, 1.01), ("l0", 2, 1.5)]
)
def test_the_judge_refuses_a_single_row_outside_the_ball(
    net: nn.Module, x: Tensor, y: Tensor, norm: Norm, eps: float, more: float
) -> None:
    judge(net, x, beyond(x, norm, eps), y, Threat(norm, eps))
    with pytest.raises(AttackViolation, match=rf"1 of 12 proposals leave the threat model: largest {norm} size "):
        judge(net, x, beyond(x, norm, more * eps), y, Threat(norm, eps))


def test_a_violation_tells_the_size_the_radius_and_the_range(net: nn.Module, x: Tensor, y: Tensor) -> None:
    flat = torch.full_like(x, 0.5)
    with pytest.raises(AttackViolation, match=r"largest linf size 0\.25 for eps 0\.125, values in \[0\.5, 0\.75\]"):
        judge(net, flat, one_value(flat, 0.75), y, Threat("linf", 0.125))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [-1e-6, 1 + 1e-6, 1.5, math.nan, math.inf, -math.inf])
def test_the_judge_refuses_values_outside_the_box(
    net: nn.Module, x: Tensor, y: Tensor, norm: Norm, value: float
) -> None:
    with pytest.raises(AttackViolation):
        judge(net, x, one_value(x, value), y, Threat(norm, 20.0))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x[:-1],
        lambda x: x[:, :1],
        lambda x: x.flatten(1),
        lambda x: x[None],
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x.bfloat16(),
    ],
)
def test_the_judge_refuses_another_shape_or_type(net: nn.Module, x: Tensor, y: Tensor, spoil: Any) -> None:
    with pytest.raises(AttackViolation, match=r"expected torch.float32 \(12, 3, 4, 4\), got"):
        judge(net, x, spoil(x), y, Threat("linf", 1.0))


def test_the_judge_refuses_a_network_in_train_mode(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net.linear.train()
    with pytest.raises(AttackViolation, match="'linear' in train mode"):
        judge(net, x, x, y, LINF)


def test_a_proposal_that_breaks_the_network_is_the_networks_fault(x: Tensor, y: Tensor) -> None:
    net = Bent(before=lambda x: torch.where(x == 1, math.nan, x)).eval()
    judge(net, x, x, y, LINF)
    with pytest.raises(UserError, match="expected finite logits"):
        judge(net, x, one_value(x, 1.0), y, Threat("linf", 1.0))


def test_logits_are_judged_in_float32_whatever_the_network_returns(x: Tensor, y: Tensor) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        logits = checked_logits(Bent(lambda z, dtype=dtype: z.to(dtype)).eval(), x, y)
        assert logits.dtype == torch.float32
        assert not logits.requires_grad
