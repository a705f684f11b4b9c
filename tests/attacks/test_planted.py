"""Networks whose gradient vanishes: what stands in leads as far as an attack on the honest network that they hide."""

from typing import Any

import planted
import pytest
import torch
from planted import PLANTED, HardVote, honest
from torch import Tensor, nn

import robustbench_bio as rb
from robustbench_bio import evaluate
from robustbench_bio.attacks import WhiteBoxModel, make
from robustbench_bio.attacks.access.stand_ins import StandIns
from robustbench_bio.attacks.access.surrogate import has_steps, with_surrogate, without_final_softmax
from robustbench_bio.attacks.access.trace import trace
from robustbench_bio.attacks.losses import SATURATED, cross_entropy
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.diagnosis.diagnose import diagnose
from robustbench_bio.evaluation.planning import gradients_of
from robustbench_bio.records.threat import Threat

EPS = 16 / 255

BOTH = ["surrogate:triangle", "surrogate:arctan"]
EXPECTED = {
    "softmax × 100": ["exact"], "softmax of logits × 100": ["exact"], "purification": ["own", "exact"],
    "saturation": ["exact"],
}  # fmt: skip


def data(n: int) -> tuple[Tensor, Tensor]:
    return rb.load_data("digits", n_examples=n)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "hard vote")) for n in PLANTED])
def test_the_gradients_to_follow_are_known_and_lead_somewhere(name: str) -> None:
    net, (x, y) = PLANTED[name]().eval(), data(8)
    kinds = [str(kind) for kind in gradients_of(net, None, x)]
    assert kinds == EXPECTED.get(name, BOTH)
    graph = trace(net, x)
    assert has_steps(graph) == (kinds == BOTH)
    for kind in kinds:
        gradient = WhiteBoxModel(net, kind).gradient(x, y, cross_entropy).gradient
        assert (gradient.flatten(1).abs().amax(1) > 0).all(), kind
    if kinds == BOTH:
        assert torch.equal(with_surrogate(graph, "arctan")(x), net(x))


