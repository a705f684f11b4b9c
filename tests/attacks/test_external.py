"""Backends: every attack of every library runs and is judged, leaves nothing behind, and computes what it says."""

import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_bio as rb
from robustbench_bio.attacks import ATTACKS, WhiteBoxModel, make
from robustbench_bio.attacks.external import BACKENDS, Job, PeerAttack, names, peer
from robustbench_bio.cli.app import main
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.core.stats import wilson
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.evaluation.judge import AttackViolation
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Norm, Threat
from robustbench_bio.zoo import loading as zoo

pytest.importorskip("torchattacks")
pytest.importorskip("foolbox")
pytest.importorskip("pyautoattack")

EPS: dict[Norm, float] = {"linf": 0.06, "l2": 0.6, "l1": 4.0, "l0": 1}
#: Budgets that are enough to fool something.
SMALL: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "pgd": {"steps": 4},
    "tpgd": {"steps": 4},
    "mi-fgsm": {"steps": 4},
    "apgd-ce": {"steps": 5},
    "apgd-dlr": {"steps": 5},
    "apgd-t": {"steps": 5, "targets": 3},
    "fab-t": {"steps": 4, "targets": 3},
    "square": {"queries": 80},
    "one-pixel": {"population": 9, "generations": 3},
    "autoattack": {"steps": 3, "queries": 10},
}
ATTACKS_OF_PEERS = [
    (library, attack, norm)
    for library, backend in BACKENDS.items()
    for attack, theirs in backend.attacks.items()
    for norm in sorted(theirs.norms)
]
Data = tuple[Tensor, Tensor]


