"""The network's own backward pass as a gradient: what other libraries follow, held against the exact one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_bio as rb
from robustbench_bio import evaluate
from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.diagnosis.comparisons import contradictions
from robustbench_bio.diagnosis.diagnose import diagnose
from robustbench_bio.evaluation.planning import gradients_of
from robustbench_bio.records.gradient import EXACT, OWN, RULE, Gradient
from robustbench_bio.report.tables import eval_table

EPS = 24 / 255


class _Feedback(torch.autograd.Function):
    """A linear layer whose gradient goes back through B instead of the weights (Lillicrap et al. 2016)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, b)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, b = ctx.saved_tensors
        return g @ b, g.T @ x, g.sum(0), None


class Aligned(nn.Module):
    """Two layers under feedback alignment, as a user may have written them."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch_generator(0, "aligned")
        self.sizes = ((64, 64), (10, 64))
        for i, (out, inner) in enumerate(self.sizes):
            self.register_parameter(f"w{i}", nn.Parameter(torch.randn(out, inner, generator=draw) / inner**0.5))
            self.register_parameter(f"c{i}", nn.Parameter(torch.zeros(out)))
            self.register_buffer(f"b{i}", torch.randn(out, inner, generator=draw) / inner**0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = _Feedback.apply(x.flatten(1), self.w0, self.c0, self.b0).relu()
        logits: Tensor = _Feedback.apply(hidden, self.w1, self.c1, self.b1)
        return logits


class Broken(Aligned):
    """A network whose author has written no backward pass."""

    class _Closed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self._Closed.apply(x))


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    return rb.load_data("digits", n_examples=100)


@pytest.fixture(scope="module")
def aligned() -> Aligned:
    net, (x, y) = Aligned(), rb.load_data("digits", split="train")
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(200):
        optimiser.zero_grad()
        cross_entropy(net(x), y).mean().backward()
        optimiser.step()
    return net.eval()


def test_own_finds_what_another_library_finds_through_the_module(aligned: Aligned, data: tuple[Tensor, Tensor]) -> None:
    attacks = pytest.importorskip("torchattacks")
    own, exact = (
        evaluate(aligned, data, attack="pgd", eps=EPS, steps=20, gradient=gradient) for gradient in ("own", "exact")
    )
    x, y = data
    torch.manual_seed(0)
    theirs = attacks.PGD(aligned, eps=EPS, alpha=2.5 * EPS / 20, steps=20)(x, y)
    found = (aligned(theirs).argmax(1) == y).float().mean().item()
    assert own.clean_accuracy > 0.9
    assert own.robust_accuracy == pytest.approx(found, abs=0.06)
    assert exact.robust_accuracy < own.robust_accuracy - 0.2
    assert own.provenance.notices == []
    (check,) = (one for one in contradictions([own, exact]) if one.fired)
    assert (check.name, check.implies) == ("false-own-gradient", "masked")
    table = eval_table([own, exact])
    assert "gap = own − exact" in str(table.caption)
    gaps = list(table.columns[4].cells)
    assert gaps[0] == f"{100 * (own.robust_accuracy - exact.robust_accuracy):+.1f}"
    assert gaps[1:] == ["", ""]
    peer = evaluate(aligned, data, eps=EPS, steps=20, gradient="own", backend="torchattacks")
    assert peer.robust_accuracy == pytest.approx(found, abs=0.06)
    assert peer.provenance.notices == []


def test_own_is_the_gradient_that_autograd_hands_down(aligned: Aligned, data: tuple[Tensor, Tensor]) -> None:
    x, y = data
    found = WhiteBoxModel(aligned, OWN).gradient(x, y, cross_entropy)
    point = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(cross_entropy(aligned(point), y).sum(), point)
    torch.testing.assert_close(found.gradient, expected)
    # Of `own`, B stands in for the weights: by hand, layer by layer.
    hidden = x.flatten(1) @ aligned.w0.T + aligned.c0
    error = (hidden.relu() @ aligned.w1.T + aligned.c1).softmax(1) - torch.eye(10)[y]
    by_hand = ((error @ aligned.b1) * (hidden > 0)) @ aligned.b0
    torch.testing.assert_close(found.gradient.flatten(1), by_hand, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("gradient", ["own", "own+eot:2"])
def test_on_an_honest_network_own_is_exact(gradient: str, data: tuple[Tensor, Tensor]) -> None:
    net = rb.load_model("bp-resnet20")
    x, y = data = data[0][:30], data[1][:30]
    exact = WhiteBoxModel(net, EXACT).gradient(x, y, cross_entropy).gradient
    found = WhiteBoxModel(net, gradient).gradient(x, y, cross_entropy).gradient
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5)
    results = [evaluate(net, data, eps=EPS, steps=3, gradient=kind) for kind in (gradient, "exact")]
    assert results[0].outcomes["robust"].tolist() == results[1].outcomes["robust"].tolist()


def test_both_means_what_the_network_says_and_the_truth(aligned: Aligned, data: tuple[Tensor, Tensor]) -> None:
    x = data[0][:2]
    assert gradients_of(aligned, "both", x) == [OWN, EXACT]
    assert gradients_of(rb.load_model("fa-resnet20"), "both", x) == [RULE, EXACT]
    assert gradients_of(rb.load_model("bp-resnet20"), None, x) == [EXACT]


def test_a_backward_pass_that_fails_is_the_users_error(data: tuple[Tensor, Tensor]) -> None:
    net, (x, _) = Broken().eval(), data
    y = net(x).argmax(1)
    with pytest.raises(UserError, match=r"^expected a network that autograd can differentiate for gradient own, got: "):
        evaluate(net, (x, y), attack="fgsm", gradient="own")
    assert evaluate(net, (x, y), attack="fgsm").robust_accuracy < 1
    report = diagnose(net, (x[:60], y[:60]), steps=2, queries=10)
    assert "false-own-gradient" not in report.flags


@pytest.mark.parametrize(
    ("claimed", "others", "held"),
    [
        ("rule", ["rule", "exact", "eot:20"], "exact"),
        ("rule+eot:20", ["exact", "eot:20"], "eot:20"),
        ("rule+eot:3", ["eot:20", "exact"], "exact"),
        ("own+eot:3", ["eot:20", "surrogate:arctan"], "eot:20"),
        ("own", ["rule", "surrogate:arctan"], None),
        ("exact", ["exact"], None),
    ],
)
def test_what_is_claimed_is_held_against_the_exact_gradient(claimed: str, others: list[str], held: str | None) -> None:
    found = Gradient.read(claimed).held_against(map(Gradient.read, others))
    assert (found and str(found)) == held
