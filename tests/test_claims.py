"""The page about published claims follows from results: planted outcomes give the words that they must."""

import ast
import dataclasses
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from robustbench_bio.core.errors import UserError
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.card import ModelCard
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import DataSource

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

#: Rules of the family `darts`, and of how many of 40 images each network is right.
ORDERED = {"bp": 40, "usf": 32, "brsf": 22, "frsf": 21, "fa": 11, "dfa": 2}


class House(NamedTuple):
    """The modules under test."""

    records: Any
    judging: Any
    rows: Any
    document: Any
    figure: Any
    study: Any

    @property
    def published(self) -> Any:
        return self.records.Published.load()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """Import the parts of the benchmark as it does."""
    import importlib

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    modules: list[ModuleType] = [importlib.import_module(f"evidence.{name}") for name in House._fields]
    yield House(*modules)
    for name in [name for name in sys.modules if name.partition(".")[0] == "evidence"]:
        del sys.modules[name]


class Planted(NamedTuple):
    """Of how many images a network is right: clean, and under any attack through each gradient."""

    clean: int
    rule: int = 0
    exact: int = 0


def outcomes(right: int, n: int) -> list[bool]:
    return [place < right for place in range(n)]


def evidence(house: House, n: int, /, noise: dict[str, Sequence[float]] | None = None, **planted: Planted) -> Any:
    """Return evidence on networks, "bp_darts" for bp-darts, in which every measurement is as planted."""
    preset = catalog.preset(house.published.preset)
    networks: dict[str, dict[int, dict[Any, Any]]] = {}
    for name, one in planted.items():
        seen = {
            ask: house.records.Seen(outcomes(one.clean, n), outcomes(getattr(one, ask.gradient), n))
            for ask in house.study.asked(house.published, preset, 0.25)
            if house.study._applies(ask, has_rules=not name.startswith("bp"))
        }
        networks[name.replace("_", "-")] = {0: seen}
    draws = {model: {0: [house.records.Noise(v, v / 2) for v in values]} for model, values in (noise or {}).items()}
    return house.records.Evidence(
        "planted", n, 10, house.study.released_radii(preset), networks, draws, measured="2001-02-03"
    )


def verdict(house: House, seen: Any, claim: str, family: str = "darts") -> str:
    rows = [*house.rows.claim_rows(house.published, seen), *house.rows.robust_rows(house.published, seen)]
    (word,) = {row.verdict for row in rows if row.claim.id == claim and row.family.id == family}
    return str(word)


def page(house: House, seen: Any) -> str:
    return str(house.document.document(house.published, seen, "the command", "curve"))


def darts(accuracies: dict[str, int]) -> dict[str, Planted]:
    return {f"{rule}_darts": Planted(right) for rule, right in accuracies.items()}


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({}, "holds"),
        ({"usf": 39}, "not shown"),  # one image less than bp
        ({"usf": 8}, "does not hold"),  # fewer than brsf and frsf
        ({"dfa": None}, "not shown"),  # nobody knows what dfa would do
        ({"dfa": None, "usf": 8}, "does not hold"),
        ({"brsf": None, "frsf": None, "usf": 2}, "does not hold"),  # fewer than fa, the next that is known
    ],
)
def test_the_order_of_the_rules_is_judged_pair_by_pair(house: House, changed: dict[str, Any], word: str) -> None:
    accuracies = {rule: right for rule, right in (ORDERED | changed).items() if right is not None}
    assert verdict(house, evidence(house, 40, **darts(accuracies)), "order") == word


@pytest.mark.parametrize(("mixed", "word"), [(40, "holds"), (33, "not shown"), (10, "does not hold")])
def test_mixed_rules_have_to_beat_every_single_one(house: House, mixed: int, word: str) -> None:
    assert verdict(house, evidence(house, 40, **darts(ORDERED | {"bionas": mixed})), "mixed") == word


