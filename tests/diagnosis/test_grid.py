import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import outcomes, result

from robustbench_bio.cli import app as cli
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.diagnosis.assess import Assessment, ranked
from robustbench_bio.diagnosis.grid import GridResult, run_grid, shared_meter
from robustbench_bio.evaluation import measure, runner
from robustbench_bio.evaluation.judge import judge
from robustbench_bio.evaluation.plan import Measurement, Plan, Settings, Slice, Subject
from robustbench_bio.evaluation.planning import (
    PresetPlan,
    models_like,
    preset_measurements,
    preset_plan,
)
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.gradient import EXACT, RULE
from robustbench_bio.records.preset import AttackPreset
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat
from robustbench_bio.report import grid as grid_report
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo import loading as zoo
from robustbench_bio.zoo.loading import DataSource

TINY = """
name = "tiny"
title = "Tiny"
n_examples = 12

[[attacks]]
attack = "pgd"
eps = ["8/255", "16/255"]
params = { steps = 2 }

[[attacks]]
attack = "noise"
norm = "l2"
eps = ["0.5"]
gradients = ["exact"]
"""
HEADLINE = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def cards(trained_card: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two cards with weights, one of a network with rules and one without, and a card that was never trained."""
    folder = tmp_path_factory.mktemp("cards")
    shutil.copytree(trained_card.parent, folder, dirs_exist_ok=True)
    text = trained_card.read_text()
    written = {"tiny-fa": text}
    written["tiny-bp"] = text.replace('id = "tiny-fa"', 'id = "tiny-bp"').replace('rule = "fa"', 'rule = "bp"')
    written["tiny-new"] = 'id = "tiny-new"\ntitle = "x"\n[net]\nname = "mlp"\n[datasets.digits.recipe]\nepochs = 1\n'
    paths = {name: folder / f"{name}.toml" for name in written}
    for name, content in written.items():
        paths[name].write_text(content)
    bp = catalog.card(str(paths["tiny-bp"]))
    net = zoo.load_model(str(paths["tiny-fa"]))
    plain = zoo.network(bp, bp.datasets["digits"], zoo.open_dataset("digits"))
    own = net.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    zoo.save_trained(bp, "digits", bp.datasets["digits"], plain, folder, folder)
    return paths


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def run_grid_of(
    preset: str,
    models: str,
    *,
    out: Path | None = None,
    n_examples: int | None = None,
    progress: Progress = silent,
    heard: list[str] | None = None,
) -> GridResult:
    """Run a grid as the command does."""
    settings = Settings()
    planned = preset_plan(catalog.preset(preset), models, DataSource(), n_examples=n_examples, settings=settings)
    if heard is not None:
        heard += [f"{label} is skipped: {reason}" for label, reason in planned.skipped.items()]
    return run_grid(planned, None if out is None else Store(out), progress)


def both(cards: dict[str, Path]) -> str:
    return f"{cards['tiny-fa']},{cards['tiny-bp']}"


def outcome(stands: list[int], *, eps: float = 0.1, gradient: str = "exact", clean: list[int] | None = None) -> Result:
    """Return a result of one model; 1 in `clean` and `stands`: classified correctly clean, and attacked too."""
    n = len(stands)
    clean = clean or [1] * n
    found = result(eps=eps, gradient=gradient)
    rows = outcomes(
        id=list(range(n)), label=[1] * n, clean_prediction=clean, adversarial_prediction=stands,
        distance=[0.0] * n, queries=[1] * n, steps=[1] * n,
    )  # fmt: skip
    spec = found.spec.model_copy(update={"n": n})
    return found.model_copy(update={"outcomes_record": rows, "spec": spec})


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        AttackPreset.from_toml(text, "mine.toml")
    message = str(caught.value)
    assert message.startswith("mine.toml: ")
    assert "\n" not in message
    assert message.count(", got ") <= 1
    return message.removeprefix("mine.toml: ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[[attacks]]", "[[cells]]", "field 'document': expected [[attacks]], got [[cells]], as it was called before"),
        ('name = "tiny"', 'name = "Tiny!"', "field 'name': expected lower-case letters"),
        ('title = "Tiny"', 'titel = "Tiny"', "field 'title': expected a value, got none: add this field (and 1 more)"),
        ("n_examples = 12", "n_examples = 0", "field 'n_examples': "),
        ('attack = "noise"', 'atack = "noise"', "field 'attacks.1.attack': expected a value"),
        ('attack = "noise"', 'attack = "noise"\nnrm = 1', "field 'attacks.1.nrm': unknown field 'nrm': did you mean "),
        ('norm = "l2"', 'norm = "l3"', "field 'attacks.1.norm': Input should be 'linf', 'l2', 'l1' or 'l0', got 'l3'"),
        ('["8/255", "16/255"]', '"8/255"', "field 'attacks.0.eps': Input should be a valid list, got '8/255'"),
        ('["8/255", "16/255"]', "[]", "field 'attacks.0.eps': List should have at least 1 item"),
        ('["8/255", "16/255"]', "[0.03]", "field 'attacks.0.eps.0': Input should be a valid string, got 0.03"),
        ('["8/255", "16/255"]', '["8"]', "field 'attacks.0.eps': expected eps in (0, 1], got 8: eps is in input units"),
        ('["8/255", "16/255"]', '["8/255", "x"]', "field 'attacks.0.eps': expected eps as a number or a fraction"),
        ('["8/255", "16/255"]', '["1/2", "0.5"]', "field 'attacks.0.eps': expected each radius once"),
        ('["exact"]', '["exakt"]', "field 'attacks.1.gradients.0': expected a gradient such as exact, rule"),
        ('["exact"]', '["exact", "exact"]', "field 'attacks.1.gradients': expected each gradient once"),
        ('["exact"]', "[]", "field 'attacks.1.gradients': List should have at least 1 item"),
        ("steps = 2", "steps = [2]", "field 'attacks.0.params.steps': expected "),
        ('norm = "l2"\neps = ["0.5"]', 'norm = "l0"\neps = ["0.5"]', "field 'attacks.1.eps': expected eps as a whole"),
        ('norm = "l2"', 'norm = "l0"\neps_unit = "normalised"', "field 'attacks.1': expected eps_unit input for l0"),
        ("n_examples = 12", 'rank_by = { eps = "4/255" }', "field 'document': expected rank_by to name a radius"),
        ("n_examples = 12", 'rank_by = { eps = "4" }', "field 'rank_by': expected eps in (0, 1], got 4"),
        ("params = { steps = 2 }", 'gradients = ["rule"]', "field 'document': expected rank_by to name a radius"),
        ('attack = "noise"\nnorm = "l2"\neps = ["0.5"]', 'attack = "pgd"\neps = ["8/255"]\nparams = { steps = 2 }',
         "field 'document': expected each measurement once, got pgd linf 0.0313725 exact twice"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_preset_is_one_line(old: str, new: str, expected: str) -> None:
    assert old in TINY
    assert refusal(TINY.replace(old, new)).startswith(expected)


def test_a_preset_is_read_as_it_was_written() -> None:
    preset = AttackPreset.from_toml(TINY, "mine.toml")
    assert AttackPreset.from_toml(preset.to_toml(), "again") == preset
    assert preset.headline() == Threat("linf", 8 / 255)


@pytest.mark.parametrize("name", catalog.preset_names())
def test_every_preset_of_the_catalog_fits_the_attacks(name: str) -> None:
    preset = catalog.preset(name)
    measurements = preset_measurements(preset, 0.25)
    assert {one.attack for one in measurements} == {one.attack for one in preset.attacks}
    assert preset.title
    assert preset.summary


def test_the_catalog_has_the_four_presets() -> None:
    assert {"quick", "standard", "bionas-paper", "eps-curve"} <= set(catalog.preset_names())
    with pytest.raises(UserError, match="unknown preset 'quik': did you mean quick"):
        catalog.preset("quik")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('attack = "noise"', 'attack = "nose"', "preset tiny: unknown attack 'nose': did you mean noise"),
        ("steps = 2", "stps = 2", "preset tiny: unknown parameter of pgd 'stps': did you mean steps"),
        ("steps = 2", "steps = 2.5", "preset tiny: expected steps of pgd to be int, got 2.5"),
        ("steps = 2", 'step_size = "2/255"', "preset tiny: expected step_size of pgd to be float"),
        ('attack = "noise"', 'attack = "transfer"', "preset tiny: expected a value for source of transfer, got none"),
        ('norm = "l2"', 'norm = "l1"', "preset tiny: attack noise serves l2, linf, got norm 'l1'"),
        ('eps = ["8/255", "16/255"]', 'eps = ["8/255"]\neps_unit = "normalised"', "field 'document': expected rank_by"),
    ],
)
def test_a_preset_that_does_not_fit_the_attacks_is_refused_before_any_work(
    old: str,
    new: str,
    expected: str,
    tiny: Path,
    cards: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def untouched(*_: Any, **__: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(runner, "measure", untouched)
    tiny.write_text(TINY.replace(old, new))
    with pytest.raises(UserError) as caught:
        run_grid_of(str(tiny), both(cards), out=tmp_path / "out")
    assert str(caught.value).removeprefix(f"{tiny}: ").startswith(expected)
    assert not (tmp_path / "out").exists()


def test_normalised_radii_and_lengths_shrink_by_the_deviation_of_the_data() -> None:
    text = TINY + '\n[[attacks]]\nattack = "tpgd"\neps = ["0.4"]\neps_unit = "normalised"\ngradients = ["exact"]\n'
    preset = AttackPreset.from_toml(text + "params = { steps = 7, step_size = 0.1, start_sigma = 0.01 }\n", "mine")
    cell = preset_measurements(preset, 0.25)[-1]
    assert (cell.threat.eps, cell.written) == (0.1, "0.4 σ")
    assert cell.params == {"steps": 7, "step_size": 0.025, "start_sigma": 0.0025}
    wide = AttackPreset.from_toml(text.replace('"0.4"', '"5"'), "mine")
    with pytest.raises(UserError, match=r"expected eps in \(0, 1\], got 1.25"):
        preset_measurements(wide, 0.25)


def test_rows_are_ranked_by_the_worst_case_and_not_by_any_single_attack() -> None:
    lucky = Assessment("lucky", (outcome([1, 1, 0, 0]), outcome([0, 0, 1, 1], gradient="rule")))
    steady = Assessment("steady", (outcome([1, 0, 0, 0]), outcome([1, 0, 0, 0], gradient="rule")))
    assert lucky.worst_case(HEADLINE) == 0.0
    assert steady.worst_case(HEADLINE) == 0.25
    assert [(row.rank, row.model) for row in ranked([lucky, steady], HEADLINE)] == [(1, "steady"), (2, "lucky")]


def test_the_worst_case_of_a_network_without_rules_is_over_what_was_measured() -> None:
    row = Assessment("bp", (None, outcome([1, 1, 0, 1]), outcome([0, 0, 0, 0], eps=0.2)))
    assert row.worst_case(HEADLINE) == 0.75
    assert row.worst_case(Threat("linf", 0.2)) == 0.0


def test_equal_rows_share_a_rank_and_stand_by_clean_accuracy_then_name() -> None:
    half = outcome([1, 1, 0, 0])
    worse_clean = outcome([1, 1, 0, 0], clean=[1, 1, 0, 1])
    known = {"d": outcome([0, 0, 0, 0]), "c": half, "b": half, "a": worse_clean, "e": outcome([1, 1, 1, 0])}
    rows = [Assessment(name, (one,)) for name, one in known.items()]
    found = [(row.rank, row.model) for row in ranked(rows, HEADLINE)]
    assert found == [(1, "e"), (2, "b"), (2, "c"), (2, "a"), (5, "d")]


def test_a_shared_meter_shows_a_broken_network_as_half_robust() -> None:
    assert shared_meter(outcome([0, 0, 0, 0])) == 0.5
    assert shared_meter(outcome([1, 0, 0, 0], clean=[1, 1, 0, 0])) == 0.375


def test_models_are_found_by_id_pattern_and_path_each_once(tmp_path: Path) -> None:
    others = [m for m in catalog.model_ids() if m.startswith("bp-") and m != "bp-darts"]
    assert others
    assert models_like("bp-darts, bp-*", catalog.model_ids()) == ["bp-darts", *others]
    assert models_like("*", catalog.model_ids()) == catalog.model_ids()
    (tmp_path / "b.toml").touch()
    (tmp_path / "a.toml").touch()
    assert models_like(f"{tmp_path}/*.toml", catalog.model_ids()) == [f"{tmp_path}/a.toml", f"{tmp_path}/b.toml"]
    with pytest.raises(UserError, match=r"unknown model 'bionass-\*': did you mean bionas-darts"):
        models_like("bp-*,bionass-*", catalog.model_ids())
    with pytest.raises(UserError, match="unknown model ''"):
        models_like("bp-*,", catalog.model_ids())


def test_models_without_weights_are_named_and_left_out(tiny: Path, cards: dict[str, Path], tmp_path: Path) -> None:
    heard: list[str] = []
    models = f"{cards['tiny-new']},{cards['tiny-fa']}"
    found = run_grid_of(str(tiny), models, out=tmp_path / "out", n_examples=4, heard=heard)
    assert heard == ["tiny-new is skipped: no weights for digits"]
    assert found.skipped == {"tiny-new": "no weights for digits"}
    assert [row.model for row in found.networks] == ["tiny-fa"]
    with pytest.raises(UserError, match="expected a model with weights for digits, got tiny-new without"):
        run_grid_of(str(tiny), str(cards["tiny-new"]), heard=heard)
    assert len(heard) == 1


def test_two_models_of_one_name_are_refused(cards: dict[str, Path], trained_card: Path) -> None:
    with pytest.raises(UserError, match="expected models of different names, got 'tiny-fa' twice"):
        run_grid_of("quick", f"{cards['tiny-fa']},{trained_card}")


def test_a_grid_measures_each_cell_that_applies_and_counts_every_example(
    tiny: Path, cards: dict[str, Path], tmp_path: Path, global_rng_untouched: None
) -> None:
    steps: list[tuple[int, int, str]] = []
    found = run_grid_of(str(tiny), both(cards), out=tmp_path, progress=lambda *step: steps.append(step))
    assert [(c.attack, c.threat.eps, str(c.gradient)) for c in found.measurements] == [
        ("pgd", 8 / 255, "rule"), ("pgd", 8 / 255, "exact"), ("pgd", 16 / 255, "rule"), ("pgd", 16 / 255, "exact"),
        ("noise", 0.5, "exact"),
    ]  # fmt: skip
    measured = {row.model: [result is not None for result in row.results] for row in found.networks}
    assert measured == {"tiny-fa": [True] * 5, "tiny-bp": [False, True, False, True, True]}
    for row in found.networks:
        for cell, one in zip(found.measurements, row.results, strict=True):
            if one is not None:
                assert (one.n, one.spec.attack, one.spec.threat) == (12, cell.attack, cell.threat)
                assert (one.spec.gradient, one.spec.model) == (cell.gradient, row.model)
    by_name = {row.model: row for row in found.networks}
    exact = [[r.robust_accuracy for r in by_name[m].measured if r.spec.gradient == EXACT] for m in by_name]
    assert exact[0] == exact[1], "both networks have the same weights"
    assert steps[0] == (0, 96, steps[0][2])
    assert steps[-1][:2] == (96, 96)
    assert [done for done, *_ in steps] == sorted(done for done, *_ in steps)
    lines = [line for *_, line in steps]
    assert lines[0] == "tiny-fa: probe: too few examples"
    assert "tiny-fa: pgd linf 8/255, rule gradient" in lines
    assert all(row.diagnosis is not None and row.diagnosis.verdict == "inconclusive" for row in found.networks)


def test_a_killed_grid_goes_on_where_it_stopped(
    tiny: Path, cards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(done: int, total: int, line: str) -> None:
        if done >= 3 * 12:
            raise Killed

    judged = 0

    def counted(*arguments: Any) -> Any:
        nonlocal judged
        judged += 1
        return judge(*arguments)

    monkeypatch.setattr(measure, "judge", counted)

    def run(out: Path, progress: Progress = silent) -> tuple[tuple[Assessment, ...], int]:
        nonlocal judged
        judged = 0
        try:
            return run_grid_of(str(tiny), both(cards), out=out, progress=progress).networks, judged
        except Killed:
            return (), judged

    whole, all_of_them = run(tmp_path / "whole")
    _, before = run(tmp_path / "killed", kill)
    resumed, after = run(tmp_path / "killed")
    again, none = run(tmp_path / "killed")
    assert (all_of_them, before, after, none) == (8, 3, 5, 0)
    # The batch of the third was kept, but it was not yet a result.
    kept = {row.model: [result.from_store for result in row.measured] for row in resumed}
    assert kept == {"tiny-fa": [True] * 2 + [False] * 3, "tiny-bp": [False] * 3}
    assert all(result.from_store for row in again for result in row.measured)
    for rows in (resumed, again):
        for row, expected in zip(rows, whole, strict=True):
            assert (row.rank, row.model) == (expected.rank, expected.model)
            assert [r.outcomes_record for r in row.measured] == [r.outcomes_record for r in expected.measured]


def synthetic() -> GridResult:
    """Return a grid with known outcomes: "a" loses a quarter to the exact gradient that the rule hides."""
    text = 'name = "known"\ntitle = "Known"\nrobust_meter = "shared"\n'
    text += '[[attacks]]\nattack = "pgd"\neps = ["0.1", "0.2"]\n'
    preset = AttackPreset.from_toml(text, "known")
    a = [
        outcome([1, 1, 1, 0], gradient="rule"), outcome([1, 1, 0, 0]),
        outcome([1, 0, 0, 0], eps=0.2, gradient="rule"), outcome([0, 0, 0, 0], eps=0.2),
    ]  # fmt: skip
    b = [None, outcome([0, 1, 1, 1]), None, outcome([0, 0, 0, 1], eps=0.2)]
    rows = ranked([Assessment("a", tuple(a)), Assessment("b", tuple(b))], HEADLINE)
    return GridResult(**vars(asked(preset, 4, {"c": "no weights for digits"})), networks=rows)


def asked(preset: AttackPreset, n: int, skipped: dict[str, str]) -> PresetPlan:
    """Return the plan of a preset on n examples, without networks."""
    examples = Slice(torch.zeros(n, 1, 8, 8), torch.zeros(n, dtype=torch.int64), tuple(range(n)), "digits")
    return PresetPlan(preset, Plan(examples, (), preset_measurements(preset, 0.25)), 0.25, skipped)


def test_the_document_holds_the_known_numbers() -> None:
    found = grid_report.document(synthetic(), [Path("x")])
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["preset", "dataset", "n", "rank_by", "models", "skipped", "files"]
    assert (found["preset"], found["rank_by"], found["files"]) == ("known", {"norm": "linf", "eps": 0.1}, ["x"])
    b, a = found["models"]
    assert [(m["rank"], m["model"], m["clean_accuracy"]) for m in (b, a)] == [(1, "b", 1.0), (2, "a", 1.0)]
    assert (b["worst_case"]["robust_accuracy"], a["worst_case"]["robust_accuracy"]) == (0.75, 0.5)
    assert a["worst_case"]["ci95"] == pytest.approx([0.1500, 0.8500], abs=1e-4)
    assert [threat["robust_accuracy"] for threat in a["by_threat"]] == [0.5, 0.0]
    assert (b["gap"], a["gap"]) == (None, 0.25)
    assert [r["gradient"] for r in b["results"]] == ["exact", "exact"]
    assert [r["shared_meter"] for r in a["results"]] == [0.875, 0.75, 0.625, 0.5]


def test_the_files_hold_the_known_numbers(tmp_path: Path) -> None:
    paths = grid_report.write(synthetic(), tmp_path / "new")
    assert [path.name for path in paths] == ["results.csv", "table.md", "eps-curve.png", "eps-curve.svg"]
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], r["eps_written"], r["gradient"], r["robust_accuracy"]) for r in rows] == [
        ("b", "0.1", "exact", "0.75"), ("b", "0.2", "exact", "0.25"),
        ("a", "0.1", "rule", "0.75"), ("a", "0.1", "exact", "0.5"),
        ("a", "0.2", "rule", "0.25"), ("a", "0.2", "exact", "0.0"),
    ]  # fmt: skip
    lines = paths[1].read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {table[0].count("|")}
    heads = ["#", "model", "gradient", "clean %", "pgd linf 0.1", "pgd linf 0.2", "worst case %, linf 25.5/255"]
    assert table[0] == f"| {' | '.join([*heads, 'number', 'usual way'])} |"
    assert table[2].startswith("| 1 | b | exact | 100.0 | 75.0 | 25.0 | 75.0 [")
    assert "|  |  | exact, shared | 100.0 | 75.0 | 50.0 |  |  |  |" in table
    assert "- skipped: c: no weights for digits" in lines


def test_the_plot_draws_both_gradients_from_the_clean_accuracy_down(tmp_path: Path) -> None:
    from robustbench_bio.report.curves import curve_places, plot

    known = synthetic()
    figure = plot(known, "linf", curve_places(known)["linf"])
    panels = {panel.get_title(): panel for panel in figure.axes}
    drawn = {
        name: {line.get_linestyle(): line.get_xydata().tolist() for line in panel.get_lines()}
        for name, panel in panels.items()
    }
    assert set(drawn["b"]) == {"-"}
    assert drawn["a"]["-"] == [[0, 100], [pytest.approx(25.5), 50], [pytest.approx(51), 0]]
    assert drawn["a"]["--"] == [[0, 100], [pytest.approx(25.5), 75], [pytest.approx(51), 25]]
    assert len(panels["a"].collections) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pgd, exact gradient", "pgd, rule gradient"]
    grid_report.write(known, tmp_path)
    assert (tmp_path / "eps-curve.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "eps-curve.svg").read_text()
    assert "<svg" in svg
    assert svg.count("stroke-dasharray") > 0


def test_cells_that_differ_in_parameters_are_told_apart(tmp_path: Path) -> None:
    text = 'name = "x"\ntitle = "x"\n' + "".join(
        f'[[attacks]]\nattack = "pgd"\neps = ["0.1"]\ngradients = ["exact"]\nparams = {{ steps = {steps} }}\n'
        for steps in (2, 3)
    )
    preset = AttackPreset.from_toml(text, "x")
    row = Assessment("a", (outcome([1, 0]), outcome([1, 1])))
    known = GridResult(**vars(asked(preset, 2, {})), networks=ranked([row], HEADLINE))
    paths = grid_report.write(known, tmp_path)
    assert [path.name for path in paths] == ["results.csv", "table.md"]
    assert "| pgd linf 0.1 steps=2 | pgd linf 0.1 steps=3 |" in paths[1].read_text()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["biorobust", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_the_quick_grid_from_the_command_line(
    cards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = f"{both(cards)},{cards['tiny-new']}"
    arguments = ["grid", "quick", "--models", models, "--n-examples", "10", "--out", tmp_path]
    assert command(monkeypatch, *arguments, "--json") == 0
    said = capsys.readouterr()
    assert said.err == "tiny-new is skipped: no weights for digits\n"
    assert said.out.count("\n") == 1
    found = json.loads(said.out)
    assert (found["preset"], found["dataset"], found["n"]) == ("quick", "digits", 10)
    assert {m["model"]: len(m["results"]) for m in found["models"]} == {"tiny-fa": 5, "tiny-bp": 3}
    for model in found["models"]:
        worst = model["worst_case"]["robust_accuracy"]
        assert worst <= min(row["robust_accuracy"] for row in model["results"]) <= model["clean_accuracy"]
    folder = tmp_path / "grid-quick"
    assert found["files"] == [str(folder / "results.csv"), str(folder / "table.md")]
    assert all(Path(path).stat().st_size > 100 for path in found["files"])
    assert command(monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80 + len(str(folder))
    for word in ("A first look: digits (test, n = 10)", "worst case at linf 8/255", "square", "tiny-bp", "results.csv"):
        assert word in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["quik", "--models", "bp-darts"], "unknown preset 'quik': did you mean quick"),
        (["quick"], "Missing option '--models'"),
        (["quick", "--models", "zzz*"], "unknown model 'zzz*': choose from "),
        (["quick", "--models", "none.toml"], "cannot read none.toml: "),
        (["quick", "--models", "bp-darts", "--dataset", "digitz"], "expected a model with weights for digitz"),
        (["quick", "--models", "bp-darts", "--device", "tpu"], "expected a device that is here"),
        (["quick", "--models", "TINY", "--n-examples", "0"], "expected n_examples >= 1, got 0"),
        (["quick", "--models", "TINY", "--out", "FILE"], "cannot write "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_grid_is_one_line(
    arguments: list[str], expected: str, cards: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    stand_ins = {"TINY": str(cards["tiny-fa"]), "FILE": str(tmp_path / "file")}
    assert command(monkeypatch, "grid", *(stand_ins.get(a, a) for a in arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {expected}")
    assert said.err.count("\n") == 1


def test_cells_that_differ_only_in_the_gradient_are_one_column() -> None:
    rule, exact = (Measurement("pgd", HEADLINE, gradient, {"steps": 2}) for gradient in (RULE, EXACT))
    assert rule.but_for_gradient() == exact.but_for_gradient()
    assert rule.but_for_gradient() != Measurement("pgd", HEADLINE, RULE, {"steps": 3}).but_for_gradient()


def test_a_network_with_thresholds_is_put_to_surrogates_instead_of_the_exact_gradient() -> None:
    standard = preset_measurements(catalog.preset("standard"), 0.3)
    asked_of = {}
    for name in ("stdp-spiking-cnn", "bp-resnet20"):
        subject = Subject(name, zoo.load_model(name))
        plan = Plan(Slice.load(DataSource(), 2), (subject,), standard).with_surrogates()
        asked_of[name] = [(one.attack, str(one.gradient)) for one in plan.applicable(subject)]
    assert asked_of["bp-resnet20"] == [("autoattack", "exact"), ("square", "exact"), ("one-pixel", "exact")]
    assert asked_of["stdp-spiking-cnn"] == [
        ("autoattack", "surrogate:triangle"), ("autoattack", "surrogate:arctan"), ("square", "exact"),
        ("coordinate", "surrogate:arctan"), ("one-pixel", "exact"),
    ]  # fmt: skip
