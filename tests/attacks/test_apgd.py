"""Auto-PGD: the reference's iterates, closed forms, few classes, and the ensemble."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_bio.attacks import ATTACKS, WhiteBoxModel, make
from robustbench_bio.attacks.access.white_box import margin
from robustbench_bio.attacks.apgd import APGDCE, APGDDLR, APGDTargeted
from robustbench_bio.attacks.apgd_run import checkpoints, run_apgd
from robustbench_bio.attacks.losses import cross_entropy, dlr, likely_targets, targeted_dlr, targeted_margin
from robustbench_bio.attacks.runs import Runs, target_groups
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.core.stats import wilson
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.records.threat import Norm, Threat

NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Recorded(nn.Module):
    """A smooth network that remembers what it was asked while gradients were on."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        generator = torch_generator("recorded", classes)
        self.first = nn.Linear(48, 24)
        self.last = nn.Linear(24, classes)
        for layer, scale in ((self.first, 1.5), (self.last, 1.0)):
            nn.init.normal_(layer.weight, std=scale / layer.in_features**0.5, generator=generator)
            nn.init.normal_(layer.bias, std=0.1, generator=generator)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.append(x.detach().clone())
        hidden = torch.sin(4 * self.first(x.flatten(1) - 0.5))
        return self.last(hidden)  # type: ignore[no-any-return]


def images(n: int, *key: str) -> Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch_generator(*key))


# --- the iterates of the reference ---------------------------------------------------------------------------------


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, also where either code says float."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


Losses = dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]]


def count_changed(reference: Any, monkeypatch: pytest.MonkeyPatch, eps: float) -> None:
    """The reference also counts what the rounding of x + d − d changes, which no other code can repeat."""
    monkeypatch.setattr(reference, "L0_norm", lambda d: (d.abs() > 1e-5 * eps).flatten(1).sum(1))


LOSSES: Losses = {
    "ce": ("ce", cross_entropy),
    "dlr": ("dlr", dlr),
    "t": ("dlr-targeted", targeted_dlr),
}


@pytest.mark.parametrize("steps", [7, 60])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6), ("l1", 2.5)])
@pytest.mark.usefixtures("float64")
def test_every_iterate_is_that_of_the_reference(
    norm: Norm, eps: float, kind: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = pytest.importorskip("pyautoattack.autopgd_base")
    net, own_net = Recorded(), Recorded()
    x = images(40, "x").double()
    y = WhiteBoxModel(net).logits(x).argmax(1)
    theirs_loss, loss = LOSSES[kind]
    eps = eps / 12 if kind == "dlr" else eps
    count_changed(reference, monkeypatch, eps)
    threat = Threat(norm, eps)
    noise = torch.randn(x.shape, generator=torch_generator("start"))
    start = threat.project(x, x + (noise * eps / 3 if norm != "l1" else noise))
    likely = likely_targets(WhiteBoxModel(net), x, y, 2)[:, 1]
    net.seen.clear()

    cls = reference.APGDAttack_targeted if kind == "t" else reference.APGDAttack
    options = {} if kind == "t" else {"loss": theirs_loss}
    other = cls(net, n_iter=steps, norm=NAMES[norm], eps=eps, **options)
    other.y_target = likely
    other.init_hyperparam(x)
    best = other.attack_single_run(x.clone(), y, x_init=start.clone())[0]

    against = torch.stack([y, likely], 1) if kind == "t" else y
    white_box, runs = WhiteBoxModel(own_net, traced=False), Runs(x, y, start, against, torch.arange(40))
    proposal = run_apgd(white_box, runs, threat, loss, steps=steps, early_exit=False, fresh=False)
    assert len(net.seen) == len(own_net.seen) == steps + 1
    atol = 1e-6 if norm == "l2" else 1e-9  # theirs adds 1e-12 to the length of the gradient
    slope = torch.ones(40, dtype=torch.bool)
    for mine, theirs in zip(own_net.seen, net.seen, strict=True):
        torch.testing.assert_close(mine[slope], theirs[slope], rtol=0, atol=atol)
        if kind == "dlr":  # where the label comes third the loss is flat, and its gradient rounding
            with torch.no_grad():
                slope &= dlr(net(mine), y) < 1 - 1e-6
    assert slope.sum() > 20
    torch.testing.assert_close(proposal.x_adv[slope], best[slope], rtol=0, atol=atol)
    moved = (own_net.seen[-1] - start).abs().amax((1, 2, 3))
    assert (moved > 1e-4).all()


@pytest.mark.usefixtures("float64")
def test_the_l1_run_in_shrinking_balls_is_that_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pytest.importorskip("pyautoattack.autopgd_base")
    net, mine = Recorded(), Recorded()
    x = images(20, "x").double()
    y = WhiteBoxModel(net).logits(x).argmax(1)
    net.seen.clear()
    rng = ExampleRng(0, range(20))
    noise = rng.child("0/0").normal(x.shape[1:], x)
    count_changed(reference, monkeypatch, 2.5)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    other = reference.APGDAttack(net, n_iter=30, norm="L1", eps=2.5, loss="ce", use_largereps=True)
    other.init_hyperparam(x)
    best = other.decr_eps_pgd(x.clone(), y, [7.5, 5.0, 2.5], [9, 9, 12])[0]
    attack = APGDCE(steps=30, early_exit=False)
    proposal = attack.perturb(WhiteBoxModel(mine, traced=False), x, y, Threat("l1", 2.5), rng)
    assert len(mine.seen) == len(net.seen) == 33
    for a, b in zip(mine.seen, net.seen, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    torch.testing.assert_close(proposal.x_adv, best, rtol=0, atol=1e-9)
    assert proposal.steps.tolist() == [30] * 20


# --- the parts -----------------------------------------------------------------------------------------------------


def test_checkpoints_are_those_of_the_paper() -> None:
    assert list(checkpoints(100, "linf")) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100, "l1")) == list(range(4, 101, 4))
    assert checkpoints(100, "l2") == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert list(checkpoints(3, "linf")) == [1, 2, 3]
    assert checkpoints(0, "linf") == {}


