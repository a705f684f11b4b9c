"""What `evaluate` reports, recomputed by other means, and that nothing but its arguments decides it."""

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robustbench_bio as rb
from robustbench_bio.attacks import ATTACKS, Attack, Proposal, WhiteBoxModel, make
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.evaluation.judge import AttackViolation
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import NORMS, Norm, Threat

COLUMNS = ["id", "label", "clean_prediction", "adversarial_prediction", "distance", "queries", "steps"]
EPS: dict[Norm, float] = {"linf": 0.08, "l2": 0.6}
Data = tuple[Tensor, Tensor]


class Centroids(nn.Module):
    """Nearest class mean on digits: a linear classifier in closed form, right for nine digits in ten.

    Computed in float64, so that a row's result does not depend on the rows beside it, to float32 precision.
    """

    def __init__(self, bend: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        x, y = rb.load_data("digits", split="train")
        self.means = nn.Parameter(torch.stack([x[y == k].mean(0).flatten() for k in range(10)]).double())
        self.register_buffer("scale", torch.tensor(20.0))
        self.bend = bend

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1).double() @ self.means.T - self.means.square().sum(1) / 2
        return self.bend(self.scale * z.float())


@pytest.fixture
def net() -> Centroids:
    return Centroids().eval()


@pytest.fixture(scope="module")
def data() -> Data:
    return rb.load_data("digits", split="test", n_examples=60)


class Call(NamedTuple):
    """What an attack is given."""

    white_box: WhiteBoxModel
    x: Tensor
    y: Tensor
    threat: Threat
    rng: ExampleRng


def nothing_to_do(_: Call) -> Tensor:
    pytest.fail("an attack began")


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Call], Tensor]], str]:
    """Register an attack for one test, from a function of its call to its proposal."""
    ATTACKS.names()  # reads the folder first

    def register(move: Callable[[Call], Tensor]) -> str:
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Planted(Attack):
            norms: ClassVar[frozenset[Norm]] = frozenset(NORMS)

            def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
                if threat.eps == 0:
                    return Proposal(x, torch.zeros_like(y), torch.zeros_like(y))
                x_adv = move(Call(model, x, y, threat, rng))
                return Proposal(x_adv, torch.full_like(y, 3), torch.full_like(y, 2))

        monkeypatch.setitem(ATTACKS._members, "planted", Planted)
        return "planted"

    return register


def differences(one: Result, other: Result) -> pd.DataFrame:
    """Rows of two results that differ; distances may by rounding."""
    a, b = (r.outcomes.set_index("id").sort_index() for r in (one, other))
    assert a.index.tolist() == b.index.tolist()
    a, b = a.round({"distance": 5}), b.round({"distance": 5})
    return a[(a != b).any(axis=1)]


