"""The contract that every registered attack keeps, and closed forms and peers for the gradient attacks."""

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustbench_bio.attacks import ATTACKS, Attack, Proposal, WhiteBoxModel, make, rules_of
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.attacks.pgd import PGD
from robustbench_bio.attacks.tpgd import TPGD
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.datasets import load_examples, open_dataset
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.nets import Inputs, build
from robustbench_bio.nets.base import Net
from robustbench_bio.records.threat import Norm, Threat
from robustbench_bio.rules import LayerRules, attach
from robustbench_bio.zoo.loading import source_network

#: Radii at which the small network below loses a good part of its accuracy.
EPS: dict[Norm, float] = {"linf": 0.12, "l2": 0.9, "l1": 4.0, "l0": 4}

#: Other work than the papers' defaults, for the attacks that have such a parameter.
BUDGET = {"steps": 8, "restarts": 2, "targets": 2, "queries": 60, "population": 20, "generations": 10, "halvings": 4}

#: Rows of the examples that most terms of the contract need.
FEW = torch.arange(6)

#: Not meant to beat noise on the network itself.
BASELINES = {"noise", "transfer"}

#: Made of other attacks, which keep the contract by themselves.
LONG = {"autoattack", "min-norm"}


# --- networks and examples ------------------------------------------------------------------------------------


def digits(split: str, n: int | None = None) -> tuple[Tensor, Tensor]:
    examples = load_examples("digits", split, n)
    return torch.from_numpy(examples.x).float() / 255, torch.from_numpy(examples.y)


def small(kind: str, **params: Any) -> Net:
    source = open_dataset("digits")
    return build(kind, Inputs(source.shape, 10, source.mean, source.std), seed=0, **params)


def fit(net: Net, backward: Callable[[Tensor, Tensor], object]) -> Net:
    x, y = digits("train")
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        backward(x, y)
        optimiser.step()
    return net.eval()


def fitted(kind: str, **params: Any) -> Net:
    """A small network trained by backpropagation."""
    net = small(kind, **params)
    return fit(net, lambda x, y: F.cross_entropy(net(x), y).backward())  # type: ignore[no-untyped-call]


class Probed(nn.Module):
    """A network in float64 behind an operation that changes nothing, which `Watch` recognises.

    In float64 a row's result does not depend on the rows beside it, to float32 precision.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.fmod(x, 9.0).double()).float()  # type: ignore[no-any-return]


class Bands(nn.Module):
    """Two of ten classes in alternating bands: whoever goes on from a fooling point is soon classified right again."""

    def __init__(self, frequency: float, lift: float) -> None:
        super().__init__()
        self.frequency = frequency
        self.lift = lift

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.cos(self.frequency * (x - 0.5).sum((1, 2, 3))) + self.lift
        return torch.stack([wave, -wave, *[wave * 0 - 3] * 8], 1)


@functools.cache
def bands(frequency: float, lift: float) -> nn.Module:
    return Probed(Bands(frequency, lift)).eval()


class Watch(TorchDispatchMode):
    """Sees every row that passes through a `Probed` network, whoever calls it and however it is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.fmod.Scalar:
            self.seen.append(args[0].detach().clone())
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Probed(fitted("mlp", hidden=(32,))).eval()