def test_losses_equal_their_formulas() -> None:
    z = torch.tensor([[3.0, 1.0, 0.0, -1.0], [1.0, 2.0, 4.0, -2.0]])
    y, target = torch.tensor([0, 1]), torch.tensor([1, 0])
    pair = torch.stack([y, target], 1)
    torch.testing.assert_close(margin(z, y), torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(dlr(z, y), torch.tensor([-2 / 3, 2 / 3]))
    torch.testing.assert_close(targeted_margin(z, pair), torch.tensor([-2.0, -1.0]))
    torch.testing.assert_close(targeted_dlr(z, pair), torch.tensor([-2 / 3.5, -1 / 4.5]))
    torch.testing.assert_close(dlr(7 * z + 3, y), dlr(z, y))


class Logits(nn.Module):
    """The values of the first row are the logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return 5 * x[:, 0, 0, : self.classes]


def test_targets_are_the_most_likely_wrong_classes() -> None:
    x = torch.tensor([[0.1, 0.9, 0.5, 0.7]]).view(1, 1, 1, 4)
    white_box = WhiteBoxModel(Logits(4))
    assert likely_targets(white_box, x, torch.tensor([1]), 2).tolist() == [[3, 2]]
    assert white_box.notices == []
    assert likely_targets(white_box, x, torch.tensor([1]), 9).tolist() == [[3, 2, 0]]
    assert likely_targets(white_box, x, torch.tensor([1]), 9).shape == (1, 3)
    assert white_box.notices == ["9 target classes asked for, 3 used: the network has 4 classes"]


@pytest.mark.parametrize("name", ["apgd-dlr", "apgd-t", "fab-t", "min-norm", "autoattack"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_are_attacked_and_noticed(name: str, classes: int) -> None:
    net = Recorded(classes).eval()
    x = images(16, "few")
    white_box = WhiteBoxModel(net)
    y = white_box.logits(x).argmax(1)
    sizes = {"autoattack": {"queries": 20}}.get(name, {})
    attack = make(name, "linf", {"steps": 10} | sizes)
    proposal = attack.perturb(white_box, x, y, Threat("linf", 0.03), ExampleRng(0, range(16)))
    assert white_box.fooled(proposal.x_adv, y).double().mean() > 0.3
    assert len(set(white_box.notices)) == len(white_box.notices)
    dlr_fails = classes < {"apgd-dlr": 3, "apgd-t": 4, "autoattack": 4}.get(name, 0)
    assert any("DLR loss needs" in text for text in white_box.notices) == dlr_fails
    assert any("target classes asked for" in text for text in white_box.notices) == (name != "apgd-dlr")


# --- leaving early ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.15)])
@pytest.mark.parametrize("attack", [APGDCE, APGDDLR], ids=["ce", "dlr"])
def test_an_example_leaves_at_the_first_point_that_fools(attack: Any, norm: Norm, eps: float) -> None:
    net = Recorded().eval()
    x = images(40, "x")
    y = WhiteBoxModel(net).logits(x).argmax(1)
    threat, rng = Threat(norm, eps), ExampleRng(0, range(40))
    net.seen.clear()
    attack(steps=20, early_exit=False).perturb(WhiteBoxModel(net, traced=False), x, y, threat, rng)
    points = torch.stack(net.seen)
    wrong = torch.stack([WhiteBoxModel(net).fooled(p, y) for p in points])
    fooled = wrong.any(0)
    first = wrong.double().argmax(0)
    assert 3 < fooled.sum() < 38
    assert (first[fooled] > 0).any()
    proposal = attack(steps=20).perturb(WhiteBoxModel(net, traced=False), x, y, threat, rng)
    assert torch.equal(WhiteBoxModel(net).fooled(proposal.x_adv, y), fooled)
    torch.testing.assert_close(proposal.x_adv[fooled], points[first, torch.arange(40)][fooled], rtol=0, atol=1e-5)
    assert torch.equal(proposal.steps, torch.where(fooled, first, 20))
    assert torch.equal(proposal.queries, proposal.steps + 1)  # a gradient for each point


def test_restarts_and_targets_are_for_the_examples_that_are_still_robust() -> None:
    net = Recorded().eval()
    x = images(40, "x")
    y = WhiteBoxModel(net).logits(x).argmax(1)
    threat, rng = Threat("linf", 0.03), ExampleRng(0, range(40))
    one, three = (APGDTargeted(steps=5, targets=2, restarts=n) for n in (1, 3))
    first = one.perturb(WhiteBoxModel(net), x, y, threat, rng)
    second = three.perturb(WhiteBoxModel(net), x, y, threat, rng)
    fooled = WhiteBoxModel(net).fooled(second.x_adv, y)
    assert 3 < fooled.sum() < 38
    assert (second.steps[~fooled] == 2 * 3 * 5).all()
    assert (second.queries[~fooled] == 1 + 2 * 3 * 6).all()
    assert (second.steps[fooled] < 30).all()
    assert (first.steps <= 10).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["apgd-t", "fab-t", "min-norm"])
def test_runs_towards_all_targets_at_once_find_what_one_after_the_other_finds(
    name: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Recorded().double().eval()
    x = images(40, "x").double()
    y = WhiteBoxModel(net).logits(x).argmax(1)
    threat = Threat(norm, {"linf": 0.035, "l2": 0.17, "l1": 0.6 if name == "apgd-t" else 0.35}[norm])
    proposals = {}
    for at_once in (0, 2 * 48, 9 * 48):
        monkeypatch.setattr("robustbench_bio.attacks.runs.VALUES_PER_EXAMPLE", at_once)
        tried = make(name, norm, {"steps": 8, "targets": 5}).perturb(
            WhiteBoxModel(net), x, y, threat, ExampleRng(0, range(40))
        )
        proposals[at_once] = (WhiteBoxModel(net).fooled(tried.x_adv, y), tried)
    fooled_alone, alone = proposals[0]
    assert 3 < fooled_alone.sum() < 38
    for fooled, tried in proposals.values():
        assert torch.equal(fooled, fooled_alone)
        assert torch.equal(tried.queries[~fooled], alone.queries[~fooled])
        assert torch.equal(tried.steps[~fooled], alone.steps[~fooled])
        torch.testing.assert_close(tried.x_adv[~fooled], alone.x_adv[~fooled], rtol=0, atol=1e-9)
        if name == "min-norm":
            torch.testing.assert_close(threat.size(tried.x_adv - x), threat.size(alone.x_adv - x), rtol=0, atol=1e-9)


def test_how_many_runs_are_made_at_once_is_a_matter_of_the_image_and_not_of_the_batch() -> None:
    assert target_groups(9, torch.empty(1, 3, 32, 32)) == [[0], list(range(1, 9))]
    assert target_groups(9, torch.empty(500, 3, 32, 32)) == target_groups(9, torch.empty(1, 3, 32, 32))
    assert target_groups(4, torch.empty(7, 3, 224, 224)) == [[0], [1], [2], [3]]
    assert target_groups(1, torch.empty(7, 1, 8, 8)) == [[0]]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_autoattack_is_the_worst_case_over_its_members(norm: Norm) -> None:
    net = Recorded().eval()
    x = images(30, "x")
    y = WhiteBoxModel(net).logits(x).argmax(1)
    eps = {"linf": 0.025, "l2": 0.12, "l1": 0.5}[norm]
    threat, rng = Threat(norm, eps), ExampleRng(0, range(30))
    white_box = WhiteBoxModel(net)
    whole = make("autoattack", norm, {"steps": 4, "queries": 20}).perturb(white_box, x, y, threat, rng)
    robust = torch.ones(30, dtype=torch.bool)
    queries = torch.zeros(30, dtype=torch.int64)
    for name, params in (
        ("apgd-ce", {"steps": 4, "restarts": 5 if norm == "l1" else 1}),
        ("apgd-t", {"steps": 4, "targets": 5 if norm == "l1" else 9}),
        ("fab-t", {"steps": 4}),
        ("square", {"queries": 20}),
    ):
        if norm not in ATTACKS.get(name).norms:
            assert f"autoattack without {name}, which does not serve {norm}" in white_box.notices
            continue
        alone = make(name, norm, params).perturb(WhiteBoxModel(net), x, y, threat, rng.child(name))
        queries += torch.where(robust, alone.queries + (name != "apgd-ce"), 0)
        fooled = robust & WhiteBoxModel(net).fooled(alone.x_adv, y)
        robust &= ~fooled
    assert torch.equal(~WhiteBoxModel(net).fooled(whole.x_adv, y), robust)
    assert 0 < robust.sum() < 30
    assert (whole.queries[robust] == queries[robust]).all()


def test_parameters_are_checked() -> None:
    for name, params, message in (
        ("apgd-ce", {"steps": 0}, "expected steps >= 1, got 0"),
        ("apgd-dlr", {"rho": -1.0}, "expected rho >= 0, got -1"),
        ("apgd-t", {"targets": 0}, "expected targets >= 1, got 0"),
        ("autoattack", {"queries": 0}, "expected queries >= 1, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            make(name, "linf", params)
    defaults = [dataclasses.asdict(make(name, "linf", {})) for name in ("apgd-ce", "apgd-t", "autoattack")]
    assert defaults[0] == {"steps": 100, "restarts": 1, "rho": 0.75, "early_exit": True}
    assert defaults[1]["targets"] == 9
    assert defaults[2] == {"steps": 100, "queries": 5000}


# --- the reference on a real network -----------------------------------------------------------------------------


REAL: list[tuple[str, Norm, float]] = [
    *((name, norm, eps) for name in ("apgd-ce", "apgd-t") for norm, eps in (("linf", 1 / 255), ("l2", 0.25))),
    *((name, "linf", 2 / 255) for name in ("apgd-ce", "apgd-dlr", "apgd-t")),
    ("apgd-ce", "l1", 4.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "eps"), REAL)
def test_robust_accuracy_on_a_real_network_is_not_above_the_reference(
    name: str, norm: Norm, eps: float, real_network: tuple[nn.Module, Tensor, Tensor]
) -> None:
    reference = pytest.importorskip("pyautoattack.autopgd_base")
    net, x, y = real_network
    right = ~WhiteBoxModel(net).fooled(x, y)
    options = {"n_iter": 20, "norm": NAMES[norm], "eps": eps, "use_largereps": norm == "l1"}
    if name == "apgd-t":
        other = reference.APGDAttack_targeted(net, **options)
    else:
        other = reference.APGDAttack(net, loss=name.removeprefix("apgd-"), **options)
    theirs = (~WhiteBoxModel(net).fooled(other.perturb(x, y), y) & right).sum().item()
    result = evaluate(net, (x, y), attack=name, norm=norm, eps=eps, steps=20)
    robust = round(result.robust_accuracy * 64)
    assert robust / 64 <= wilson(theirs, 64).high
    assert robust <= theirs + 3