# --- what is reported ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_outcomes_keep_their_invariants(net: nn.Module, data: Data, attack: str, norm: Norm) -> None:
    result = evaluate(net, data, attack=attack, norm=norm, eps=EPS[norm])
    frame = result.outcomes
    assert frame.columns.tolist() == [*COLUMNS, "clean", "robust"]
    assert frame["id"].tolist() == list(range(60))
    assert frame["label"].tolist() == data[1].tolist()
    assert frame["clean"].dtype == frame["robust"].dtype == bool
    assert (frame["clean"] | ~frame["robust"]).all()
    assert (frame["clean"] == (frame["clean_prediction"] == frame["label"])).all()
    assert (frame["distance"] <= EPS[norm] * (1 + 1e-5)).all()
    wrong, right = frame[~frame["clean"]], frame[frame["clean"]]
    assert len(wrong) > 0
    assert (wrong[["distance", "queries", "steps"]] == 0).all(axis=None)
    assert (wrong["adversarial_prediction"] == wrong["clean_prediction"]).all()
    assert (right["queries"] > 0).all()
    assert (right["robust"] == (right["adversarial_prediction"] == right["label"])).all()
    assert 0 < right["robust"].mean() < 1
    assert (right["distance"] > 0.3 * EPS[norm]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_outcomes_are_those_of_the_attack_made_by_hand(net: nn.Module, data: Data, norm: Norm) -> None:
    ids = [3 * i + 5 for i in range(60)]
    frame = evaluate(net, data, attack="pgd", norm=norm, eps=EPS[norm], steps=7, restarts=2, seed=4, ids=ids).outcomes
    x, y = data
    clean = net(x).argmax(1)
    assert frame["clean_prediction"].tolist() == clean.tolist()
    assert frame["id"].tolist() == ids
    right = (clean == y).nonzero().flatten()
    rng = ExampleRng(4, [ids[i] for i in right.tolist()], "pgd")
    attack = make("pgd", norm, {"steps": 7, "restarts": 2})
    found = attack.perturb(WhiteBoxModel(net), x[right], y[right], Threat(norm, EPS[norm]), rng)
    attacked = frame.iloc[right.tolist()]
    assert attacked["adversarial_prediction"].tolist() == net(found.x_adv).argmax(1).tolist()
    assert attacked["queries"].tolist() == found.queries.tolist()
    assert attacked["steps"].tolist() == found.steps.tolist()
    order = {"linf": math.inf, "l2": 2}[norm]
    size = torch.linalg.vector_norm((found.x_adv - x[right]).flatten(1).double(), order, dim=1)
    np.testing.assert_allclose(attacked["distance"], size, atol=1e-6)


def test_scores_are_functions_of_the_outcomes(net: nn.Module, data: Data) -> None:
    result = evaluate(net, data, attack="pgd", eps=0.1, steps=10)
    rows = result.outcomes.to_dict("records")
    clean = [row for row in rows if row["clean_prediction"] == row["label"]]
    robust = [row for row in clean if row["adversarial_prediction"] == row["label"]]
    n, k = len(rows), len(robust)
    assert result.n == n == 60
    assert result.clean_accuracy == len(clean) / n
    assert result.robust_accuracy == k / n
    assert result.success_rate == pytest.approx((len(clean) - k) / len(clean))
    assert result.queries_mean == pytest.approx(sum(row["queries"] for row in clean) / len(clean))
    p, z = k / n, 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert tuple(result.ci95) == pytest.approx((middle - half, middle + half))
    summary = result.summary()
    assert summary["ci95"] == list(result.ci95)
    assert (summary["attack"], summary["norm"], summary["eps"], summary["gradient"]) == ("pgd", "linf", 0.1, "exact")
    assert summary["robust_accuracy"] == p


def test_a_result_says_what_was_measured(net: nn.Module, data: Data) -> None:
    result = evaluate(net, data, attack="pgd", eps=0.05, steps=3, seed=9, names=("centroids", "digits", "test"))
    spec = result.spec
    assert (spec.model, spec.dataset, spec.split, spec.n) == ("centroids", "digits", "test", 60)
    assert (spec.attack, str(spec.threat), str(spec.gradient), spec.seed) == ("pgd", "linf 12.75/255", "exact", 9)
    assert spec.params == dataclasses.asdict(make("pgd", "linf", {"steps": 3}))
    assert spec.precision == "float32"
    assert result.provenance.seconds > 0
    assert torch.__version__.startswith(result.provenance.packages["torch"])


def test_the_key_of_a_result_is_that_of_its_question(net: Centroids, data: Data) -> None:
    x, y = data

    def key(model: nn.Module = net, data: Data = data, **changes: Any) -> str:
        return evaluate(model, data, **{"attack": "fgsm", "eps": 0.05} | changes).spec.key()

    other = Centroids().eval()
    other.scale.mul_(2)
    darker = x.clone()
    darker[3, 0, 4, 4] *= 0.5
    first = key()
    assert key(batch_size=7) == key(Centroids().eval()) == key(data=(x.clone(), y.clone())) == first
    changed = [
        key(other),
        key(data=(darker, y)),
        key(data=(x, y.roll(1))),
        key(data=(x[:59], y[:59])),
        key(ids=range(1, 61)),
        key(eps=0.06),
        key(norm="l2"),
        key(seed=1),
        key(attack="pgd", steps=1),
        key(attack="pgd", steps=2),
        key(names=("other", "data", "test")),
    ]
    assert len({first, *changed}) == 1 + len(changed)


# --- what decides it, and what does not ----------------------------------------------------------------------------


@pytest.mark.parametrize(("attack", "norm"), [("pgd", "linf"), ("pgd", "l2"), ("tpgd", "linf")])
def test_batches_and_order_do_not_change_outcomes(net: nn.Module, data: Data, attack: str, norm: Norm) -> None:
    x, y = data
    whole = evaluate(net, data, attack=attack, norm=norm, eps=EPS[norm])
    for batch_size in (1, 7, 1000):
        assert differences(
            evaluate(net, data, attack=attack, norm=norm, eps=EPS[norm], batch_size=batch_size), whole
        ).empty
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    mixed = evaluate(net, (x[order], y[order]), attack=attack, norm=norm, eps=EPS[norm], ids=order.tolist())
    assert differences(mixed, whole).empty
    assert mixed.outcomes["id"].tolist() == order.tolist()


def test_the_seed_decides_the_draws(net: nn.Module, data: Data) -> None:
    def outcomes(**params: Any) -> pd.DataFrame:
        return evaluate(net, data, attack="pgd", norm="l2", eps=0.4, **params).outcomes

    pd.testing.assert_frame_equal(outcomes(seed=1), outcomes(seed=1))
    assert (outcomes(seed=1)["distance"] != outcomes(seed=2)["distance"]).sum() > 10
    assert (outcomes(seed=1)["distance"] != outcomes(seed=1, ids=range(60, 120))["distance"]).sum() > 10
    pd.testing.assert_frame_equal(outcomes(seed=1, random_start=False), outcomes(seed=2, random_start=False))


def test_nothing_outside_is_touched(net: Centroids, data: Data) -> None:
    x, y = data
    x, y = x.clone(), y.clone()
    net.means.requires_grad_(False)
    states = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate(net, (x, y), eps=0.1, steps=5)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # noqa: NPY002
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert net.means.grad is None
    assert not net.means.requires_grad
    assert not net.training
    assert torch.equal(x, data[0])
    assert torch.equal(y, data[1])


def test_a_callers_no_grad_does_not_matter(net: nn.Module, data: Data) -> None:
    with torch.no_grad():
        inside = evaluate(net, data, eps=0.1, steps=5)
    assert differences(inside, evaluate(net, data, eps=0.1, steps=5)).empty
    assert inside.robust_accuracy < inside.clean_accuracy


def test_progress_counts_examples(net: nn.Module, data: Data) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(net, data, attack="fgsm", eps=0.1, batch_size=25, progress=lambda *call: calls.append(call[:2]))
    assert calls == [(25, 60), (50, 60), (60, 60)]


# --- inputs ---------------------------------------------------------------------------------------------------------


def test_the_layout_of_inputs_does_not_matter(net: nn.Module, data: Data) -> None:
    x, y = data
    plain = evaluate(net, data, eps=0.1, steps=5)
    wide = torch.zeros(60, 1, 8, 16)
    wide[..., ::2] = x
    layouts = [
        (wide[..., ::2], y),
        (x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1), y),
        (x.contiguous(memory_format=torch.channels_last), y),
        (x.clone().requires_grad_(True), y),
        (x, y.int()),
        (x, y.to(torch.uint8)),
        (x, torch.stack([y, y], 1)[:, 0]),
        (x.numpy(), y.numpy()),
        ((x * 255).byte(), y),
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), batch_size=7),
    ]
    for given in layouts:
        result = evaluate(net, given, eps=0.1, steps=5)
        assert differences(result, plain).empty
        assert result.spec == plain.spec


