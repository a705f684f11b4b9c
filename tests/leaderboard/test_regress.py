"""Regressions: what is a drop and what is chance, and how a repository is told."""

import json
import random
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
import torch
from scipy.stats import binomtest
from test_boards import entry_like

from robustbench_bio.cli import app as cli
from robustbench_bio.core.errors import UserError
from robustbench_bio.evaluation.measure import measure
from robustbench_bio.evaluation.plan import Settings, Slice, Subject, prepare
from robustbench_bio.leaderboard.folders import Folders, measurements_of
from robustbench_bio.leaderboard.pytest_plugin import check
from robustbench_bio.leaderboard.regress import (
    CLEAN,
    WORST,
    Limits,
    Pair,
    Part,
    against_checkout,
    between,
    holm,
    judged,
    read_entries,
)
from robustbench_bio.leaderboard.submit import entry_text
from robustbench_bio.records.card import ModelCard
from robustbench_bio.records.entry import Measured, scored
from robustbench_bio.records.result import Provenance
from robustbench_bio.records.threat import Threat
from robustbench_bio.report import regress as regress_report
from robustbench_bio.zoo import loading as zoo
from robustbench_bio.zoo.loading import DataSource

PLUGIN = "robustbench_bio.leaderboard.pytest_plugin"


def simulated(n: int, robust: float, drop: float, churn: float, draw: random.Random) -> Pair:
    """Return a network of which a share of all examples falls, and another share changes sides by chance."""
    before = [draw.random() < robust for _ in range(n)]
    after = [stands != (draw.random() < churn) for stands in before]
    after = [stands and not (before[i] and draw.random() < drop / robust) for i, stands in enumerate(after)]
    return Pair("net", WORST, before, after)


def alarms(n: int, drop: float, churn: float, repetitions: int, seed: int = 0) -> float:
    """Return in which share of repetitions one of ten networks, of which the first one dropped, is called worse."""
    draw = random.Random(seed)  # noqa: S311
    found = 0
    for _ in range(repetitions):
        pairs = [simulated(n, 0.5, drop if i == 0 else 0, churn, draw) for i in range(10)]
        found += any(change.pair is pairs[0] for change in judged(pairs, Limits()).regressions)
    return found / repetitions


def test_unchanged_networks_raise_no_alarm_and_a_drop_of_five_points_does() -> None:
    assert alarms(500, drop=0, churn=0, repetitions=200) == 0
    assert alarms(500, drop=0.05, churn=0, repetitions=200) >= 0.95


def test_chance_alone_seldom_raises_an_alarm() -> None:
    """With examples that change sides by chance in ten networks, alpha bounds the alarms of a whole call."""
    draw, repetitions = random.Random(1), 200  # noqa: S311
    calls = [[simulated(500, 0.5, 0, 0.05, draw) for _ in range(10)] for _ in range(repetitions)]
    false = sum(bool(judged(pairs, Limits()).regressions) for pairs in calls)
    assert false <= binomtest(10, repetitions).proportion_ci(0.999).high * repetitions


def test_a_drop_has_to_be_notable_as_well() -> None:
    before = [True] * 5000
    after = [i >= 25 for i in range(5000)]  # half a point, p = 2⁻²⁵
    (change,) = judged([Pair("net", WORST, before, after)], Limits()).changes
    assert change.p < 1e-6
    assert not change.regression
    (change,) = judged([Pair("net", WORST, before, after)], Limits(min_drop=0.5)).changes
    assert change.regression
    (better,) = judged([Pair("net", WORST, after, before)], Limits(min_drop=0)).changes
    assert better.p == 1
    assert not better.regression


