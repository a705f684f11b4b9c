import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import robustbench_bio as rb
from robustbench_bio.cli import app as cli
from robustbench_bio.cli import terminal
from robustbench_bio.cli.list import Kind
from robustbench_bio.datasets import load_examples, open_dataset
from robustbench_bio.diagnosis import assess, probe
from robustbench_bio.evaluation import planning
from robustbench_bio.records.card import ModelCard, Recipe, TrainedNet
from robustbench_bio.zoo import card_options, catalog
from robustbench_bio.zoo import loading as zoo

FAST = ["--attack", "pgd", "--n-examples", "16", "--steps", "2"]


class Said(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout, and nothing else there."""
        assert self.status == 0, self.err
        assert self.out.count("\n") == 1
        found: dict[str, Any] = json.loads(self.out)
        return found


Call = Callable[..., Said]


@dataclass
class Clock:
    """Stands in for the module `time`."""

    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Return a caller of `biorobust` in this process, in an empty working directory."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["biorobust", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        return Said(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def mistaken(call: Call, tmp_path: Path) -> Callable[..., str]:
    """Return a caller that expects a mistake of the user's, and returns the line that says so."""

    def run(*arguments: str | Path) -> str:
        home = Path(os.environ["BIOROBUST_HOME"])
        before = sorted([*tmp_path.rglob("*"), *home.rglob("*")])
        said = call(*arguments)
        assert said.status == 2
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert said.err.isprintable() or said.err[:-1].isprintable()
        assert said.err.endswith("\n")
        assert "Traceback" not in said.err
        assert sorted([*tmp_path.rglob("*"), *home.rglob("*")]) == before, "something was written"
        return said.err.removeprefix("error: ").rstrip("\n")

    return run


def says(line: str, expected: str) -> bool:
    """Tell whether a line is the complaint expected; what typer puts before a list of choices is its own affair."""
    return expected in line if expected.startswith("'") else line.startswith(expected)


def shell(*arguments: str | Path, timeout: int = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from robustbench_bio.cli import main; main()", *map(str, arguments)]
    whole = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=whole, check=False)  # noqa: S603


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "bionas-dart"], "unknown model 'bionas-dart': did you mean bionas-darts"),
        (["--model", ""], "unknown model '': choose from "),
        (["--model", "none.toml"], "cannot read none.toml: "),
        (["--attack", "pdg"], "unknown attack 'pdg': did you mean pgd"),
        (["--dataset", "digit"], "model tiny-fa has no weights for dataset 'digit', only for digits: train it first"),
        (["--norm", "linff"], "unknown norm 'linff': did you mean linf"),
        (["--norm", "l0", "--eps", "1"], "attack swift serves l1, l2, linf, got norm 'l0'"),
        (["--set", "step_siz=1"], "unknown parameter of swift 'step_siz': did you mean steps"),
        (["--set", "device=cpu"], "unknown parameter of swift 'device': choose from "),
        (["--set", "steps=many"], "expected steps of swift to be int, got 'many'"),
        (["--set", "steps"], "expected name=value, got 'steps'"),
        (["--set", "=3"], "expected name=value, got '=3'"),
        (["--set", "steps=3", "--set", "steps=4"], "expected each name once, got 'steps' twice"),
        (["--set", "steps=3", "--steps", "4"], "expected each name once, got 'steps' twice"),
        (["--steps", "0"], "expected steps >= 1, got 0"),
        (["--steps", "two"], "Invalid value for '--steps': "),
        (["--stepz", "2"], "No such option: --stepz"),
        (["--eps", "8"], "expected eps in (0, 1], got 8: eps is in input units, did you mean 8/255?"),
        (["--eps", "8/255,16"], "expected eps in (0, 1], got 16: eps is in input units, did you mean 16/255?"),
        (["--norm", "l2", "--eps", "0.5,128"], "expected eps <= 8 in l2 for inputs (1, 8, 8), no two of which lie"),
        (["--eps", "0"], "expected eps > 0, got 0"),
        (["--eps=-0.1"], "expected eps > 0, got -0.1"),
        (["--eps", "nan"], "expected eps as a number or a fraction such as 8/255, got 'nan'"),
        (["--eps", "1e999999999"], "expected eps as a number or a fraction such as 8/255, got '1e999999999'"),
        (["--eps", "8/255,"], "expected eps as a number or a fraction such as 8/255, got ''"),
        (["--eps", "8/0"], "expected eps as a number or a fraction such as 8/255, got '8/0'"),
        (["--n-examples", "0"], "expected n_examples >= 1, got 0"),
        (["--n-examples", "501"], "expected n_examples in 1..500 (all there are), got 501"),
        (["--batch-size", "0"], "Invalid value for '--batch-size': "),
        (["--gradient", "exakt"], "expected a gradient such as exact, rule, own, surrogate:NAME"),
        (["--precision", "float16"], "unknown precision 'float16': did you mean "),
        (["--device", "tpu"], "expected a device that is here (auto, cpu, cuda, cuda:N), got 'tpu': "),
        (["--device", "meta"], "expected a device that is here (auto, cpu, cuda, cuda:N), got 'meta': "),
        (["--device", "cuda:99"], "expected a device that is here (auto, cpu, cuda, cuda:N), got 'cuda:99': "),
        (["--data-file", "none.npz"], "cannot read none.npz: No such file or directory: check the path"),
        (["extra"], "Got unexpected extra argument"),
    ],
)
def test_a_mistake_in_an_evaluation_is_one_line(
    arguments: list[str], expected: str, mistaken: Callable[..., str], trained_card: Path, tmp_path: Path
) -> None:
    model = [] if "--model" in arguments else ["--model", trained_card]
    for last in (["--out", tmp_path / "results"], ["--json"]):
        assert says(mistaken("eval", *model, *arguments, *last), expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected one of --model and --genotype, got neither"),
        (["--model", "bp-darts", "--genotype", "biodarts"], "expected one of --model and --genotype, got both"),
        (["--model", "bp-dart"], "unknown model 'bp-dart': did you mean bp-darts"),
        (["--genotype", "biodart"], "unknown genotype 'biodart': did you mean biodarts"),
        (["--model", "bp-darts", "--rule", "ufs"], "unknown rule 'ufs': did you mean usf"),
        (["--model", "bp-darts", "--dataset", "digitz"], "unknown dataset 'digitz': did you mean digits?"),
        (["--model", "bp-darts", "--set", "recipe.epohcs=1"], "field 'datasets.digits.recipe.epohcs': unknown field"),
        (["--model", "bp-darts", "--set", "recipe.lr=fast"], "field 'datasets.digits.recipe.lr': Input should be"),
        (["--model", "bp-darts", "--set", "recipe.adversary.eps=8"], "field 'datasets.digits.recipe.adversary.eps'"),
        (
            ["--model", "bp-darts", "--set", "recipes.lr=1"],
            "expected recipe.FIELD, net.FIELD or rules.FIELD to set",
        ),
        (["--model", "bp-darts", "--set", "net.layer=1"], "unknown parameter of the network cells 'layer': did you"),
        (["--model", "bp-darts", "--set", "net.seed=1"], "card bp-darts: field 'net.seed': no parameter of a network"),
        (["--model", "bp-darts", "--set", "rules.lr=1"], "card bp-darts: unknown field of rule_options 'lr'"),
        (["--model", "bp-darts", "--id", "../up"], "field 'id': expected lower-case letters"),
        (["--model", "bp-darts", "--epochs", "0"], "Invalid value for '--epochs': "),
        (["--model", "bp-darts", "--epochs", "1", "--set", "recipe.epochs=2"], "expected each name once"),
        (["--model", "bp-darts", "--seed", "-1"], "expected seed to be a whole number >= 0, got -1"),
        (["--model", "bp-darts", "--device", "tpu"], "expected a device that is here"),
    ],
)
def test_a_mistake_in_a_training_is_one_line(
    arguments: list[str], expected: str, mistaken: Callable[..., str], tmp_path: Path
) -> None:
    for last in ([], ["--out", tmp_path / "run", "--json"]):
        assert says(mistaken("train", *arguments, *last), expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evall"], "No such command 'evall'"),
        (["eval"], "Missing option '--model'"),
        (["list", "modelz"], "'modelz' is not one of 'models', "),
        (["list"], "Missing argument 'kind'"),
        (["show", "bionas-dart"], "unknown name 'bionas-dart': did you mean bionas-darts"),
        (["show", "none.toml"], "cannot read none.toml: "),
        (["--unknown"], "No such option: --unknown"),
    ],
)
def test_a_mistake_in_a_command_is_one_line(arguments: list[str], expected: str, mistaken: Callable[..., str]) -> None:
    assert says(mistaken(*arguments), expected)