class Digits(nn.Module):
    """A perceptron that learnt the digits for a moment; a dropout layer shows whether somebody switched it on."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(64, 24), nn.Dropout(0.5), nn.Linear(24, classes)
        generator = torch_generator("digits", classes)
        for layer in (self.first, self.last):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.drop(torch.relu(self.first(x.flatten(1) * 2 - 1))))
        return logits


@pytest.fixture(scope="module")
def net() -> Digits:
    net = Digits().eval()
    x, y = rb.load_data("digits", split="train")
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(120):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    optimiser.zero_grad()
    return net


@pytest.fixture(scope="module")
def data() -> Data:
    return rb.load_data("digits", split="test", n_examples=20)


def found_by(library: str, attack: str, net: nn.Module, data: Data, norm: Norm = "linf", **params: Any) -> Tensor:
    """The points that a library, or ours, proposes from the same examples."""
    chosen = make(attack, norm, params) if library == "native" else peer(library, attack, norm, params)
    proposal = chosen.perturb(WhiteBoxModel(net), *data, Threat(norm, EPS[norm]), ExampleRng(0, range(len(data[1]))))
    return proposal.x_adv


# --- every attack --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize(("library", "attack", "norm"), ATTACKS_OF_PEERS)
def test_every_attack_runs_is_judged_and_leaves_nothing_behind(
    library: str, attack: str, norm: Norm, net: Digits, data: Data, capfd: pytest.CaptureFixture[str]
) -> None:
    frozen = next(net.parameters())
    frozen.requires_grad_(False)
    net.last.bias.grad = torch.ones(10)
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    try:
        result = evaluate(net, data, attack=attack, norm=norm, eps=EPS[norm], backend=library, **SMALL[attack])
        assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
        assert torch.equal(net.last.bias.grad, torch.ones(10))
        assert net.first.bias.grad is None
    finally:
        frozen.requires_grad_(True)
        net.last.bias.grad = None
    assert not any(module.training for module in net.modules())
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert capfd.readouterr() == ("", "")
    assert result.spec.backend == library
    assert result.spec.precision == "float32"
    assert {"torchattacks": "torchattacks", "foolbox": "foolbox", "autoattack": "pyautoattack"}[
        library
    ] in result.provenance.packages
    assert 0 <= result.robust_accuracy < result.clean_accuracy
    trusting = f"{library}: trusts the network's own backward pass" in result.provenance.notices
    assert trusting == (attack not in ("square", "one-pixel"))
    again = evaluate(net, data, attack=attack, norm=norm, eps=EPS[norm], backend=library, **SMALL[attack])
    assert again.outcomes_record == result.outcomes_record


def test_another_seed_draws_another_start(net: Digits, data: Data) -> None:
    runs = [
        evaluate(
            net, data, attack="pgd", eps=0.06, backend=library, seed=seed, steps=1, step_size=1e-3
        ).outcomes_record.distance
        for library in ("torchattacks", "foolbox")
        for seed in (0, 1)
    ]
    assert runs[0] != runs[1]
    assert runs[2] != runs[3]


@pytest.mark.parametrize(("library", "attack"), [(x, a) for x, backend in BACKENDS.items() for a in backend.attacks])
def test_defaults_change_only_where_a_loop_cannot_end_early(library: str, attack: str) -> None:
    ours = {field.name: field.default for field in dataclasses.fields(ATTACKS.get(attack))}
    fixed = BACKENDS.get(library).attacks[attack].fixed
    assert fixed.keys() <= ours.keys()
    changed = {key for key, value in fixed.items() if value != ours[key]}
    assert changed <= {"early_exit", "mutation"}


# --- equal parameters are equal attacks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "attack", "norm", "params"),
    [
        ("torchattacks", "fgsm", "linf", {}),
        ("foolbox", "fgsm", "linf", {}),
        ("foolbox", "fgsm", "l2", {}),
        ("torchattacks", "pgd", "linf", {"steps": 5, "random_start": False, "early_exit": False}),
        ("torchattacks", "pgd", "l2", {"steps": 5, "random_start": False, "early_exit": False}),
        ("foolbox", "pgd", "linf", {"steps": 5, "random_start": False, "early_exit": False}),
        ("foolbox", "pgd", "l2", {"steps": 5, "step_size": 0.3, "random_start": False, "early_exit": False}),
        ("torchattacks", "mi-fgsm", "linf", {"steps": 6, "decay": 0.7, "early_exit": False}),
        ("torchattacks", "mi-fgsm", "linf", {"steps": 3, "step_size": 0.05, "early_exit": False}),
    ],
)
def test_without_draws_a_library_proposes_our_points(
    library: str, attack: str, norm: Norm, params: dict[str, Any], net: Digits, data: Data
) -> None:
    theirs = found_by(library, attack, net, data, norm, **params)
    torch.testing.assert_close(theirs, found_by("native", attack, net, data, norm, **params), atol=1e-4, rtol=0)
    assert not torch.equal(theirs, data[0])


def test_tpgd_from_the_same_start_is_ours(net: Digits, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def our_draw(x: Tensor) -> Tensor:
        return ExampleRng(0, range(len(x))).normal(x.shape[1:], x)

    ours = found_by("native", "tpgd", net, data, steps=5, early_exit=False)
    monkeypatch.setattr(torch, "randn_like", our_draw)
    theirs = found_by("torchattacks", "tpgd", net, data, steps=5)
    # Values of examples whose divergence is zero up to rounding may differ.
    assert ((ours - theirs).abs() < 1e-5).float().mean() > 0.95


@pytest.mark.parametrize(
    ("library", "attack", "params", "rows"),
    [
        ("torchattacks", "fgsm", {}, 1),
        ("torchattacks", "pgd", {"steps": 7}, 7),
        ("foolbox", "pgd", {"steps": 7, "restarts": 3}, 3 * (7 + 1)),
        ("torchattacks", "tpgd", {"steps": 5}, 6),
    ],
)
def test_queries_are_the_rows_that_the_network_saw(
    library: str, attack: str, params: dict[str, Any], rows: int, net: Digits, data: Data
) -> None:
    result = evaluate(net, data, attack=attack, eps=0.001, backend=library, **params)
    right = result.outcomes["clean"]
    assert set(result.outcomes["queries"][right]) == {rows}
    assert set(result.outcomes["queries"][~right]) <= {0}


def test_autoattack_takes_as_many_steps_as_asked_for(net: Digits, data: Data) -> None:
    few_examples = data[0][:4], data[1][:4]
    for library in ("torchattacks", "autoattack"):
        few, many = (
            evaluate(
                net, few_examples, attack="autoattack", eps=0.001, backend=library, steps=steps, queries=5
            ).queries_mean
            for steps in (2, 5)
        )
        # Of three steps more: one query each for apgd-ce and nine targets of apgd-t, two each for nine of fab-t.
        assert many - few == pytest.approx(3 * (1 + 9 + 18), abs=1)


@pytest.mark.parametrize("library", ["torchattacks", "autoattack"])
@pytest.mark.parametrize("queries", [1, 10])
def test_square_has_the_queries_that_ours_has(library: str, queries: int, net: Digits, data: Data) -> None:
    counted = evaluate(net, data, attack="square", eps=1e-4, backend=library, queries=queries).queries_mean
    assert counted == queries + 2  # it looks at the clean inputs, and at what it has found


def test_autoattack_leaves_a_tracer_in_place(net: Digits, data: Data) -> None:
    def tracer(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        found_by("autoattack", "autoattack", net, (data[0][:1], data[1][:1]), steps=1, queries=2)
        left = sys.gettrace()
    finally:
        sys.settrace(before)
    assert left is tracer


def test_targets_are_as_many_as_there_are_classes(data: Data) -> None:
    net, x = Digits(4).eval(), data[0]
    y = net(x).argmax(1)
    for library in ("torchattacks", "autoattack"):
        result = evaluate(net, (x, y), attack="fab-t", eps=0.05, backend=library, steps=2)
        assert f"{library}: 9 target classes asked for, 3 used: there are 4 classes" in result.provenance.notices


def test_warnings_of_autoattack_become_notices(data: Data) -> None:
    net, x = Digits().eval(), data[0]
    net.first.weight.data.zero_()
    y = net(x).argmax(1)
    result = evaluate(net, (x, y), attack="apgd-dlr", eps=0.05, backend="autoattack", steps=1, batch_size=5)
    told = [text for text in result.provenance.notices if "zero gradient" in text]
    assert len(told) == 1
    assert told[0].startswith("autoattack: there are ")


# --- the rules' gradient -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["rule", "exact"])
def test_libraries_follow_the_rules_if_asked_to(trained_card: Path, data: Data, gradient: Any) -> None:
    net = zoo.load_model(str(trained_card), "digits")
    points = [
        chosen.perturb(WhiteBoxModel(net, gradient), *data, Threat("linf", 0.05), ExampleRng(0, range(20))).x_adv
        for chosen in (make("fgsm", "linf", {}), peer("foolbox", "fgsm", "linf", {}))
    ]
    falls = evaluate(net, data, attack="fgsm", eps=0.05, gradient=gradient, backend="foolbox")
    assert (
        falls.outcomes["robust"].tolist()
        == evaluate(net, data, attack="fgsm", eps=0.05, gradient=gradient).outcomes["robust"].tolist()
    )
    assert (falls.provenance.notices == []) == (gradient == "rule")
    # Signs of gradients that are zero up to rounding may differ.
    right = net(data[0]).argmax(1) == data[1]
    assert ((points[0] - points[1]).abs() < 1e-6)[right].float().mean() > 0.99
    other = make("fgsm", "linf", {}).perturb(
        WhiteBoxModel(net, "exact" if gradient == "rule" else "rule"),
        *data,
        Threat("linf", 0.05),
        ExampleRng(0, range(20)),
    )
    assert not torch.equal(other.x_adv, points[1])


def test_predictive_coding_has_no_backward_pass_to_follow(data: Data) -> None:
    net = rb.load_model("pc-cnn", dataset="digits")
    with pytest.raises(UserError, match=r"^expected rules that foolbox can differentiate, got predictive coding"):
        evaluate(net, data, attack="fgsm", gradient="rule", backend="foolbox")
    assert evaluate(net, data, attack="fgsm", gradient="exact", backend="foolbox").spec.backend == "foolbox"


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"backend": "foolbx"}, "unknown backend 'foolbx': did you mean foolbox?"),
        ({"backend": "all"}, "unknown backend 'all': choose from autoattack, foolbox, native, torchattacks"),
        (
            {"backend": "foolbox", "attack": "tpgd"},
            "expected an attack that foolbox has (fgsm, pgd, mi-fgsm), got tpgd",
        ),
        (
            {"backend": "autoattack", "attack": "pgd"},
            "expected an attack that autoattack has (apgd-ce, apgd-dlr, apgd-t, fab-t, square, autoattack), got pgd",
        ),
        (
            {"backend": "torchattacks", "attack": "fgsm", "norm": "l2"},
            "expected a norm that torchattacks serves with fgsm (linf), got l2",
        ),
        (
            {"backend": "torchattacks", "restarts": 5},
            "expected parameters that torchattacks can honour, got restarts = 5: its pgd has restarts = 1 always",
        ),
        (
            {"backend": "foolbox", "early_exit": True},
            "expected parameters that foolbox can honour, got early_exit = True: its pgd has early_exit = False always",
        ),
        (
            {"backend": "torchattacks", "attack": "one-pixel", "norm": "l0", "eps": 1, "mutation": 0.5},
            "expected parameters that torchattacks can honour, got mutation = 0.5: its one-pixel has no such parameter",
        ),
        (
            {"backend": "torchattacks", "attack": "one-pixel", "norm": "l0", "eps": 1},
            "expected a population that torchattacks can have, got 10: it rounds to multiples of 3, at least 5; try 9",
        ),
        (
            {"backend": "foolbox", "precision": "bfloat16"},
            "expected precision float32 for foolbox, got bfloat16: only native has it",
        ),
        ({"backend": "foolbox", "steps": 0}, "expected steps >= 1, got 0"),
    ],
)
def test_what_a_library_cannot_do_is_refused(arguments: dict[str, Any], expected: str, net: Digits, data: Data) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(net, data, **arguments)
    assert str(caught.value) == expected


@pytest.mark.parametrize(("attack", "classes"), [("apgd-dlr", 2), ("apgd-t", 3), ("autoattack", 3)])
@pytest.mark.parametrize("library", ["torchattacks", "autoattack"])
def test_too_few_classes_are_refused(library: str, attack: str, classes: int, data: Data) -> None:
    net, x = Digits(classes).eval(), data[0]
    with pytest.raises(UserError, match=f"^expected at least {classes + 1} classes for the {attack} of {library}, got"):
        evaluate(net, (x, net(x).argmax(1)), attack=attack, backend=library, **SMALL[attack])


@pytest.mark.parametrize("library", BACKENDS.names())
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = BACKENDS.get(library).module
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        peer(library, next(iter(BACKENDS.get(library).attacks)), "linf", {})
    assert str(caught.value) == f'expected {module}, which is not installed: pip install "robustbench-bio[backends]"'
    assert library in names()


@pytest.mark.parametrize(
    ("move", "complaint"),
    [
        (lambda x, _: (x + 0.07).clamp(0, 1), "fgsm of foolbox: .* proposals leave the threat model"),
        (lambda x, _: x + 0.05, "fgsm of foolbox: .* proposals leave the threat model"),
        (lambda x, _: x * float("nan"), "fgsm of foolbox: a proposal holds NaN"),
    ],
)
def test_a_library_that_breaks_the_threat_model_is_named(
    move: Callable[[Tensor, Tensor], Tensor], complaint: str, net: Digits, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(job: Job) -> Callable[[Tensor, Tensor], Tensor]:
        return move if job.threat.eps > 0 else lambda x, _: x

    attacks = dict(BACKENDS.get("foolbox").attacks) | {"fgsm": PeerAttack(frozenset({"linf"}), build)}
    monkeypatch.setitem(BACKENDS._members, "foolbox", dataclasses.replace(BACKENDS.get("foolbox"), attacks=attacks))
    with pytest.raises(AttackViolation, match=complaint):
        evaluate(net, data, attack="fgsm", eps=0.06, backend="foolbox")


def test_a_library_that_switches_modes_or_prints_leaves_no_trace(
    net: Digits, data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(job: Job) -> Callable[[Tensor, Tensor], Tensor]:
        def run(x: Tensor, y: Tensor) -> Tensor:
            print("here I am")  # noqa: T201
            job.net.train()
            job.net.requires_grad_(True)
            torch.manual_seed(5)
            nn.functional.cross_entropy(job.net(x), y).backward()
            return x

        return run

    attacks = {"fgsm": PeerAttack(frozenset({"linf"}), build)}
    monkeypatch.setitem(BACKENDS._members, "foolbox", dataclasses.replace(BACKENDS.get("foolbox"), attacks=attacks))
    before = torch.random.get_rng_state()
    with torch.no_grad():
        result = evaluate(net, data, attack="fgsm", backend="foolbox")
    assert result.robust_accuracy == result.clean_accuracy
    assert not any(module.training for module in net.modules())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="in eval mode"):
        evaluate(Digits(), data, attack="fgsm", backend="foolbox")


# --- from the command line -----------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["biorobust", "eval", *arguments])
    with pytest.raises(SystemExit) as status:
        main()
    return int(status.value.code or 0)


def test_all_backends_stand_in_one_table(
    trained_card: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(trained_card), "--n-examples", "20", "--attack", "pgd", "--steps", "2"]
    arguments += ["--backend", "all", "--eps", "4/255,8/255"]
    assert call(monkeypatch, *arguments, "--json") == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)["results"]
    expected = [
        (library, eps / 255, gradient)
        for library in ("native", "foolbox", "torchattacks")
        for eps in (4, 8)
        for gradient in ("rule", "exact")
    ]
    assert [(row["backend"], row["eps"], row["gradient"]) for row in rows] == expected
    trust = {row["backend"]: row["notices"] for row in rows if row["gradient"] == "exact"}
    assert trust["native"] == []
    assert trust["foolbox"] == ["foolbox: trusts the network's own backward pass"]
    assert said.err == (
        "left out: autoattack (expected an attack that autoattack has "
        "(apgd-ce, apgd-dlr, apgd-t, fab-t, square, autoattack), got pgd)\n"
    )
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    assert call(monkeypatch, *arguments) == 0
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "torchattacks (expected torchattacks, which is not installed: pip install" in said.err
    assert "backend" in said.out
    assert said.out.count("foolbox: trusts") == 1
    assert "torchattacks" not in said.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--backend", "foo"], "error: unknown backend 'foo': did you mean foolbox?\n"),
        (
            ["--backend", "torchattacks", "--set", "restarts=2"],
            "error: expected parameters that torchattacks can honour, got restarts = 2: its pgd has restarts = 1",
        ),
        (
            ["--backend", "torchattacks", "--attack", "one-pixel", "--norm", "l0", "--eps", "1,2"],
            "error: expected a population that torchattacks can have, got 10: it rounds to multiples of 3",
        ),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    expected: str,
    trained_card: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "--model", str(trained_card), *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(expected)
    assert said.err.count("\n") == 1


def test_without_a_library_there_is_no_backend_column(
    trained_card: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--model", str(trained_card), "--n-examples", "8", "--attack", "fgsm") == 0
    assert "backend" not in capsys.readouterr().out


# --- are ours as strong? -------------------------------------------------------------------------------------------

#: Settings at which the reference network is neither wholly robust nor wholly fooled, with budgets for a slow machine.
PARITY: dict[str, tuple[Norm, float, dict[str, Any]]] = {
    "fgsm": ("linf", 1 / 255, {}),
    "pgd": ("linf", 1 / 255, {"steps": 20}),
    "tpgd": ("linf", 1 / 255, {"steps": 10}),
    "mi-fgsm": ("linf", 1 / 255, {"steps": 10}),
    "apgd-ce": ("linf", 1 / 255, {"steps": 20}),
    "apgd-dlr": ("linf", 1 / 255, {"steps": 20}),
    "apgd-t": ("linf", 0.7 / 255, {"steps": 10, "targets": 4}),
    "fab-t": ("linf", 0.7 / 255, {"steps": 10, "targets": 4}),
    "square": ("linf", 2 / 255, {"queries": 200}),
    "one-pixel": ("l0", 1, {"generations": 5}),
    "autoattack": ("linf", 0.7 / 255, {"steps": 8, "queries": 60}),
}


@pytest.fixture(scope="module")
def reference(real_network: tuple[nn.Module, Tensor, Tensor]) -> tuple[nn.Module, Data]:
    net, x, y = real_network
    return net, (x, y)


@pytest.fixture(scope="module")
def ours(reference: tuple[nn.Module, Data]) -> Callable[[str], Result]:
    net, data = reference
    known: dict[str, Result] = {}

    def run(attack: str) -> Result:
        if attack not in known:
            norm, eps, params = PARITY[attack]
            known[attack] = evaluate(net, data, attack=attack, norm=norm, eps=eps, **params)
        return known[attack]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "attack"),
    [
        (library, attack)
        for library, backend in BACKENDS.items()
        for attack in ATTACKS.names()
        if attack in backend.attacks and attack != "tpgd"  # its Gaussian start decides: either side wins by seed
    ],
)
def test_our_attack_is_as_strong_as_theirs_at_equal_budget(
    library: str, attack: str, reference: tuple[nn.Module, Data], ours: Callable[[str], Result]
) -> None:
    net, data = reference
    norm, eps, params = PARITY[attack]
    theirs = evaluate(net, data, attack=attack, norm=norm, eps=eps, backend=library, **params)
    low, high = wilson(sum(theirs.outcomes_record.robust_correct()), theirs.n)
    assert ours(attack).robust_accuracy <= theirs.robust_accuracy + (high - low) / 2
    assert 0 < theirs.robust_accuracy < theirs.clean_accuracy, "the setting tells nothing"