@pytest.mark.parametrize(
    ("n", "random", "word"), [(200, 150, "holds"), (40, 30, "not shown"), (200, 100, "does not hold")]
)
def test_as_good_asks_for_an_interval_that_leaves_out_a_loss(house: House, n: int, random: int, word: str) -> None:
    seen = evidence(house, n, bionas_darts=Planted(3 * n // 4), random_darts=Planted(random))
    assert verdict(house, seen, "random") == word


@pytest.mark.parametrize(("mixed", "word"), [(4.0, "holds"), (5.0, "not shown"), (6.0, "does not hold")])
def test_less_gradient_noise_is_tested_over_the_draws(house: House, mixed: float, word: str) -> None:
    noise = {f"{rule}-darts": [4.9, 5.1, 5.0] for rule in ("usf", "brsf", "frsf", "fa", "dfa")}
    noise["bionas-darts"] = [mixed, mixed + 0.05, mixed - 0.05]
    assert verdict(house, evidence(house, 8, noise), "variance") == word


@pytest.mark.parametrize("claim", ["fgsm", "pgd", "apgd", "one-pixel"])
@pytest.mark.parametrize(
    ("left", "bp", "word"),
    [
        (30, 5, "holds"),
        (30, 28, "not shown"),  # as robust as bp
        (0, 0, "does not hold"),  # less than chance
        (20, 38, "does not hold"),  # less than bp
    ],
)
def test_robust_asks_for_more_than_chance_and_than_bp(house: House, claim: str, left: int, bp: int, word: str) -> None:
    seen = evidence(house, 40, bionas_darts=Planted(40, 40, left), bp_darts=Planted(40, 0, bp))
    assert verdict(house, seen, claim) == word


def test_what_holds_through_the_rule_alone_does_not_hold(house: House) -> None:
    seen = evidence(house, 40, bionas_darts=Planted(40, 36, 0), bp_darts=Planted(40, 0, 0))
    text = page(house, seen)
    (row,) = re.findall(r"^\| Robust to APGD \| 8/255 \|.*$", text, re.MULTILINE)
    shown = [cell.strip() for cell in row.strip("|").split("|")]
    assert shown[2].startswith("90.0 [")
    assert shown[3].startswith("0.0 [0.0, ")
    assert shown[5].startswith("+90.0 [")
    assert shown[6] == "95.0"  # the mean of 100 % clean and 90 % through the rule
    assert shown[7:] == ["1 × 40", "holds", "**does not hold**"]
    assert "Of 6 measured rows about attacks by gradient, 6 would hold" in text
    assert "and 0 hold through the exact one" in text


def test_a_network_that_was_not_trained_is_asked_for_and_has_no_number(house: House) -> None:
    seen = evidence(house, 40, bp_resnet20=Planted(36, 0, 3), usf_resnet20=Planted(35, 9, 3))
    text = page(house, seen)
    for title, ids in (
        ("Robust to PGD", "`bionas-darts`, `bp-darts`"),
        ("A random assignment does as well", "`bionas-darts`, `random-darts`"),
    ):
        (row,) = re.findall(rf"^\| {title} \|.*\|$", text, re.MULTILINE)
        assert f"not measured yet: needs {ids} |" in row
    assert "`random-resnet20` against `bp-resnet20`: not measured yet: needs `random-resnet20`." in text
    assert verdict(house, seen, "pgd", "resnet20") == "not measured"
    assert "nan" not in text


def numbers(text: str) -> set[str]:
    """Return the numbers of a text without sign, as they are written."""
    return set(re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", text))


def values(thing: object) -> Iterator[float]:
    """Yield every number in a row, however deep it lies."""
    if isinstance(thing, int | float):
        yield float(thing)
    elif dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            yield from values(getattr(thing, field.name))
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from values(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from values(value)


def published_numbers(house: House) -> set[str]:
    """Return the numbers that the claims, the radii, the names and the tests bring along."""
    source = (BENCHMARKS / "evidence" / "claims.toml").read_text(encoding="utf-8")
    radii = " ".join([*house.records.RADII, *house.study.released_radii(catalog.preset("bionas-paper")).values()])
    tests = f"{100 * house.judging.CONFIDENCE:g} {house.judging.ALPHA:.2g} {house.judging.SEEDS} {house.records.STEPS}"
    return numbers(f"{source} {radii} {tests} 2") | {"2"}  # "2": the margin, in the page without its decimal


def test_no_number_of_the_page_is_typed_by_hand(house: House) -> None:
    assert not numbers(house.document.TEMPLATE.read_text(encoding="utf-8"))
    for module in (house.document, house.rows):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        specs = {id(part) for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and node.format_spec
                 for part in ast.walk(node.format_spec)}  # fmt: skip
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in specs]
        typed = {text for text in texts if isinstance(text, str) and numbers(text)} - {"utf-8"}
        assert not typed, module.__name__


def test_every_number_of_the_page_is_published_or_follows_from_results(house: House) -> None:
    seen = evidence(
        house, 37, {"usf-resnet20": [6.1, 6.3], "random-resnet20": [7.2, 7.9]},
        bp_resnet20=Planted(36, 0, 3), usf_resnet20=Planted(35, 9, 3), random_resnet20=Planted(33, 17, 1),
    )  # fmt: skip
    rows = [*house.rows.claim_rows(house.published, seen), *house.rows.robust_rows(house.published, seen)]
    quirks = [house.rows.quirks(seen, model) for model in seen.networks]
    measured = [abs(value) for row in rows for value in values(row)] + [v for q in quirks for v in values(q)]
    points = [abs(a - b) for column in quirks for one in column for other in column
              for a, b in ((one.alone, other.alone), (one.together, other.together))]  # fmt: skip
    counted = {str(len(rows)), str(seen.n), "0", "1"} | {str(k) for k in range(len(rows))}
    written = {f"{100 * value:.1f}" for value in (*measured, *points, 1 / seen.classes)}
    written |= {f"{value:{form}}" for value in measured for form in (".2f", ".2g")}
    curves = [one.robust.count(True) / seen.n for asks in seen.networks.values() for one in asks[0].values()]
    written |= {f"{100 * value:.1f}" for value in curves}
    tests = sum(len(getattr(row, "compared", ())) + (getattr(row, "bp", None) is not None) for row in rows)
    allowed = published_numbers(house) | counted | written | {str(tests)} | numbers(seen.measured)
    assert not numbers(page(house, seen)) - allowed


def test_without_results_the_page_holds_nothing_but_what_was_published(house: House) -> None:
    seen = evidence(house, 846)
    text = page(house, seen)
    assert not numbers(text) - published_numbers(house) - numbers(seen.measured) - {"846", "10.0", "0"}
    assert "**holds**" not in re.sub(r"^- .*$|^  .*$", "", text, flags=re.MULTILINE)


def test_quirks_add_up_to_what_the_published_way_reports(house: House) -> None:
    seen = evidence(house, 40, random_resnet20=Planted(32, 20, 4))
    alone, together = ([getattr(quirk, side) for quirk in house.rows.quirks(seen, "random-resnet20")]
                       for side in ("alone", "together"))  # fmt: skip
    assert alone == pytest.approx([0.1, 0.5, 0.1, 0.1, 0.45])  # exact: 10 %; rule: 50 %; meter: mean of 80 and 10 %
    assert together == pytest.approx([0.1, 0.5, 0.5, 0.5, 0.65])  # meter: mean of 80 and 50 %
    assert "| one meter for clean and robust | 65.0 (+15.0) |" in page(house, seen)


def test_from_three_seeds_on_seeds_are_what_varies(house: House) -> None:
    judging = house.judging
    a = {seed: outcomes(30 + seed, 40) for seed in range(3)}
    b = {seed: outcomes(20 + seed, 40) for seed in range(3)}
    assert judging.difference(a, b)[:3] == pytest.approx((0.25, 0.25, 0.25))
    assert judging.difference(a, b).seeds == 3
    c = {0: outcomes(20, 40), 1: outcomes(38, 40), 2: outcomes(35, 40)}
    assert not judging.difference(a, c).shown  # though two seeds of three differ a lot
    first = judging.difference({0: a[0]}, {0: b[0]})
    assert (first.mean, first.p, first.seeds) == (0.25, pytest.approx(2 * 0.5**10), 1)  # ten images, all on one side
    alone, three = judging.estimate({0: c[0]}), judging.estimate(c)
    assert three.high - three.low > alone.high - alone.low


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(0, 0, 40), (7, 2, 40), (0, 30, 100)])
def test_a_paired_interval_is_wald_with_half_an_image_more_in_each_cell(
    house: House, only_a: int, only_b: int, n: int
) -> None:
    a, b, total = (only_a + 0.5) / (n + 2), (only_b + 0.5) / (n + 2), n + 2
    half = 1.959964 * math.sqrt((a + b - (a - b) ** 2) / total)
    assert house.judging.paired_interval(only_a, only_b, n) == pytest.approx((a - b - half, a - b + half), abs=1e-6)


def test_the_plot_shows_both_gradients_of_each_network(house: House, tmp_path: Path) -> None:
    seen = evidence(house, 40, bp_darts=Planted(40, 0, 0), bionas_darts=Planted(40, 20, 5))
    house.figure.write_curves(house.published, seen, tmp_path / "curve")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    lines = re.findall(r"<!-- ((?:bp|bionas|usf)-darts, \w+) -->", (tmp_path / "curve.svg").read_text())
    assert sorted(lines) == ["bionas-darts, exact", "bionas-darts, rule", "bp-darts, exact"]


def study(house: House, folder: Path, **options: Any) -> Any:
    return house.study.Study(house.published, DataSource("digits"), Store(folder), fast=True, **options)


def test_only_networks_of_the_claims_with_weights_are_measured(house: House, tmp_path: Path) -> None:
    models = study(house, tmp_path, n=2).models("*")
    assert models[0] == "bp-darts"
    assert {"bionas-darts", "random-darts", "bp-resnet20"} <= set(models)
    # Other cells are another network, not another seed; other kinds of networks are none of the claims'.
    assert not {"bionas-darts-s0", "pc-cnn"} & set(models)
    with pytest.raises(UserError, match="expected networks of the claims with weights for digits"):
        study(house, tmp_path, n=2).models("pc-cnn")


def test_a_network_that_was_trained_otherwise_than_the_one_under_bp_is_left_out(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = catalog.card

    def longer(model: str, *args: Any) -> ModelCard:
        one = card(model, *args)
        if model != "usf-resnet20":
            return one
        digits = one.datasets["digits"]
        recipe = digits.recipe.model_copy(update={"epochs": digits.recipe.epochs + 1})
        return one.model_copy(update={"datasets": {"digits": digits.model_copy(update={"recipe": recipe})}})

    monkeypatch.setattr(catalog, "card", longer)
    models = study(house, tmp_path, n=2).models("*-resnet20")
    assert "usf-resnet20" not in models
    assert {"bp-resnet20", "random-resnet20"} <= set(models)


@pytest.mark.slow
def test_a_second_run_reads_what_the_first_measured(house: House, tmp_path: Path) -> None:
    first = study(house, tmp_path, n=2, draws=2).run(["usf-resnet20"])
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    second = study(house, tmp_path, n=2, draws=2).run(["usf-resnet20"])
    assert page(house, second) == page(house, first)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == files
    assert house.rows.quirks(first, "usf-resnet20")  # all that it needs was asked