def test_labels_out_of_range_are_one_line(mistaken: Callable[..., str], trained_card: Path, tmp_path: Path) -> None:
    packed = tmp_path / "labels.npz"
    np.savez(packed, test_images=np.zeros((4, 8, 8), np.uint8), test_labels=np.array([0, 3, 12, 1]))
    line = mistaken("eval", "--model", trained_card, "--data-file", packed)
    assert line.startswith("digits expects labels in 0..9, got 12 in the test split of ")
    np.savez(packed, test_images=np.zeros((4, 8, 9), np.uint8), test_labels=np.array([0, 3, 2, 1]))
    line = mistaken("eval", "--model", trained_card, "--data-file", packed)
    assert line.startswith("digits expects images of shape (1, 8, 8), got (1, 8, 9) in the test split of ")


def test_a_data_set_that_cannot_be_downloaded_is_one_line(
    mistaken: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocked(*_: Any, **__: Any) -> NoReturn:
        raise OSError("the network is blocked")

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    (tmp_path / "data").mkdir()
    line = mistaken(
        "train", "--genotype", "biodarts", "--dataset", "cifar10", "--data-root", tmp_path / "data",
        "--set", "net.channels=2", "--set", "net.layers=2",
    )  # fmt: skip
    assert line.startswith(f"cifar10 is not in {tmp_path / 'data'} and could not be downloaded (")
    assert "the network is blocked" in line
    assert line.endswith("put cifar-10-python.tar.gz or cifar10.npz there, or pass --data-file FILE.npz")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "field 'id': expected a value, got none: add this field (and 2 more)"),
        ("id = [", "expected TOML, got "),
        ("id = 'x'\ntitle = 'x'\ncolour = 3\n[net]\nname = 'mlp'", "field 'colour': unknown field 'colour'"),
        ("a = " + "[" * 9000, "expected TOML, got "),
        ("id = 'x'\ntitle = 'x'\n[net]\nname = 'mlp'", "model x has no weights for dataset 'digits', only for none"),
    ],
)
def test_a_malformed_card_is_one_line(text: str, expected: str, mistaken: Callable[..., str], tmp_path: Path) -> None:
    card = tmp_path / "own.toml"
    card.write_text(text)
    line = mistaken("eval", "--model", card)
    assert line.removeprefix(f"{card}: ").startswith(expected)