@functools.cache
def right_digits(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Fifty test digits that the network gets right."""
    x, y = digits("test", 80)
    right = WhiteBoxModel(net).logits(x).argmax(1) == y
    return x[right][:50], y[right][:50]


@pytest.fixture(scope="module")
def examples(net: nn.Module) -> tuple[Tensor, Tensor]:
    return right_digits(net)


# --- the contract -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One attack under one norm on the small network."""

    attack: Attack
    norm: Norm
    net: nn.Module
    x: Tensor
    y: Tensor

    def propose(self, eps: float | None = None, seed: int = 0, rows: Any = FEW) -> Proposal:
        threat = Threat(self.norm, EPS[self.norm] if eps is None else eps)
        return self.attack.perturb(
            WhiteBoxModel(self.net), self.x[rows], self.y[rows], threat, ExampleRng(seed, rows, "t")
        )


@functools.cache
def accuracy(attack: Attack, norm: Norm, eps: float, net: nn.Module) -> float:
    """Share of the small network's right answers that are robust."""
    x, y = right_digits(net)
    proposal = attack.perturb(WhiteBoxModel(net), x, y, Threat(norm, eps), ExampleRng(0, range(len(y))))
    return 1 - WhiteBoxModel(net).fooled(proposal.x_adv, y).double().mean().item()


def distance(norm: Norm, delta: Tensor) -> Tensor:
    if norm == "l0":
        return (delta != 0).any(1).flatten(1).sum(1).double()
    return torch.linalg.vector_norm(delta.double().flatten(1), {"linf": np.inf, "l2": 2, "l1": 1}[norm], dim=1)


def proposals_are_legal(case: Case) -> None:
    for factor in (0.25, 1, 3):
        eps = factor * EPS[case.norm]
        proposal = case.propose(eps)
        x = case.x[FEW]
        assert proposal.x_adv.shape == x.shape
        assert proposal.x_adv.dtype == x.dtype
        assert not proposal.x_adv.requires_grad
        assert proposal.x_adv.min() >= 0
        assert proposal.x_adv.max() <= 1
        slack = 0 if case.norm == "l0" else 1e-6 * x[0].numel() ** {"linf": 0, "l2": 0.5, "l1": 1}[case.norm]
        assert (distance(case.norm, proposal.x_adv.double() - x.double()) <= eps + slack).all()


def nothing_moves_at_eps_zero(case: Case) -> None:
    assert torch.equal(case.propose(0.0).x_adv, case.x[FEW])


def draws_follow_the_seed(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        draws: list[str] = []

        class Spied(np.random.Generator):
            def __getattribute__(self, name: str) -> Any:
                draws.append(name)
                return super().__getattribute__(name)

        patch.setattr("robustbench_bio.core.rng.Generator", Spied)
        first = case.propose(seed=1)
    asked = {}
    for seed in (1, 2):
        with Watch() as watch:
            proposal = case.propose(seed=seed)
        asked[seed] = torch.cat([proposal.x_adv, *watch.seen])
    assert torch.equal(asked[1][: len(FEW)], first.x_adv)
    # An attack that draws need not find anything else, but it looks elsewhere.
    assert torch.equal(asked[1], asked[2]) == (not draws)


def batches_do_not_matter(case: Case) -> None:
    order = FEW[torch.randperm(len(FEW), generator=torch_generator("order"))]
    for eps in (EPS[case.norm], 2 * EPS[case.norm]):
        whole = case.propose(eps)
        parts = [case.propose(eps, rows=rows) for rows in (order[:1], order[1:])]
        torch.testing.assert_close(torch.cat([p.x_adv for p in parts]), whole.x_adv[order], rtol=0, atol=1e-5)
        assert torch.equal(torch.cat([p.steps for p in parts]), whole.steps[order])
        assert torch.equal(torch.cat([p.queries for p in parts]), whole.queries[order])


def state(net: nn.Module) -> list[Any]:
    tensors = [(name, t.detach().clone().double()) for name, t in (*net.named_parameters(), *net.named_buffers())]
    values = [(name, t.tolist()) for name, t in tensors]
    flags = [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in net.parameters()]
    modes = [(m.training, sorted(vars(m)), len(m._forward_hooks), len(m._backward_hooks)) for m in net.modules()]
    rng = [torch.random.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]  # noqa: NPY002
    return [values, flags, modes, rng, torch.is_grad_enabled(), torch.get_default_dtype()]


def nothing_else_changes(case: Case) -> None:
    x, y, white_box = case.x[FEW], case.y[FEW], WhiteBoxModel(case.net)
    white_box.gradient(x, y, cross_entropy)
    before = state(case.net)
    case.attack.perturb(white_box, x, y, Threat(case.norm, EPS[case.norm]), ExampleRng(0, FEW))
    assert state(case.net) == before
    assert torch.equal(x, case.x[FEW])
    assert torch.equal(y, case.y[FEW])


def queries_are_the_rows_that_passed(case: Case) -> None:
    for n in (1, len(FEW)):
        x, y = case.x[:n], case.y[:n]
        white_box = WhiteBoxModel(
            case.net, traced=False
        )  # every pass through the network itself, where it can be counted
        with Watch() as watch:
            threat = Threat(case.norm, EPS[case.norm])
            proposal = case.attack.perturb(white_box, x, y, threat, ExampleRng(0, range(n)))
        assert proposal.queries.dtype == proposal.steps.dtype == torch.int64
        assert proposal.queries.shape == proposal.steps.shape == (n,)
        assert proposal.steps.min() >= 0
        assert proposal.queries.sum().item() == sum(map(len, watch.seen))


def a_fooling_point_is_never_given_up(case: Case) -> None:
    x = torch.full((1, 1, 8, 8), 0.5)
    threat, y = Threat(case.norm, EPS[case.norm]), torch.zeros(1, dtype=torch.int64)
    for frequency, lift, seed in [(2.0, 0.0, 3), (3.0, -0.5, 1), (4.0, 0.8, 2), (5.0, 0.5, 0)]:
        white_box = WhiteBoxModel(bands(frequency, lift), traced=False)
        with Watch() as watch:
            proposal = case.attack.perturb(white_box, x, y, threat, ExampleRng(seed, [0]))
        asked = torch.cat([*watch.seen, x])
        logits = white_box.logits(asked)
        if (threat.contains(x.expand_as(asked), asked) & (logits[:, 1] > logits[:, 0] + 1e-3)).any():
            assert white_box.fooled(proposal.x_adv, y).item()


def it_beats_noise(case: Case) -> None:
    eps = EPS[case.norm]
    generator = torch_generator("baseline")
    shape = case.x.shape
    match case.norm:
        case "linf":
            delta = (torch.rand(shape, generator=generator) * 2 - 1) * eps
        case "l0":
            chosen = torch.rand(shape[0], 1, *shape[2:], generator=generator)
            kth = chosen.flatten(1).kthvalue(int(eps), dim=1).values.view(-1, 1, 1, 1)
            delta = torch.where(chosen <= kth, torch.rand(shape, generator=generator) - case.x, 0)
        case _:
            delta = torch.randn(shape, generator=generator)
            delta *= (eps / distance(case.norm, delta)).view(-1, 1, 1, 1)
    noise = (case.x + delta).clamp(0, 1).float()
    baseline = 1 - WhiteBoxModel(case.net).fooled(noise, case.y).double().mean().item()
    assert baseline > 0.8
    assert accuracy(case.attack, case.norm, eps, case.net) < baseline - 0.2


def larger_balls_are_no_safer(case: Case) -> None:
    eps = EPS[case.norm]
    accuracies = [accuracy(case.attack, case.norm, size, case.net) for size in (eps / 4, eps, 2 * eps)]
    for i, j in itertools.combinations(range(3), 2):
        assert accuracies[j] <= accuracies[i] + 0.05, accuracies


CONTRACT = [
    proposals_are_legal,
    nothing_moves_at_eps_zero,
    draws_follow_the_seed,
    batches_do_not_matter,
    nothing_else_changes,
    queries_are_the_rows_that_passed,
    a_fooling_point_is_never_given_up,
    it_beats_noise,
    larger_balls_are_no_safer,
]


def members() -> Iterator[Any]:
    """Every attack under every norm; other norms than its first (linf, else l2, …) are left to the slow tests."""
    for name, attack in ATTACKS.items():
        for norm in sorted(attack.norms):
            first = name == "pgd" or (norm == max(attack.norms) and name not in LONG)
            yield pytest.param(name, norm, marks=[] if first else pytest.mark.slow)


@pytest.mark.parametrize("term", CONTRACT, ids=lambda term: term.__name__)
@pytest.mark.parametrize(("name", "norm"), list(members()))
def test_contract(
    name: str,
    norm: Norm,
    term: Callable[[Case], None],
    net: nn.Module,
    examples: tuple[Tensor, Tensor],
    trained_card: Path,
) -> None:
    if term is it_beats_noise and name in BASELINES:
        pytest.skip("a baseline need not beat noise")
    cls = ATTACKS.get(name)
    fields = {field.name for field in dataclasses.fields(cls)}
    needed = {key: {"source": str(trained_card)}[key] for key in cls.needs}
    attack = make(name, norm, {k: v for k, v in BUDGET.items() if k in fields} | needed).with_networks(source_network)
    term(Case(attack, norm, net, *examples))


@pytest.mark.parametrize("name", ATTACKS.names())
def test_a_name_is_enough_for_norm_and_radius(name: str, net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    few = (examples[0][:2], examples[1][:2])
    if needs := ATTACKS.get(name).needs:
        with pytest.raises(UserError, match=f"expected a value for {needs[0]} of {name}, got none"):
            evaluate(net, few, attack=name)
        return
    fields = {field.name for field in dataclasses.fields(ATTACKS.get(name))}
    result = evaluate(net, few, attack=name, **{k: v for k, v in BUDGET.items() if k in fields})
    natural = {"linf": 8 / 255, "l2": 0.5, "l1": 12, "l0": 1}
    assert result.spec.threat.eps == natural[result.spec.threat.norm]
    assert result.spec.threat.norm == ("linf" if "linf" in ATTACKS.get(name).norms else "l0")
    assert result.clean_accuracy == 1


# --- the contract has teeth ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(Attack):
    """Plain gradient ascent that keeps the contract unless a bug is planted."""

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})

    bug: str = ""

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        if self.bug == "unseeded start":
            rng = ExampleRng(random.SystemRandom().getrandbits(60), rng.ids)
        if self.bug == "start by place in the batch":
            rng = ExampleRng(rng.seed, range(len(x)))
        ball = Threat(threat.norm, threat.eps, (-9.0, 9.0)) if self.bug == "ignored box" else threat
        sign = -1 if self.bug == "wrong sign" else 1
        point = ball.random_start(x, rng)
        best, fooled = point.clone(), torch.zeros_like(y, dtype=torch.bool)
        for step in range(11):
            robust = ~fooled if self.bug != "forgets the best point" else torch.ones_like(fooled)
            best[robust] = point[robust]
            fooled |= model.fooled(point, y)
            if step < 10:
                gradient = model.gradient(point, y, cross_entropy).gradient
                point = point + sign * threat.eps / 4 * threat.steepest(gradient)
                point = point.clamp(0, 1) if self.bug == "no projection" else ball.project(x, point)
        if self.bug == "touches a parameter":
            next(model.model.parameters()).data[0] += 1e-3
        if self.bug == "leaves train mode":
            model.model.train()
        if self.bug == "changes its input":
            x.copy_(best)
        spent = torch.full_like(y, 11 if self.bug == "counts gradients only" else 21)
        return Proposal(best, spent, torch.full_like(y, 10))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy(Attack):
    """One value after the other to the border of the box, for the norms that plain ascent does not serve."""

    norms: ClassVar[frozenset[Norm]] = frozenset({"l0", "l1"})

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        del rng
        point, left = x.clone(), torch.full(y.shape, float(threat.eps))
        for _ in range(12):
            gradient = model.gradient(point, y, cross_entropy).gradient.flatten(1)
            moves = (gradient > 0).float() - point.flatten(1)
            best = (gradient * moves).argmax(1, keepdim=True)
            step = moves.gather(1, best)
            if threat.norm == "l1":
                step = step.clamp(-left[:, None], left[:, None])
            step[model.fooled(point, y) | (left <= 0)] = 0
            point = (point.flatten(1).scatter_add(1, best, step)).clamp(0, 1).view_as(x)
            left -= (step != 0).flatten().float() if threat.norm == "l0" else step.abs().flatten()
        return Proposal(point, torch.full_like(y, 24), torch.full_like(y, 12))


PLANTED = {
    "no projection": proposals_are_legal,
    "ignored box": proposals_are_legal,
    "wrong sign": it_beats_noise,
    "unseeded start": draws_follow_the_seed,
    "start by place in the batch": batches_do_not_matter,
    "forgets the best point": a_fooling_point_is_never_given_up,
    "touches a parameter": nothing_else_changes,
    "leaves train mode": nothing_else_changes,
    "changes its input": nothing_else_changes,
    "counts gradients only": queries_are_the_rows_that_passed,
}


@pytest.mark.parametrize("term", CONTRACT, ids=lambda term: term.__name__)
@pytest.mark.parametrize("attack", [Plain(), Greedy()], ids=["plain", "greedy"])
def test_an_honest_attack_keeps_the_contract(
    attack: Attack, term: Callable[[Case], None], net: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    for norm in sorted(attack.norms):
        term(Case(attack, norm, net, *examples))


@pytest.mark.parametrize("bug", PLANTED)
@pytest.mark.parametrize("norm", sorted(Plain.norms))
def test_the_contract_catches_a_planted_bug(
    norm: Norm, bug: str, net: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        with pytest.raises(AssertionError):
            PLANTED[bug](Case(Plain(bug=bug), norm, net, *examples))
    finally:
        net.load_state_dict(before)
        net.eval()


# --- closed forms on a linear classifier -----------------------------------------------------------------------


class Halves(nn.Module):
    """Two classes with logits ±margin/2, margin = ⟨w, x⟩ + b."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w = nn.Parameter(w)
        self.b = b

    def forward(self, x: Tensor) -> Tensor:
        margin = (x * self.w).sum((1, 2, 3)) + self.b
        return torch.stack([margin, -margin], 1) / 2


@dataclasses.dataclass(frozen=True)
class Linear:
    net: nn.Module
    w: Tensor
    x: Tensor
    y: Tensor

    def margin(self, x: Tensor) -> Tensor:
        """How much the true class leads by, in float64."""
        sign = 1 - 2 * self.y.double()
        return sign * ((x.double() * self.w).sum((1, 2, 3)) + self.net.b)

    def smallest_margin(self, norm: Norm, eps: float) -> Tensor:
        """The minimum of the margin over ball ∩ box, exactly."""
        down = -(1 - 2 * self.y.double()).view(-1, 1, 1, 1) * self.w  # the direction that lowers it
        x = self.x.double()

        def reached(length: Tensor) -> Tensor:
            return (x + length.view(-1, 1, 1, 1) * down).clamp(0, 1)

        if norm == "linf":
            return self.margin((x + eps * down.sign()).clamp(0, 1))
        # A linear function is least over ball ∩ box at clip(x + t·down) for the t that reaches the ball's border.
        low, high = torch.zeros(len(x)).double(), torch.full((len(x),), 1e4).double()
        for _ in range(200):
            middle = (low + high) / 2
            inside = torch.linalg.vector_norm((reached(middle) - x).flatten(1), dim=1) <= eps
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return self.margin(reached(low))


@pytest.fixture(scope="module")
def linear() -> Linear:
    """Two hundred inputs, many near a border of the box, with a mean margin near 1."""
    generator = torch_generator("linear")
    w = torch.randn(1, 4, 4, generator=generator) / 2
    x = torch.rand(200, 1, 4, 4, generator=generator)
    b = -0.5 * w.sum().item()
    net = Halves(w, b).eval()
    return Linear(net, w.double(), x, WhiteBoxModel(net).logits(x).argmax(1))


def proposed(problem: Linear, attack: Attack, norm: Norm, eps: float) -> Tensor:
    rng = ExampleRng(0, range(len(problem.y)))
    return attack.perturb(WhiteBoxModel(problem.net), problem.x, problem.y, Threat(norm, eps), rng).x_adv


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_linf_attacks_reach_the_optimum_of_a_linear_classifier(linear: Linear, name: str, eps: float) -> None:
    attack = make(name, "linf", {} if name == "fgsm" else {"early_exit": False, "steps": 20})
    reached = linear.margin(proposed(linear, attack, "linf", eps))
    torch.testing.assert_close(reached, linear.smallest_margin("linf", eps), rtol=0, atol=1e-5)
    # Where the box does not bind, the optimum is eps·‖w‖₁.
    free = ((linear.x > eps) & (linear.x < 1 - eps)).flatten(1).all(1)
    drop = (linear.margin(linear.x) - reached)[free]
    torch.testing.assert_close(drop, torch.full_like(drop, eps * linear.w.abs().sum().item()), rtol=1e-4, atol=1e-5)


def test_l2_attacks_reach_the_optimum_of_a_linear_classifier(linear: Linear) -> None:
    middle = dataclasses.replace(linear, x=0.3 + 0.4 * linear.x)
    expected = middle.margin(middle.x) - 0.25 * linear.w.norm()
    torch.testing.assert_close(middle.smallest_margin("l2", 0.25), expected, rtol=0, atol=1e-9)
    for attack in (make("fgsm", "l2", {}), PGD(steps=20, early_exit=False, random_start=False)):
        reached = middle.margin(proposed(middle, attack, "l2", 0.25))
        torch.testing.assert_close(reached, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eps", [0.1, 0.25, 0.75])
def test_l2_attacks_come_near_the_optimum_where_the_box_binds(linear: Linear, eps: float) -> None:
    # Ball, then box, is what all peers project on; it is not the nearest point of both, hence the few percent.
    best = linear.margin(linear.x) - linear.smallest_margin("l2", eps)
    reached = linear.margin(linear.x) - linear.margin(proposed(linear, PGD(early_exit=False), "l2", eps))
    assert (reached <= best + 1e-5).all()
    assert (reached >= 0.93 * best).all()
    assert (reached / best).mean() > 0.98


@pytest.mark.parametrize("eps", [0.02, 0.06, 0.1, 0.15])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_the_robust_accuracy_of_a_linear_classifier_is_exact(linear: Linear, name: str, eps: float) -> None:
    margin = linear.smallest_margin("linf", eps)
    assert (margin.abs() > 1e-5).all()
    robust = evaluate(linear.net, (linear.x, linear.y), attack=name, eps=eps).outcomes["robust"]
    assert robust.tolist() == (margin > 0).tolist()
    assert 0.05 < robust.mean() < 0.95


@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_the_robust_accuracy_of_a_linear_classifier_is_bounded_in_l2(linear: Linear, eps: float) -> None:
    margin, drop = linear.margin(linear.x), linear.margin(linear.x) - linear.smallest_margin("l2", eps)
    data = (linear.x, linear.y)
    robust = torch.tensor(evaluate(linear.net, data, attack="pgd", norm="l2", eps=eps).outcomes["robust"])
    assert robust[margin > drop + 1e-5].all()
    assert not robust[margin < 0.93 * drop].any()
    assert 0.05 < robust.double().mean() < 0.95


# --- the loop ---------------------------------------------------------------------------------------------------


def outcome(net: nn.Module, examples: tuple[Tensor, Tensor], attack: Attack, eps: float) -> tuple[Proposal, list[bool]]:
    x, y = examples
    proposal = attack.perturb(WhiteBoxModel(net), x, y, Threat("linf", eps), ExampleRng(0, range(len(y))))
    return proposal, (~WhiteBoxModel(net).fooled(proposal.x_adv, y)).tolist()


def test_more_steps_or_restarts_never_raise_accuracy_example_by_example(
    net: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    for kind in ("steps", "restarts"):
        so_far = [True] * 50
        for n in (1, 2, 3, 5, 8, 20):
            attack = PGD(**{"steps": 4, "step_size": 0.03} | {kind: n})
            robust = outcome(net, examples, attack, 0.1)[1]
            assert all(before or not now for before, now in zip(so_far, robust, strict=True))
            so_far = robust
        assert 0 < sum(so_far) < 45


def test_every_restart_has_a_start_of_its_own(net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    ends = [outcome(net, examples, PGD(steps=1, step_size=0.0, restarts=n), 0.01) for n in (1, 2, 3)]
    withstood = torch.tensor([all(robust) for robust in zip(*(robust for _, robust in ends), strict=True)])
    assert withstood.sum() > 40
    for (one, _), (other, _) in itertools.combinations(ends, 2):
        assert (one.x_adv != other.x_adv)[withstood].flatten(1).any(1).all()


def test_an_example_that_is_fooled_is_left_alone(net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    short, robust = outcome(net, examples, PGD(steps=5, step_size=0.03), 0.1)
    long, _ = outcome(net, examples, PGD(steps=30, step_size=0.03, restarts=3), 0.1)
    fooled = ~torch.tensor(robust)
    assert torch.equal(short.x_adv[fooled], long.x_adv[fooled])
    assert (long.steps[fooled] <= 5).all()
    assert (long.steps[~fooled] > 5).all()
    assert long.steps.max() == 90


def test_without_early_exit_every_example_makes_all_steps(net: nn.Module, examples: tuple[Tensor, Tensor]) -> None:
    proposal, _ = outcome(net, examples, PGD(steps=7, early_exit=False), 0.1)
    assert proposal.steps.tolist() == proposal.queries.tolist() == [7] * 50


def test_the_default_step_reaches_the_border_from_anywhere(linear: Linear) -> None:
    assert PGD().step_size is None
    for steps in (2, 10, 40):
        reached = proposed(linear, PGD(steps=steps, early_exit=False), "linf", 0.05)
        torch.testing.assert_close(linear.margin(reached), linear.smallest_margin("linf", 0.05), rtol=0, atol=1e-5)


def test_in_bfloat16_a_point_counts_once_float32_confirms_it(examples: tuple[Tensor, Tensor]) -> None:
    net = fitted("mlp", hidden=(32,))

    class Optimist(WhiteBoxModel):
        """Its gradient passes take every input for misclassified."""

        def gradient(self, x: Tensor, against: Tensor, loss: Any) -> Any:
            answer = super().gradient(x, against, loss)
            return answer._replace(logits=F.one_hot((against + 1) % 10, 10).float())

    right = ~WhiteBoxModel(net).fooled(*examples)
    x, y = examples[0][right], examples[1][right]
    rng = ExampleRng(0, range(len(y)))
    accuracy = {}
    for kind in (WhiteBoxModel, Optimist):
        proposal = PGD(steps=10).perturb(kind(net, precision="bfloat16"), x, y, Threat("linf", 0.1), rng)
        accuracy[kind] = 1 - WhiteBoxModel(net).fooled(proposal.x_adv, y).double().mean().item()
    exact = np.mean(outcome(net, (x, y), PGD(steps=10), 0.1)[1])
    assert accuracy[WhiteBoxModel] == pytest.approx(exact, abs=0.05)
    assert accuracy[Optimist] == pytest.approx(exact, abs=0.05)


def test_parameters_are_checked_with_the_remedy() -> None:
    for name, norm, params, message in (
        ("pgdd", "linf", {}, "unknown attack 'pgdd': did you mean pgd"),
        ("pgd", "l0", {}, "attack pgd serves l2, linf, got norm 'l0'"),
        ("pgd", "linf", {"step": 3}, "unknown parameter of pgd 'step': did you mean steps"),
        ("fgsm", "linf", {"steps": 3}, "unknown parameter of fgsm 'steps'"),
        ("pgd", "linf", {"steps": 0}, "expected steps >= 1, got 0"),
        ("pgd", "linf", {"restarts": 0}, "expected restarts >= 1, got 0"),
        ("pgd", "linf", {"step_size": -0.1}, "expected step_size >= 0, got -0.1"),
        ("pgd", "linf", {"step_size": float("nan")}, "expected step_size of pgd to be a number, got nan"),
        ("tpgd", "linf", {"start_sigma": -1.0}, "expected start_sigma >= 0, got -1"),
        ("pgd", "linf", {"steps": 2.5}, "expected steps of pgd to be int, got 2.5"),
        ("pgd", "linf", {"steps": True}, "expected steps of pgd to be int, got True"),
        ("pgd", "linf", {"steps": "3"}, "expected steps of pgd to be int, got '3'"),
        ("pgd", "linf", {"random_start": 1}, "expected random_start of pgd to be bool, got 1"),
        ("pgd", "linf", {"step_size": "big"}, "expected step_size of pgd to be float or NoneType, got 'big'"),
    ):
        with pytest.raises(UserError) as caught:
            make(name, norm, params)
        assert message in str(caught.value)
    with pytest.raises(UserError, match="expected step_size >= 0, got nan"):
        PGD(step_size=float("nan"))
    assert make("pgd", "l2", {"step_size": 1, "steps": 3}) == PGD(step_size=1, steps=3)
    assert make("pgd", "l2", {"step_size": None}) == PGD()


# --- peers ------------------------------------------------------------------------------------------------------


def theirs(library: str, name: str, norm: Norm, net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The same attack by torchattacks or foolbox: eps/4 per step for pgd, no random start."""
    if library == "torchattacks":
        ta = pytest.importorskip("torchattacks")
        exactly = {"steps": steps, "random_start": False, "eps_for_division": 1e-30}
        attack = {
            ("fgsm", "linf"): lambda: ta.FGSM(net, eps=eps),
            ("pgd", "linf"): lambda: ta.PGD(net, eps=eps, alpha=eps / 4, steps=steps, random_start=False),
            ("fgsm", "l2"): lambda: ta.PGDL2(net, eps=eps, alpha=eps, **exactly | {"steps": 1}),
            ("pgd", "l2"): lambda: ta.PGDL2(net, eps=eps, alpha=eps / 4, **exactly),
        }[name, norm]()
        return attack(x, y).detach()  # type: ignore[no-any-return]
    fb = pytest.importorskip("foolbox")
    if name == "fgsm":
        attack = {"linf": fb.attacks.FGSM, "l2": fb.attacks.FGM}[norm](random_start=False)
    else:
        kind = {"linf": fb.attacks.LinfPGD, "l2": fb.attacks.L2PGD}[norm]
        attack = kind(abs_stepsize=eps / 4, steps=steps, random_start=False)
    return attack.run(fb.PyTorchModel(net, bounds=(0, 1)), x, y, epsilon=eps).detach()  # type: ignore[no-any-return]


def ours(name: str, norm: Norm, net: nn.Module, x: Tensor, y: Tensor, eps: float, **params: Any) -> Tensor:
    params = {} if name == "fgsm" else {"step_size": eps / 4, "random_start": False} | params
    rng = ExampleRng(0, range(len(y)))
    return make(name, norm, params).perturb(WhiteBoxModel(net), x, y, Threat(norm, eps), rng).x_adv


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
@pytest.mark.parametrize("library", ["torchattacks", "foolbox"])
def test_proposals_equal_those_of_peers(
    library: str, name: str, norm: Norm, net: nn.Module, examples: tuple[Tensor, Tensor]
) -> None:
    x, y = examples
    eps = EPS[norm]
    common = {} if name == "fgsm" else {"steps": 10, "early_exit": False}
    other = theirs(library, name, norm, net, x, y, eps, 10)
    torch.testing.assert_close(ours(name, norm, net, x, y, eps, **common), other, rtol=0, atol=2e-6)
    theirs_robust = ~WhiteBoxModel(net).fooled(other, y)
    robust = ~WhiteBoxModel(net).fooled(ours(name, norm, net, x, y, eps, steps=10), y)
    assert not (robust & ~theirs_robust).any()
    assert 0 < robust.sum() < 45


def test_tpgd_equals_that_of_torchattacks_from_the_same_start(
    net: nn.Module, examples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ta = pytest.importorskip("torchattacks")
    x, y = examples
    normal = ExampleRng(0, range(50)).normal(x.shape[1:], x)
    monkeypatch.setattr(torch, "randn_like", lambda _: normal)
    other = ta.TPGD(net, eps=0.12, alpha=0.03, steps=7)(x, y).detach()
    attack = TPGD(early_exit=False)
    proposal = attack.perturb(WhiteBoxModel(net), x, y, Threat("linf", 0.12), ExampleRng(0, range(50))).x_adv
    torch.testing.assert_close(proposal, other, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("library", ["torchattacks", "foolbox"])
def test_robust_accuracy_on_a_real_network_equals_that_of_peers(
    library: str, norm: Norm, real_network: tuple[nn.Module, Tensor, Tensor]
) -> None:
    resnet, x, y = real_network
    white_box = WhiteBoxModel(resnet)
    right = ~white_box.fooled(x, y)
    assert right.double().mean() > 0.85
    x, y = x[right], y[right]
    eps = {"linf": 1 / 255, "l2": 0.15}[norm]
    other = theirs(library, "pgd", norm, resnet, x, y, eps, 10)
    same = ours("pgd", norm, resnet, x, y, eps, steps=10, early_exit=False)
    # Rounding turns the sign of a gradient that is nearly zero: few values differ, the accuracy does not.
    assert ((same - other).abs() > eps / 50).double().mean() < 0.02
    theirs_robust = ~white_box.fooled(other, y)
    assert (~white_box.fooled(same, y)).sum() == theirs_robust.sum()
    robust = ~white_box.fooled(ours("pgd", norm, resnet, x, y, eps, steps=10), y)
    assert not (robust & ~theirs_robust).any()
    assert 5 < robust.sum() < len(y) - 5


# --- the rule's own gradient ----------------------------------------------------------------------------------


def robust_accuracy(net: nn.Module, gradient: Any) -> float:
    data = digits("test", 200)
    return evaluate(net, data, attack="pgd", eps=0.1, steps=10, gradient=gradient).robust_accuracy


@pytest.mark.parametrize(("rule", "layers"), [("fa", 2), ("usf", 4)])
def test_an_attack_through_the_rule_is_weaker_than_the_exact_one(rule: str, layers: int) -> None:
    mlp = small("mlp", hidden=(32,) * layers)
    rules = attach(mlp, rule, seed=1)
    fit(mlp, lambda x, y: rules.backward(mlp, x, lambda logits: F.cross_entropy(logits, y, reduction="none")))
    assert evaluate(mlp, digits("test", 200), attack="fgsm", eps=1e-6).clean_accuracy > 0.85
    assert robust_accuracy(mlp, "rule") > robust_accuracy(mlp, "exact") + 0.1


def test_for_bp_the_rule_gradient_is_the_exact_one() -> None:
    mlp = fitted("mlp", hidden=(32,))
    exact = robust_accuracy(mlp, "exact")
    names = {name: "bp" for name, layer in mlp.named_modules() if isinstance(layer, nn.Linear)}
    mlp.rules = LayerRules(mlp, names, {}, seed=0, classes=10).eval()
    assert robust_accuracy(mlp, "rule") == exact
    assert 0 < exact < 0.9


def test_a_rule_gradient_needs_rules() -> None:
    mlp = small("mlp", hidden=(8,)).eval()
    assert rules_of(mlp) is None
    with pytest.raises(UserError, match="expected a network with learning rules for gradient 'rule'"):
        WhiteBoxModel(mlp, "rule")
    attach(mlp, "bp").eval()
    with pytest.raises(UserError, match="expected a network with learning rules"):
        evaluate(mlp, digits("test", 4), gradient="rule")