def test_no_graph_of_the_callers_grows_through_the_attack(net: nn.Module, data: Data, plant: Any) -> None:
    seen: list[bool] = []

    def look(call: Call) -> Tensor:
        seen.append(call.x.requires_grad)
        return call.x

    evaluate(net, (data[0].clone().requires_grad_(True), data[1]), attack=plant(look), eps=0.1)
    assert seen == [False]


def test_three_channels_in_any_layout(data: Data) -> None:
    colour = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)).eval()
    x = data[0].repeat(1, 3, 1, 1)
    y = colour(x).argmax(1)
    plain = evaluate(colour, (x, y), eps=0.02, steps=3)
    other = evaluate(colour, (x.contiguous(memory_format=torch.channels_last), y), eps=0.02, steps=3)
    assert other.spec == plain.spec
    assert len(differences(other, plain)) <= 2


def test_queries_beyond_a_byte_are_counted_for_labels_of_a_byte(net: nn.Module, data: Data) -> None:
    x, y = data
    frame = evaluate(net, (x, y.to(torch.uint8)), attack="pgd", eps=1e-4, steps=300).outcomes
    assert frame["queries"].max() >= 300
    assert frame["steps"].max() == 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "pgdd"}, "unknown attack 'pgdd': did you mean pgd"),
        ({"step": 4}, "unknown parameter of pgd 'step': did you mean steps"),
        ({"steps": "4"}, "expected steps of pgd to be int"),
        ({"steps": 0}, "expected steps >= 1"),
        ({"norm": "l0", "eps": 1}, "attack pgd serves l2, linf"),
        ({"norm": "l3"}, "unknown norm 'l3': did you mean"),
        ({"eps": 8}, "expected eps in (0, 1], got 8: eps is in input units, did you mean 8/255?"),
        ({"eps": 0}, "expected eps > 0"),
        ({"eps": -0.1}, "expected eps > 0"),
        ({"eps": math.nan}, "expected eps > 0"),
        ({"eps": math.inf, "norm": "l2"}, "expected eps > 0"),
        ({"eps": 128, "norm": "l2"}, "expected eps <= 8 in l2 for inputs (1, 8, 8)"),
        ({"eps": 65, "norm": "l1", "attack": "apgd-ce"}, "expected eps <= 64 in l1 for inputs (1, 8, 8)"),
        ({"eps": 65, "attack": "one-pixel"}, "expected eps <= 64 in l0 for inputs (1, 8, 8), no two of which lie"),
        ({"eps": 8 / 255, "attack": "one-pixel"}, "expected eps as a whole number of pixels for l0"),
        ({"norm": "linf", "attack": "one-pixel"}, "attack one-pixel serves l0, got norm 'linf'"),
        ({"norm": "l0", "eps": 1.5, "attack": "planted"}, "expected eps as a whole number of pixels"),
        ({"norm": "l0", "eps": math.nan, "attack": "planted"}, "expected eps as a whole number of pixels"),
        ({"batch_size": 0}, "expected batch_size >= 1, got 0"),
        ({"batch_size": -4}, "expected batch_size >= 1, got -4"),
        ({"gradient": "true"}, "expected a gradient such as exact, rule"),
        ({"gradient": "rule"}, "expected a network with learning rules"),
        ({"precision": "half"}, "field 'precision': "),
        ({"seed": 1.5}, "field 'seed': "),
        ({"ids": [0] * 60}, "expected one distinct id for each of 60 examples"),
        ({"ids": [*range(59), 3]}, "expected one distinct id for each of 60 examples"),
        ({"ids": range(59)}, "expected one distinct id for each of 60 examples"),
        ({"ids": [*range(60), 3]}, "expected one distinct id for each of 60 examples"),
    ],
)
def test_a_wrong_argument_is_the_users_mistake(
    net: nn.Module, data: Data, changes: dict[str, Any], message: str, plant: Any
) -> None:
    plant(nothing_to_do)
    with pytest.raises(UserError) as caught:
        evaluate(net, data, **{"attack": "pgd"} | changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, _: x, "expected data as (x, y), a DataLoader or a Dataset, got Tensor: pass data=(x, y)"),
        (lambda x, y: (x * 255, y), "expected inputs in [0, 1], got [0, 255]: divide by 255"),
        (lambda x, y: (x * math.nan, y), "expected finite inputs"),
        (lambda x, y: (x[:0], y[:0]), "got an empty slice"),
        (lambda x, y: (x, y + 5), "expected labels in 0…9 for 10 logits"),
        (lambda x, y: (x, torch.cat([y[:-1], y[:1] * 0 + 10])), "expected labels in 0…9 for 10 logits"),
        (lambda x, y: (x, y[:-1]), "expected y as integers [60]"),
    ],
)
def test_wrong_data_is_the_users_mistake(net: nn.Module, data: Data, spoil: Any, message: str, plant: Any) -> None:
    plant(nothing_to_do)
    with pytest.raises(UserError) as caught:
        evaluate(net, spoil(*data), attack="planted", batch_size=16)
    assert message in str(caught.value)