def transferred(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return who withstands what fools the honest networks behind a planted one: bool [n]."""
    sources = [honest()] if not isinstance(net, HardVote) else [planted.Mean(net.nets, w) for w in planted.WEIGHTS]
    robust = net(x).argmax(1) == y
    for source in sources:
        for attack in ("pgd", "apgd-dlr"):
            built = make(attack, "linf", {"steps": 40, "early_exit": False})
            white_box, rng = WhiteBoxModel(source.eval()), ExampleRng(0, range(len(y)))
            robust &= net(built.perturb(white_box, x, y, Threat("linf", EPS), rng).x_adv).argmax(1) == y
    return robust


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_the_worst_case_comes_near_the_best_known_attack(name: str) -> None:
    net, (x, y) = PLANTED[name]().eval(), data(24 if name == "hard vote" else 48)
    measured = [
        evaluate(net, (x, y), attack=attack, eps=EPS, gradient=kind, **budget)
        for kind in gradients_of(net, None, x[:8])
        for attack, budget in (("pgd", {"steps": 20}), ("apgd-ce", {"steps": 20}), ("apgd-dlr", {"steps": 20}))
    ]
    search: dict[str, Any] = {"queries": 300, "restarts": 2}
    measured.append(evaluate(net, (x, y), attack="square", eps=EPS, queries=300))
    coordinate = evaluate(net, (x, y), attack="coordinate", eps=EPS, **search)
    worst = torch.tensor([one.outcomes["robust"].tolist() for one in (*measured, coordinate)]).all(0)
    best = transferred(net, x, y) & torch.tensor(coordinate.outcomes["robust"].tolist())
    assert worst.float().mean() <= best.float().mean() + 0.05


def test_where_the_own_gradient_is_the_better_one_only_the_number_by_the_exact_one_is_doubtful() -> None:
    net, (x, y) = PLANTED["purification"]().eval(), data(100)
    report = diagnose(net, (x, y), eps=EPS, steps=10, queries=20)
    assert (report.number, report.verdict) == ("doubtful", "sound")
    assert "own-beats-exact" in report.flags
    assert "false-own-gradient" not in report.flags


class Linear(nn.Module):
    """f(W, x): one layer of weights between 64 pixels and ten classes, used as `f` says."""

    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f
        self.weight = nn.Parameter(torch.randn(10, 64, generator=torch_generator(0, "linear")))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.f(self.weight, x.flatten(1))
        return logits


def slopes(net: nn.Module, x: Tensor, row: int = 0) -> Tensor:
    """Return the derivative of a class's output by the pixels, through the stand-ins."""
    soft, point = with_surrogate(trace(net.eval(), x), "arctan"), x.clone().requires_grad_(True)
    out = soft(point)
    assert torch.equal(out, net(x))
    return torch.autograd.grad(out[:, row].sum(), point)[0].flatten(1)


TABLE = torch.linspace(0, 1, 9)
WHOLE: dict[str, tuple[Any, float]] = {
    "int": (lambda w, x: (16 * x).int().float() / 16 @ w.T, 1),
    "uint8": (lambda w, x: (16 * x).to(torch.uint8) / 16 @ w.T, 1),
    "shift": (lambda w, x: ((255 * x).to(torch.uint8) >> 4 << 4).float() / 255 @ w.T, 1),
    "floor": (lambda w, x: (255 * x).long().div(16, rounding_mode="floor").float() / 16 @ w.T, 255 / 256),
    "float floor": (lambda w, x: (x // 0.0625) / 16 @ w.T, 1),
    "bucket": (lambda w, x: torch.bucketize(x, TABLE[1:-1]).float() / 8 @ w.T, 1),
    "searchsorted": (lambda w, x: torch.searchsorted(TABLE[1:-1], x).float() / 8 @ w.T, 1),
    "table": (lambda w, x: TABLE[torch.bucketize(x, TABLE[1:-1])] @ w.T, 1),
    "embedding": (lambda w, x: nn.functional.embedding((8 * x).long(), TABLE[:, None]).squeeze(-1) @ w.T, 1),
}


@pytest.mark.parametrize("form", WHOLE)
def test_whole_numbers_have_the_slope_that_they_have_on_average(form: str) -> None:
    f, slope = WHOLE[form]
    net, x = Linear(f), torch.rand(4, 1, 8, 8, generator=torch_generator(1, "x"))
    assert has_steps(trace(net.eval(), x))
    found, expected = slopes(net, x), slope * net.weight[0].detach().expand(4, -1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


CHOICES: dict[str, Any] = {
    "one-hot": lambda z: nn.functional.one_hot(z.argmax(1), 10).float(),
    "max": lambda z: nn.functional.one_hot(z.max(1).indices, 10).float(),
    "scatter": lambda z: torch.zeros(len(z), 10).scatter(1, z.argmax(1, keepdim=True), 1.0),
    "table": lambda z: torch.eye(10)[z.argmax(1)],
}


@pytest.mark.parametrize("form", CHOICES)
def test_the_choice_of_the_largest_has_the_slope_of_a_softmax(form: str) -> None:
    net, x = Linear(lambda w, x: CHOICES[form](x @ w.T)), torch.rand(4, 1, 8, 8, generator=torch_generator(1, "x"))
    point = x.clone().requires_grad_(True)
    z = point.flatten(1) @ net.weight.T
    soft = (z / (0.2 * z.detach().std(1, keepdim=True, correction=0))).softmax(1)
    expected = torch.autograd.grad(soft[:, 3].sum(), point)[0].flatten(1)
    torch.testing.assert_close(slopes(net, x, row=3), expected, rtol=1e-3, atol=1e-5)


def test_places_and_masks_that_do_not_depend_on_the_input_are_no_steps() -> None:
    def masked(w: Tensor, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        return (x * (place % 2 == 0).float() * (place < 50)) @ w.T

    net, x = Linear(masked).eval(), torch.rand(4, 1, 8, 8)
    assert not has_steps(trace(net, x))


@pytest.mark.parametrize(
    ("tail", "looked_behind"),
    [
        (lambda z: z.softmax(1), True), (lambda z: 1 + 100 * z.softmax(-1) / 3, True),
        (lambda z: z.softmax(1).log(), True), (lambda z: -z.softmax(1), False), (lambda z: z.softmax(0), False),
        (lambda z: z.log_softmax(1), False), (lambda z: z, False), (lambda z: z.softmax(1) * z, False),
    ],
)  # fmt: skip
def test_only_a_final_softmax_that_keeps_the_order_is_looked_behind(tail: Any, looked_behind: bool) -> None:
    net, x = Linear(lambda w, x: tail(x @ w.T)).eval(), torch.rand(4, 1, 8, 8)
    graph = trace(net, x)
    behind = without_final_softmax(graph)
    assert (behind is not graph) == looked_behind
    if looked_behind:
        torch.testing.assert_close(behind(x), x.flatten(1) @ net.weight.T)
        assert WhiteBoxModel(net).logits(x).equal(net(x))


def test_the_loss_rises_on_where_float32_rounds_the_cross_entropy_to_zero() -> None:
    lead = torch.tensor([500.0, SATURATED + 1, SATURATED - 1, 60.0, 3.0, -2.0])
    logits = torch.stack([lead, torch.zeros(6), torch.full((6,), -5.0)], 1).requires_grad_(True)
    loss = cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    assert (loss.diff() >= 0).all()
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (gradient[:, 1] > 0).all()
    plain = nn.functional.cross_entropy(logits[2:], torch.zeros(4, dtype=torch.int64), reduction="none")
    assert torch.equal(loss[2:], plain)


def test_a_clamp_hands_down_the_tails_of_the_surrogate_but_is_no_step() -> None:
    net, x = Linear(lambda w, x: (4 * x - 1.5).clamp(0, 1) @ w.T), torch.rand(4, 1, 8, 8)
    graph = trace(net.eval(), x)
    made = StandIns(graph.graph, "arctan")
    assert (made.steps, made.saturations) == (0, 1)
    v = 4 * x.flatten(1) - 1.5
    outside = (-v).clamp_min(0) + (v - 1).clamp_min(0)
    expected = 4 * net.weight[0].detach() / (1 + (torch.pi * outside).square())
    torch.testing.assert_close(slopes(net, x), expected, rtol=1e-3, atol=1e-4)