def test_escapes_and_line_breaks_of_a_card_stay_in_one_line(mistaken: Callable[..., str], tmp_path: Path) -> None:
    card = tmp_path / "own.toml"
    card.write_text('"a\\nb\\u001b[31m" = 1\nid = "x"\ntitle = "x"\n[net]\nname = "mlp"')
    line = mistaken("eval", "--model", card)
    assert "\x1b" not in line


def test_a_folder_that_cannot_be_written_is_one_line(
    mistaken: Callable[..., str], trained_card: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        line = mistaken("eval", "--model", trained_card, *FAST, "--out", out)
        assert line.startswith(f"cannot write {out}: ")
        assert line.endswith(": name another folder with --out")
    small = ["--set", "net.channels=1", "--set", "net.layers=1", "--epochs", "1"]
    line = mistaken("train", "--model", "bp-darts", *small, "--out", tmp_path / "file" / "below")
    assert line == f"cannot write {tmp_path / 'file' / 'below'}: Not a directory: name another folder with --out"


def test_json_is_the_documented_document(call: Call, trained_card: Path) -> None:
    found = call("eval", "--model", trained_card, *FAST, "--eps", "2/255,8/255", "--json").document
    assert list(found) == [
        "model",
        "dataset",
        "n",
        "clean_accuracy",
        "results",
        "worst_case",
        "verdict",
        "number",
        "diagnosis",
    ]
    assert found["verdict"] == found["diagnosis"]["verdict"] == "inconclusive"
    assert found["diagnosis"]["n"] <= 16
    assert "too-few-examples" in found["diagnosis"]["flags"]
    assert (found["model"], found["dataset"], found["n"]) == ("tiny-fa", "digits", 16)
    documented = {
        "attack", "norm", "eps", "gradient", "backend", "robust_accuracy", "ci95", "success_rate", "queries_mean",
        "seconds",
    }  # fmt: skip
    assert [(row["eps"], row["gradient"]) for row in found["results"]] == [
        (2 / 255, "rule"), (2 / 255, "exact"), (8 / 255, "rule"), (8 / 255, "exact"),
    ]  # fmt: skip
    for row in found["results"]:
        assert documented <= set(row)
        assert row["attack"] == "pgd"
        assert row["backend"] == "native"
        assert 0 <= row["ci95"][0] <= row["robust_accuracy"] <= row["ci95"][1] <= 1
        assert row["robust_accuracy"] <= found["clean_accuracy"] <= 1
        assert row["seconds"] > 0
    by_eps = found["worst_case"]["by_eps"]
    assert [cell["eps"] for cell in by_eps] == [2 / 255, 8 / 255]
    for cell in by_eps:
        assert cell["robust_accuracy"] <= min(r["robust_accuracy"] for r in found["results"] if r["eps"] == cell["eps"])


def test_the_numbers_are_those_of_the_library(call: Call, trained_card: Path) -> None:
    found = call("eval", "--model", trained_card, *FAST, "--gradient", "exact", "--json").document
    model = rb.load_model(str(trained_card))
    expected = rb.evaluate(model, rb.load_data("digits", n_examples=16), attack="pgd", steps=2)
    assert found["clean_accuracy"] == expected.clean_accuracy
    assert found["results"][0]["robust_accuracy"] == found["worst_case"]["robust_accuracy"] == expected.robust_accuracy
    assert found["results"][0]["ci95"] == list(expected.ci95)


def test_an_equal_call_is_answered_from_the_store_and_says_so(call: Call, trained_card: Path, tmp_path: Path) -> None:
    arguments = ["eval", "--model", trained_card, *FAST, "--out", tmp_path / "results"]
    fresh = call(*arguments, "--json").document["results"]
    assert [row["from_store"] for row in fresh] == [False, False]
    again = call(*arguments, "--json").document["results"]
    assert [row["from_store"] for row in again] == [True, True]
    assert [row | {"from_store": False} for row in again] == fresh
    table = call(*arguments).out
    assert "* = from the store" in " ".join(table.split())
    assert len(re.findall(r"\d\*", table)) == 2
    other = call(*arguments, "--seed", "1").out
    assert not re.findall(r"\d\*", other)


def test_an_edited_result_is_one_line(
    call: Call, mistaken: Callable[..., str], trained_card: Path, tmp_path: Path
) -> None:
    arguments = ["eval", "--model", trained_card, *FAST, "--gradient", "exact", "--out", tmp_path / "results"]
    call(*arguments)
    (path,) = (tmp_path / "results").rglob("pgd-*.json")
    path.write_text(path.read_text().replace('"robust', '"robusT').replace('"seconds":', '"seconds":1'))
    assert mistaken(*arguments).endswith("does not match its own hash or spec: it was damaged or edited, delete it")


def test_a_network_is_probed_once_and_its_verdict_stands_over_the_table(
    call: Call, trained_card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["eval", "--model", trained_card, *FAST, "--out", tmp_path / "results"]
    assert "usual way: inconclusive (too-few-examples: " in " ".join(call(*arguments).out.split())

    def again(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("diagnosed twice")

    monkeypatch.setattr(probe, "diagnose", again)
    assert call(*arguments, "--json").document["verdict"] == "inconclusive"
    with pytest.raises(AssertionError, match="diagnosed twice"):
        call(*arguments, "--eps", "9/255")


def test_there_is_no_verdict_for_pixels(call: Call, trained_card: Path) -> None:
    arguments = ["eval", "--model", trained_card, "--n-examples", "8", "--attack", "one-pixel"]
    found = call(*arguments, "--set", "generations=1", "--json").document
    assert [(row["norm"], row["eps"]) for row in found["results"]][-1] == ("l0", 1)
    assert found["verdict"] is None
    assert found["diagnosis"] is None


def test_the_table_shows_both_gradients_and_the_worst_case(
    call: Call, trained_card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    said = call("eval", "--model", trained_card, *FAST)
    assert said.status == 0
    text = said.out
    for word in ("tiny-fa on digits (test, n = 16), clean accuracy", "rule", "exact", "8/255", "gap", "lowest"):
        assert word in text
    # What a single loss leaves is no worst case; what swift leaves, where no attack is named, is called so.
    assert "worst case" not in text
    assert "worst case" in call("eval", "--model", trained_card, *FAST[2:]).out
    assert "[bold]" not in text


@pytest.mark.parametrize("threat", [("linf", "8.75/255"), ("l2", "0.0123456"), ("linf", "8/255,16/255")])
def test_no_number_is_cut_off_in_a_plain_terminal(
    threat: tuple[str, str], call: Call, trained_card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = call("eval", "--model", trained_card, *FAST, "--norm", threat[0], "--eps", threat[1]).out
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for eps in threat[1].split(","):
        assert f"{threat[0]} {eps}" in text
    # Title, header, rule, two gradients and the lowest of each radius, a caption of one or two lines.
    assert len([line for line in text.splitlines() if re.match(r"pgd|lowest", line)]) == 3 * len(threat[1].split(","))


def test_brackets_are_shown_and_not_taken_for_markup(
    call: Call, trained_card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert "[l2, linf]" in call("list", "attacks").out
    odd = trained_card.with_name("odd.toml")
    odd.write_text(trained_card.read_text().replace('title = "Tiny"', 'title = "[red]x[/y] :smile:"'))
    try:
        assert "[red]x[/y] :smile:" in call("show", odd).out
    finally:
        odd.unlink()


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_is_listed_and_each_member_can_be_shown(kind: Kind, call: Call) -> None:
    rows = call("list", kind.value, "--json").document
    assert list(rows) == [kind.value]
    assert rows[kind.value]
    assert kind.value in call("list", kind.value).out
    for name, line in list(rows[kind.value].items())[: 1 if kind == Kind.models else 3]:
        assert line
        facts = call("show", name, "--json").document
        assert facts["kind"] == kind.value.rstrip("s") or f"{kind.value.rstrip('s')} of that name" in facts
        assert name in call("show", name).out


def test_the_rules_of_a_mixed_network_are_shown(call: Call) -> None:
    facts = call("show", "bionas-darts", "--json").document
    assert set(facts["weights under each rule"]) == {"bp", "usf", "frsf"}
    assert sum(facts["weights under each rule"].values()) > 1000


def test_what_is_shown_of_a_mixed_network_are_numbers_that_fit_together(call: Call) -> None:
    facts = call("show", "bionas-darts", "--json").document
    assert facts["parameters"] == sum(facts["weights under each rule"].values())
    assert sum(facts["percent of weights"].values()) == pytest.approx(100)
    assert facts["percent of weights"]["bp"] > 10, "stem, preprocessing and classifier are no less bp for the id"
    assert facts["energy per inference"]["picojoules"] == pytest.approx(4.6 * facts["MACs per example"], abs=0.06)
    assert facts["feedback memory"]["bytes"] == 4 * facts["weights under each rule"]["frsf"]
    assert 0.9 < facts["held-out accuracy"] <= 1
    assert facts["weights"] == "trained"
    rows = {row["layer"]: row for row in facts["layer by layer"]}
    assert sum(row["weights"] for row in rows.values()) == facts["gradient variance"]["weights"]
    for row in rows.values():
        low, high = {"bp": (0, 0), "usf": (15, 45), "frsf": (30, 55)}[row["rule"]]
        assert low <= row["angle"] <= high
        assert 0.8 < row["weight_ratio"] < 1.25
        assert row["reasons"] == []
        assert set(row["gradient_variance"]) == {"rule", "exact"}
    assert rows["stem0.conv"]["gradient_angle"] > 10, "bp below false feedback learns from a false gradient"
    assert rows["classifier"]["gradient_angle"] < 0.01
    for side in ("rule", "exact"):
        assert facts["gradient variance"][side]["relative"] > 0
        assert facts["gradient variance"][side]["per_weight"] > 0


def test_the_table_of_a_network_has_a_row_for_each_layer(
    call: Call, trained_card: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = call("show", trained_card)
    facts = call("show", trained_card, "--json").document
    assert said.err == ""
    assert max(map(len, said.out.splitlines())) <= 80
    words = " ".join(re.sub("[│┃]", " ", said.out).split())
    assert f"{4.6 * facts['MACs per example']:,.0f} pJ (estimate: 4.6 pJ per MAC" in words
    assert f"{4 * (64 * 32 + 32 * 10):,} bytes (estimate: " in words
    assert f"rule {facts['gradient variance']['rule']['relative']:.3g}, exact " in words
    for row in facts["layer by layer"]:
        angles = rf"{row['angle']:.1f} +{row['weight_ratio']:.2f} +{row['gradient_angle']:.1f}"
        assert re.search(rf"{re.escape(row['layer'])} +fa +{row['weights']:,} +{angles}", said.out)


def test_layers_without_angles_say_why_in_the_table(call: Call) -> None:
    text = call("show", "hebbian-softhebb").out
    assert re.search(r"stages.0.conv +softhebb +432 +– +– +–", text)
    assert "–: softhebb follows no gradient" in text
    assert re.search(r"stages.2.linear +bp +3,840 +0.0 +1.00 +0.0", text)


def test_an_untrained_network_shows_what_needs_no_training(call: Call, trained_card: Path, tmp_path: Path) -> None:
    card = tmp_path / "new.toml"
    card.write_text(
        re.sub(r"(?m)^(weights|weights_sha256|trained_on|val_accuracy) = .*\n", "", trained_card.read_text())
    )
    facts = call("show", card, "--json").document
    assert facts["weights"] == "initial: not trained yet"
    assert facts["gradients measured on"] == "nothing: no trained weights"
    assert "gradient variance" not in facts
    assert (facts["held-out accuracy"], facts["trained on"]) == ("unknown", "not trained yet")
    assert facts["layer by layer"][0]["angle"] == pytest.approx(90, abs=5)
    assert "gradient_angle" not in facts["layer by layer"][0]
    assert "initial: not trained yet" in call("show", card).out
    lost = tmp_path / "lost.toml"
    lost.write_text(trained_card.read_text())
    facts = call("show", lost, "--json").document
    assert facts["weights"].startswith("initial: ")
    assert str(tmp_path) in facts["weights"]
    assert facts["gradients measured on"] == "nothing: no trained weights"


def test_data_that_is_not_here_is_said_and_not_downloaded(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = TrainedNet(recipe=Recipe(epochs=1))
    card = ModelCard(
        id="colour", title="Colour", rule="usf", net={"name": "mlp", "hidden": []}, datasets={"cifar10": entry}
    )
    zoo.save_trained(card, "cifar10", entry, zoo.network(card, entry, open_dataset("cifar10")), tmp_path, tmp_path)

    def blocked(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    show = ["show", tmp_path / "colour.toml", "--dataset", "cifar10", "--data-root", tmp_path / "data"]
    facts = call(*show, "--json").document
    assert facts["weights"] == "trained"
    assert facts["gradients measured on"] == f"nothing: cifar10 is not in {tmp_path / 'data'}"
    assert facts["layer by layer"][0]["angle"] is not None
    assert not (tmp_path / "data").exists()
    packed = tmp_path / "own.npz"
    drawn = np.random.default_rng(0)
    images, labels = drawn.integers(0, 256, (520, 32, 32, 3), np.uint8), drawn.integers(0, 10, 520)
    np.savez(packed, train_images=images, train_labels=labels, test_images=images[:2], test_labels=labels[:2])
    facts = call(*show, "--data-file", packed, "--json").document
    assert facts["gradients measured on"]["examples"] == 512
    np.savez(packed, train_images=images[:99], train_labels=labels[:99], test_images=images, test_labels=labels)
    facts = call(*show, "--data-file", packed, "--json").document
    assert facts["gradients measured on"].startswith("nothing: expected n_examples in 1..99")


def stderr_of(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(terminal, "err", Console(file=text, force_terminal=is_terminal, width=100, markup=False))
    return text


def test_a_late_bar_appears_only_for_what_takes_seconds(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    text = stderr_of(monkeypatch, is_terminal=True)
    with terminal.progress_shown("measuring", late=True) as progress:
        for seconds, done in ((1.0, 1), (2.0, 2)):
            clock.now = 100 + seconds
            progress(done, 9, "line")
            assert text.getvalue() == ""
        clock.now = 102.5
        progress(3, 9, "line")
        assert "measuring" in text.getvalue()
    assert "3/9" in text.getvalue()
    early = stderr_of(monkeypatch, is_terminal=True)
    with terminal.progress_shown("measuring"):
        assert "measuring" in early.getvalue()


def test_without_a_terminal_a_line_is_printed_now_and_then(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    text = stderr_of(monkeypatch, is_terminal=False)
    with terminal.progress_shown("attacking") as progress:
        for second in range(1, 101):
            clock.now = 100 + second
            progress(500 + second, 1000, f"[pgd] {second}")
    assert text.getvalue().splitlines() == [
        "attacking: 510 of 1,000, 0:08:10 left, [pgd] 10",
        "attacking: 540 of 1,000, 0:07:40 left, [pgd] 40",
        "attacking: 570 of 1,000, 0:07:10 left, [pgd] 70",
        "attacking: 600 of 1,000, 0:06:40 left, [pgd] 100",
    ]


def test_without_a_terminal_every_epoch_has_its_line(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    text = stderr_of(monkeypatch, is_terminal=False)
    with terminal.progress_shown("training", epochs=True) as progress:
        for step in range(1, 31):
            clock.now = 100 + step / 2
            progress(step, 30, f"epoch {step // 10}" if step >= 10 else "")
    assert text.getvalue().splitlines() == [
        "training: 10 of 30, 0:00:10 left, epoch 1",
        "training: 20 of 30, 0:00:05 left, epoch 2",
        "training: 30 of 30, 0:00:00 left, epoch 3",
    ]


def test_a_network_is_trained_shown_and_evaluated(call: Call, tmp_path: Path) -> None:
    train = [
        "train", "--genotype", "biodarts", "--rule", "usf", "--id", "my-usf", "--out", tmp_path / "run",
        "--set", "net.channels=2", "--set", "net.layers=2", "--epochs", "1", "--set", "recipe.batch_size=256",
        "--set", "recipe.adversary.eps=8/255", "--set", "recipe.adversary.steps=1",
    ]  # fmt: skip
    paused = call(*train, "--max-minutes", "0", "--json").document
    assert not paused["finished"]
    assert (paused["step"], paused["history"]) == (0, [])
    said = call(*train, "--json")
    assert re.fullmatch(r"training: 4 of 4, 0:00:\d\d left, epoch 1.*\n", said.err)
    done = said.document
    assert list(done) == [
        "model", "folder", "finished", "step", "steps", "best_epoch", "val_accuracy", "history",
    ]  # fmt: skip
    assert done["finished"]
    assert done["step"] == done["steps"] == 4
    card = ModelCard.from_toml((tmp_path / "run" / "my-usf.toml").read_text(), "card")
    recipe = card.datasets["digits"].recipe
    assert (recipe.epochs, recipe.adversary is not None and recipe.adversary.eps) == (1, 8 / 255)
    found = call("eval", "--model", tmp_path / "run" / "my-usf.toml", *FAST, "--json").document
    assert {row["gradient"] for row in found["results"]} == {"rule", "exact"}
    assert "biorobust eval --model" in call(*train).out
    assert "my-usf" in call("show", tmp_path / "run" / "my-usf.toml").out


def test_a_card_to_train_anew_claims_no_earlier_training(trained_card: Path) -> None:
    before = ModelCard.from_toml(trained_card.read_text(), "card").datasets["digits"]
    card = card_options.card_from_options(
        model=str(trained_card), genotype=None, rule="usf", dataset="digits", name="new", seed=4,
        changes=["recipe.lr=1/8", "net.hidden=[7, 8]", "rules.init=kaiming", "recipe.grad_clip=none",
                 "recipe.flip=true"],
    )  # fmt: skip
    entry = card.datasets["digits"]
    assert (card.id, card.rule, card.rule_options, entry.seed) == ("new", "usf", {"init": "kaiming"}, 4)
    assert entry.net == {"hidden": [7, 8]}
    changes = {"lr": 0.125, "grad_clip": None, "flip": True}
    assert entry.recipe == before.recipe.model_copy(update=changes)
    assert before.weights is not None
    assert before.trained_on
    assert (entry.weights, entry.weights_sha256, entry.val_accuracy, entry.trained_on) == (None, None, None, "")


def test_a_file_of_images_is_a_data_set(call: Call, tmp_path: Path) -> None:
    examples = {part: load_examples("digits", part, 100) for part in ("train", "test")}
    arrays = {f"{part}_images": e.x[:, 0] for part, e in examples.items()}
    np.savez(tmp_path / "mine.npz", **arrays, **{f"{part}_labels": e.y for part, e in examples.items()})
    source = tmp_path / "card.toml"
    source.write_text("id = 'mine'\ntitle = 'x'\nrule = 'bp'\n[net]\nname = 'mlp'\nhidden = [8]\n")
    dataset = ["--dataset", tmp_path / "mine.npz"]
    call("train", "--model", source, *dataset, "--epochs", "1", "--out", tmp_path / "run")
    found = call("eval", "--model", tmp_path / "run" / "mine.toml", *dataset, *FAST, "--json").document
    assert found["dataset"] == "mine"
    assert [row["gradient"] for row in found["results"]] == ["exact"]


def test_a_network_without_rules_has_no_rule_gradient(call: Call, mistaken: Callable[..., str], tmp_path: Path) -> None:
    source = tmp_path / "card.toml"
    source.write_text("id = 'mine'\ntitle = 'x'\nrule = 'bp'\n[net]\nname = 'mlp'\nhidden = [8]\n")
    call("train", "--model", source, "--epochs", "1", "--out", tmp_path / "run")
    line = mistaken("eval", "--model", tmp_path / "run" / "mine.toml", *FAST, "--gradient", "rule", "--out", tmp_path)
    assert line == "expected a network with learning rules for gradient 'rule', got one without: use 'exact'"


def test_ctrl_c_is_no_traceback(call: Call, trained_card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(assess, "assess", interrupted)
    said = call("eval", "--model", trained_card)
    assert said.status == 130
    assert said.out == ""
    assert said.err.strip() == "stopped: what is finished is kept, the same command continues"


def test_a_complaint_of_several_lines_becomes_one(
    mistaken: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def complaint(*_: Any, **__: Any) -> NoReturn:
        raise rb.UserError("expected this,\n  got that")

    monkeypatch.setattr(planning, "eval_plan", complaint)
    assert mistaken("eval", "--model", "x") == "expected this, got that"


def test_help_and_version_are_no_mistakes(call: Call) -> None:
    for arguments in (["--help"], ["eval", "--help"], ["train", "--help"], ["list", "--help"], ["show", "--help"], []):
        said = call(*arguments)
        assert (said.status, said.err) == (0, "")
        assert "Usage: biorobust" in said.out
    for command in ("migrate", "verify"):
        assert "Name of a board [default: all]." in call("leaderboard", command, "--help").out
    assert call("--version").out == f"biorobust {rb.__version__}\n"


@pytest.mark.parametrize("code", ["import robustbench_bio", "import robustbench_bio.cli", "HELP", "MISTAKE"])
def test_the_start_loads_no_torch(code: str) -> None:
    arguments = {"HELP": ["--help"], "MISTAKE": ["eval", "--stepz", "3"]}.get(code, [])
    if arguments:
        call = "from robustbench_bio.cli import main\ntry: main()\nexcept SystemExit: pass"
        code = f"import sys; sys.argv[1:] = {arguments}; {call}"
    heavy = "{'torch', 'numpy', 'scipy', 'pandas', 'matplotlib', 'sklearn'}"
    check = f"import sys; print('loaded', sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_the_real_command_answers_in_json_and_complains_in_one_line(trained_card: Path, tmp_path: Path) -> None:
    home = {"BIOROBUST_HOME": str(tmp_path / "home")}
    done = shell("eval", "--model", trained_card, *FAST, "--json", **home)
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["n"] == 16
    assert len(list((tmp_path / "home" / "results").rglob("pgd-*.json"))) == 2
    wrong = shell("eval", "--model", trained_card, "--stepz", "8", **home)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: No such option: --stepz")
    assert wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_installed_script_runs(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("biorobust")
    if not script.exists():
        pytest.skip("the package is not installed as a command here")
    done = subprocess.run([script, "list", "models", "--json"], capture_output=True, text=True, check=True)  # noqa: S603
    assert list(json.loads(done.stdout)["models"]) == catalog.model_ids()


def test_the_bar_stays_away_from_what_is_no_terminal(call: Call, trained_card: Path, clock: Clock) -> None:
    assert call("eval", "--model", trained_card, *FAST).err == ""


def test_where_torch_may_run() -> None:
    assert planning.pick_device("cpu") == "cpu"
    assert planning.pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_network_of_zeros_is_named_no_classifier_by_every_command(
    call: Call, trained_card: Path, tmp_path: Path
) -> None:
    text = trained_card.read_text()
    named = text.split('weights = "')[1].split('"')[0]
    tensors = {name: torch.zeros_like(value) for name, value in load_file(trained_card.parent / named).items()}
    save_file(tensors, tmp_path / named)
    digest = hashlib.sha256((tmp_path / named).read_bytes()).hexdigest()
    card = tmp_path / "tiny-fa.toml"
    card.write_text(re.sub('weights_sha256 = "[0-9a-f]*"', f'weights_sha256 = "{digest}"', text))
    said = "no classifier: it answers class 0 for all 30 examples: train it"
    asked = "--model", card, "--attack", "noise", "--n-examples", "30"
    assert said in squeezed(call("eval", *asked).out)
    assert said in squeezed(call("eval", *asked, "--attack", "one-pixel", "--norm", "l0", "--eps", "1").out)
    document = json.loads(call("eval", *asked, "--json").out)
    assert document["verdict"] == "inconclusive"
    assert document["diagnosis"]["reason"].startswith(said)
    (tmp_path / "tiny.toml").write_text('name = "tiny"\ntitle = "x"\n[[attacks]]\nattack = "noise"\neps = ["8/255"]\n')
    grid = call("grid", tmp_path / "tiny.toml", "--models", card, "--n-examples", "30")
    assert f"tiny-fa: {said}" in squeezed(grid.out)
    assert "no classifier: it answers class 0 for all 500 examples" in squeezed(call("diagnose", "--model", card).out)


def squeezed(text: str) -> str:
    return " ".join(text.split())