def test_holm_is_the_textbook_one() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    draw = random.Random(3)  # noqa: S311
    for _ in range(50):
        values = [draw.random() ** 3 for _ in range(6)]
        order = sorted(values)
        expected = [min(1.0, max((6 - k) * order[k] for k in range(order.index(value) + 1))) for value in values]
        assert holm(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"alpha": 0.0}, "expected alpha in"), ({"alpha": 1.0}, "expected alpha in"),
        ({"min_drop": -1.0}, "expected min-drop in points"), ({"min_drop": 101.0}, "expected min-drop in points"),
    ],
)  # fmt: skip
def test_limits_out_of_range_are_refused(arguments: dict[str, float], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Limits(**arguments)


def test_the_examples_are_the_first_ones_or_drawn() -> None:
    assert Part(n_examples=3).rows(10) == [0, 1, 2]
    assert Part().rows(4) == [0, 1, 2, 3]
    drawn = Part(fraction=0.3, seed=1).rows(100)
    assert len(set(drawn)) == 30
    assert drawn == Part(fraction=0.3, seed=1).rows(100) != Part(fraction=0.3, seed=2).rows(100)
    for wrong in (Part(n_examples=11), Part(n_examples=0), Part(fraction=0.0), Part(n_examples=1, fraction=0.5)):
        with pytest.raises(UserError, match="expected"):
            wrong.rows(10)


# Two folders of entries


def write(folder: Path, name: str, stands: list[bool]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(entry_text(entry_like(name, stands)))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, "same", [True] * 60)
    write(new, "same", [True] * 60)
    write(old, "worse", [True] * 60)
    write(new, "worse", [False] * 10 + [True] * 50)
    write(old, "gone", [True] * 60)
    write(new, "fresh", [True] * 60)
    return old, new


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["biorobust", "regress", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_two_folders_are_compared_and_reports_written(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    junit, markdown = tmp_path / "out" / "junit.xml", tmp_path / "out" / "summary.md"
    arguments = ["--baseline", two[0], "--candidate", two[1], "--junit", junit, "--markdown", markdown]
    assert run(monkeypatch, *arguments, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["regressions"] == 1
    assert document["left_out"] == {"fresh": "not in the baseline", "gone": "not in the candidate"}
    (worse,) = [change for change in document["changes"] if change["regression"]]
    assert (worse["model"], worse["what"], worse["lost"], worse["won"]) == ("worse", WORST, 10, 0)
    assert worse["p"] == pytest.approx(4 * 0.5**10)  # four tests, ten examples that all fell
    suite = Xml.fromstring(junit.read_text())  # noqa: S314
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped")} == {
        "tests": "6", "failures": "1", "skipped": "2",
    }  # fmt: skip
    assert len(suite) == 6
    (failure,) = suite.iter("failure")
    assert "worst case 100.0 % to 83.3 %" in str(failure.get("message"))
    summary = markdown.read_text()
    assert summary.startswith("# 1 of 2 networks are less robust\n")
    assert "| worse | worst case | 60 | 100.0 | 83.3 | 10 | 0 | 0.0039 | regression |" in summary
    assert run(monkeypatch, *arguments, "--models", "same") == 0
    assert "no regression in 1 networks" in capsys.readouterr().out
    assert Xml.fromstring(junit.read_text()).get("failures") == "0"  # noqa: S314


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--baseline", "NONE", "--candidate", "NEW"], "expected a folder of entries"),
        (["--baseline", "OLD", "--candidate", "NEW", "--models", "sane"], "did you mean same"),
        (["--baseline", "OLD", "--candidate", "NEW", "--models", "gone"], "unknown entry 'gone'"),
        (["--baseline", "OLD", "--candidate", "NEW", "--attacks", "pdg"], "did you mean pgd"),
        (["--baseline", "OLD", "--candidate", "NEW", "--n-examples", "61"], "expected n-examples in 1..60"),
        (["--baseline", "OLD", "--candidate", "NEW", "--alpha", "2"], "expected alpha in"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str], expected: str, two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"OLD": two[0], "NEW": two[1], "NONE": tmp_path / "none"}
    junit = tmp_path / "junit.xml"
    assert run(monkeypatch, *[places.get(a, a) for a in arguments], "--junit", junit) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert not junit.exists()


def test_entries_that_were_measured_differently_are_not_compared(two: tuple[Path, Path]) -> None:
    path = two[1] / "same.json"
    document = json.loads(path.read_text())
    document["measurements"][0]["spec"]["data_sha256"] = "f" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="measured by different attacks or on other examples"):
        between(*two, models="same")


def test_what_is_left_out_alone_is_no_comparison() -> None:
    with pytest.raises(UserError, match="got none: gone: not in the candidate"):
        judged([], Limits(), {"gone": "not in the candidate"})


# Networks that are measured again

TINY = """
name = "tiny"
title = "Tiny"
dataset = "digits"
n_examples = 40
preset = "quick"

[rank_by]
norm = "linf"
eps = "8/255"
"""


@pytest.fixture(scope="module")
def board(trained_card: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The tiny network of the tests in a zoo, and the entry that PGD gives it, without a probe."""
    root = tmp_path_factory.mktemp("regress")
    folders = Folders(root / "models", root / "leaderboards")
    (folders.models / "weights").mkdir(parents=True)
    folders.leaderboards.mkdir()
    (folders.leaderboards / "tiny.toml").write_text(TINY)
    shutil.copy(trained_card, folders.models)
    shutil.copy(trained_card.parent / "tiny-fa-digits.safetensors", folders.models / "weights")
    card = ModelCard.from_toml(trained_card.read_text(), "card")
    net, data, one = folders.network(card, "digits"), Slice.load(DataSource(), 40), folders.board("tiny")
    measurements = []
    for asked in measurements_of(one)[:4]:
        settings = Settings(precision="float32")
        prepared = prepare(Subject("tiny-fa", net), asked, data, settings)
        measurements.append(Measured.of(measure(prepared)))
    entry = entry_like("tiny-fa", [True] * 40).model_copy(
        update={"measurements": measurements, "scores": scored(measurements, Threat("linf", 8 / 255)), "card": card,
                "card_sha256": card.sha256(), "provenance": Provenance(seconds=1, device="", created="", packages={})}
    )  # fmt: skip
    folder = folders.leaderboards / "tiny"
    folder.mkdir()
    (folder / "tiny-fa.json").write_text(entry_text(entry))
    return folders


def baseline(board: Folders) -> Path:
    return board.leaderboards / "tiny"


def damaged(board: Folders, root: Path) -> Folders:
    """Return a zoo whose network has lost its bearings."""
    shutil.copytree(board.models, root / "models")
    other = Folders(root / "models", board.leaderboards)
    card = other.card("tiny-fa")
    assert card is not None
    net = other.network(card, "digits")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    zoo.save_trained(card, "digits", card.datasets["digits"], net, other.models, other.models / "weights")
    return other


def test_an_unchanged_network_has_not_a_single_changed_example(board: Folders) -> None:
    found = against_checkout(baseline(board), board, part=Part(fraction=0.5))
    assert [(change.lost, change.won, change.regression) for change in found.changes] == [(0, 0, False)] * 2
    assert {change.pair.question for change in found.changes} == {CLEAN, WORST}
    (entry,) = read_entries(baseline(board)).values()
    whole = against_checkout(baseline(board), board)
    assert whole.changes[1].before == whole.changes[1].after == entry.scores.worst_case


def test_a_network_that_got_worse_is_found(
    board: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = damaged(board, tmp_path)
    arguments = ["--baseline", baseline(board), "--zoo", worse.models, "--attacks", "fgsm", "--json"]
    assert run(monkeypatch, *arguments) == 1
    assert json.loads(capsys.readouterr().out)["regressions"] == 2
    (worse.models / "tiny-fa.toml").unlink()
    assert run(monkeypatch, *arguments) == 2
    assert "tiny-fa: not in the zoo any more" in capsys.readouterr().err


def test_the_fixture_passes_and_fails_with_the_network(board: Folders, tmp_path: Path) -> None:
    card = board.card("tiny-fa")
    assert card is not None
    entry = baseline(board) / "tiny-fa.json"
    assert not check(board.network(card, "digits"), entry, attacks="fgsm").regressions
    worse = damaged(board, tmp_path / "worse")
    broken = worse.card("tiny-fa")
    assert broken is not None
    with pytest.raises(pytest.fail.Exception, match="tiny-fa: worst case"):
        check(worse.network(broken, "digits"), entry, attacks="fgsm")
    with pytest.raises(UserError, match="expected an entry's file for a module without an id"):
        check(worse.network(broken, "digits"), baseline(board))


@pytest.mark.slow
def test_a_repository_needs_nothing_but_the_fixture(board: Folders, trained_card: Path, tmp_path: Path) -> None:
    arguments = f"{str(trained_card)!r}, {str(baseline(board))!r}, attacks='fgsm', n_examples=20"
    (tmp_path / "test_mine.py").write_text(
        "def test_it(biorobust_regression):\n"
        f"    found = biorobust_regression({arguments})\n"
        "    assert len(found.changes) == 2\n"
    )
    known = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    command = [sys.executable, "-m", "pytest", "-q", *([] if known else ["-p", PLUGIN]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)  # noqa: S603
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_reports_of_no_regression_say_so(two: tuple[Path, Path]) -> None:
    found = between(*two, models="same")
    assert regress_report.summary(found) == "no regression in 1 networks"