def test_the_gate_stands_before_the_attack(data: Data, plant: Any) -> None:
    plant(nothing_to_do)
    with pytest.raises(UserError, match="in train mode"):
        evaluate(Centroids().train(), data, attack="planted")
    with pytest.raises(UserError, match="do not depend on the rest of the batch"):
        evaluate(Centroids(lambda z: z - z.mean(0)).eval(), data, attack="planted")


# --- networks ---------------------------------------------------------------------------------------------------


class Bare(nn.Module):
    """Nearest class mean without parameters or buffers, and with a branch that looks at the data."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = (Centroids().eval(),)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[0](x if x.mean() > 0 else x + 1)


@pytest.mark.parametrize("other", [Bare(), torch.nn.Sequential(Centroids()), Centroids(lambda z: z.half())])
def test_any_module_is_evaluated_alike(net: nn.Module, data: Data, other: nn.Module) -> None:
    expected = evaluate(net, data, eps=0.08, steps=10)
    result = evaluate(other.eval(), data, eps=0.08, steps=10)
    assert result.clean_accuracy == expected.clean_accuracy
    assert result.robust_accuracy == pytest.approx(expected.robust_accuracy, abs=0.02)
    assert result.robust_accuracy < result.clean_accuracy - 0.2


def test_what_a_reader_must_know_of_the_gradient_stands_in_the_provenance(net: nn.Module, data: Data) -> None:
    (notice,) = evaluate(Bare().eval(), data, attack="fgsm", eps=0.08).provenance.notices
    assert "not traced" in notice
    assert evaluate(net, data, attack="fgsm", eps=0.08).provenance.notices == []


def test_a_network_that_is_always_wrong_is_not_attacked(data: Data, plant: Any) -> None:
    plant(nothing_to_do)
    x, _ = data
    net = Centroids().eval()
    y = (net(x).argmax(1) + 1) % 10
    result = evaluate(net, (x, y), attack="planted", eps=0.1)
    assert (result.clean_accuracy, result.robust_accuracy, result.success_rate) == (0, 0, None)
    assert result.queries_mean == 0
    assert tuple(result.ci95) == pytest.approx((0, 0.0602), abs=1e-4)
    assert not result.outcomes["robust"].any()


def test_a_network_that_nothing_moves_is_robust(data: Data) -> None:
    x, _ = data
    constant = Centroids(lambda z: z * 0 + torch.arange(10)).eval()
    result = evaluate(constant, (x, torch.full((60,), 9)), eps=0.1, steps=3)
    assert (result.clean_accuracy, result.robust_accuracy, result.success_rate) == (1, 1, 0)


def test_wrong_inputs_are_not_attacked_and_not_robust(net: nn.Module, data: Data, plant: Any) -> None:
    x, y = data
    seen: list[Tensor] = []

    def helpful(call: Call) -> Tensor:
        seen.append(call.x.clone())
        return call.x

    result = evaluate(net, data, attack=plant(helpful), eps=0.1, batch_size=16)
    right = net(x).argmax(1) == y
    assert torch.equal(torch.cat(seen), x[right])
    assert result.outcomes["robust"].tolist() == right.tolist()
    assert result.outcomes["queries"].tolist() == (3 * right).tolist()
    assert result.outcomes["steps"].tolist() == (2 * right).tolist()


def test_the_attack_is_given_what_was_asked_for(net: nn.Module, data: Data, plant: Any) -> None:
    calls: list[Call] = []

    def look(call: Call) -> Tensor:
        calls.append(call)
        return call.x

    asked = {"norm": "l1", "eps": 0.5, "precision": "bfloat16", "seed": 7, "ids": range(100, 160)}
    evaluate(net, data, attack=plant(look), **asked)
    (call,) = calls
    assert call.white_box.model is net
    assert call.white_box.precision == "bfloat16"
    assert call.threat == Threat("l1", 0.5)
    right = (net(data[0]).argmax(1) == data[1]).nonzero().flatten()
    assert (call.rng.seed, call.rng.ids) == (7, (right + 100).tolist())
    assert torch.equal(call.y, data[1][right])


def test_in_bfloat16_the_judge_stays_in_float32(data: Data) -> None:
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    means = Centroids().means.detach().float()
    with torch.no_grad():
        single[1].weight.copy_(20 * means)
        single[1].bias.copy_(-10 * means.square().sum(1))
    full, half = (evaluate(single, data, eps=0.08, steps=10, precision=p) for p in ("float32", "bfloat16"))
    assert full.outcomes["clean_prediction"].tolist() == half.outcomes["clean_prediction"].tolist()
    assert half.robust_accuracy == pytest.approx(full.robust_accuracy, abs=0.05)
    assert half.spec.precision == "bfloat16"
    assert half.spec.key() != full.spec.key()


def test_a_network_that_casts_inside_is_evaluated_in_bfloat16(net: nn.Module, data: Data) -> None:
    full, half = (evaluate(net, data, eps=0.08, steps=10, precision=p) for p in ("float32", "bfloat16"))
    assert half.robust_accuracy == pytest.approx(full.robust_accuracy, abs=0.05)


# --- violations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda c: (c.x + 1.02 * c.threat.eps).clamp(0, 1), r"leave the threat model: largest linf size 0\.0816"),
        (lambda c: c.x + 0.5 * c.threat.eps, "leave the threat model"),
        (lambda c: c.x - 0.5 * c.threat.eps, "leave the threat model"),
        (lambda c: c.x.fill_(0.5), "leave the threat model"),
        (lambda c: torch.where(c.x > 0.5, math.nan, c.x), "NaN"),
        (lambda c: c.x[:-1], "expected torch.float32"),
        (lambda c: c.x.double(), "expected torch.float32"),
    ],
)
def test_a_violation_is_an_error_and_stores_nothing(
    net: nn.Module, data: Data, move: Any, message: str, plant: Any, tmp_path: Path
) -> None:
    with pytest.raises(AttackViolation, match=message):
        evaluate(net, data, attack=plant(move), eps=0.08, store=Store(tmp_path))
    assert not list(tmp_path.rglob("*.json"))


def scale_weight(net: nn.Module) -> None:
    net.means.data.mul_(1.5)


def replace_weight(net: nn.Module) -> None:
    net.means = nn.Parameter(net.means.detach() + 1e-6)


def change_buffer(net: nn.Module) -> None:
    net.scale.add_(1e-5)


def add_buffer(net: nn.Module) -> None:
    net.register_buffer("extra", torch.zeros(1))


def train_mode(net: nn.Module) -> None:
    net.train()


@pytest.mark.parametrize("change", [scale_weight, replace_weight, change_buffer, add_buffer, train_mode])
@pytest.mark.parametrize("at", [1, 3])
def test_an_attack_that_changes_the_network_is_caught_before_anything_is_stored(
    net: nn.Module, data: Data, change: Callable[[nn.Module], None], at: int, plant: Any, tmp_path: Path
) -> None:
    calls: list[int] = []

    def meddle(call: Call) -> Tensor:
        calls.append(len(call.x))
        if len(calls) == at:
            change(call.white_box.model)
        return call.x

    with pytest.raises(AttackViolation, match=r"changed|train mode"):
        evaluate(net, data, attack=plant(meddle), eps=0.08, batch_size=20, store=Store(tmp_path))
    assert len(calls) == at
    assert len(list(tmp_path.rglob("*.json"))) == at - 1


def test_a_change_in_the_gate_is_caught(
    net: nn.Module, data: Data, plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = plant(lambda call: call.x)
    honest = ATTACKS.get(name).perturb

    def perturb(self: Attack, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        if threat.eps == 0:
            scale_weight(model.model)
        return honest(self, model, x, y, threat, rng)

    monkeypatch.setattr(ATTACKS.get(name), "perturb", perturb)
    with pytest.raises(AttackViolation, match="changed"):
        evaluate(net, data, attack=name, eps=0.08)


def test_what_an_attack_believes_does_not_matter(net: nn.Module, data: Data, plant: Any) -> None:
    class Liar(WhiteBoxModel):
        """Takes everything for fooled."""

        def fooled(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.full_like(y, len(x) > 0, dtype=torch.bool)

    def deluded(call: Call) -> Tensor:
        call.y.fill_(0)
        attack = make("pgd", "linf", {"steps": 10})
        return attack.perturb(Liar(call.white_box.model), call.x, call.y, call.threat, call.rng).x_adv

    result = evaluate(net, data, attack=plant(deluded), eps=0.01)
    assert result.clean_accuracy > 0.8
    assert result.robust_accuracy > result.clean_accuracy - 0.1


# --- store ----------------------------------------------------------------------------------------------------------


def test_a_stored_result_answers_the_same_question_without_work(
    net: nn.Module, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    first = evaluate(net, data, eps=0.08, steps=3, store=store)
    assert not first.from_store
    monkeypatch.setattr("robustbench_bio.evaluation.measure.gate", lambda *_: pytest.fail("no work"))
    again = evaluate(net, data, eps=0.08, steps=3, store=store, batch_size=7)
    assert again.from_store
    pd.testing.assert_frame_equal(again.outcomes, first.outcomes)


def test_an_interrupted_measurement_goes_on_where_it_stopped(net: nn.Module, data: Data, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int, line: str) -> None:
        if done >= 40:
            raise Stop

    store, calls = Store(tmp_path), []
    with pytest.raises(Stop):
        evaluate(net, data, eps=0.08, steps=3, store=store, batch_size=20, progress=stop)
    resumed = evaluate(
        net, data, eps=0.08, steps=3, store=store, batch_size=15, progress=lambda *call: calls.append(call[:2])
    )
    assert calls == [(55, 60), (60, 60)]
    assert differences(resumed, evaluate(net, data, eps=0.08, steps=3)).empty


def test_a_printed_result_is_what_a_person_wants_to_read(net: Centroids, data: Data) -> None:
    result = evaluate(net, data, attack="fgsm", eps="20/255")
    first, *notices = str(result).splitlines()
    assert first == (
        f"fgsm linf 20/255, exact gradient, 60 examples: clean {result.clean_accuracy:.1%}, robust "
        f"{result.robust_accuracy:.1%} [{100 * result.ci95.low:.1f}, {100 * result.ci95.high:.1f}]"
    )
    assert notices == result.provenance.notices
