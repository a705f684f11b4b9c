"""What a grid shows: table, JSON document and files."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from robustbench_bio.core.files import csv_text, write_atomically
from robustbench_bio.diagnosis.assess import Assessment
from robustbench_bio.diagnosis.grid import GridResult, shared_meter
from robustbench_bio.evaluation.plan import Measurement
from robustbench_bio.records.diagnosis import NO_CLASSIFIER
from robustbench_bio.records.gradient import EXACT, OWN, RULE, Gradient
from robustbench_bio.records.result import Result
from robustbench_bio.report.curves import curve_places, plot
from robustbench_bio.report.figures import write_figure
from robustbench_bio.report.tables import (
    ANSWERS,
    NONE,
    compact_table,
    markdown_row,
    percent,
    result_document,
    verdict_document,
    with_interval,
    worst_case_document,
)

#: Attacks side by side, so that a table fits 80 characters.
ATTACKS_BESIDE = 4


@dataclass(frozen=True)
class _Attack:
    """An attack at one radius: measurements that differ in nothing but the gradient."""

    head: tuple[str, ...]
    places: dict[Gradient, int]

    def result(self, network: Assessment, gradient: Gradient) -> Result | None:
        place = self.places.get(gradient)
        return None if place is None else network.results[place]


def _attacks(grid: GridResult) -> list[_Attack]:
    places: dict[tuple[object, ...], dict[Gradient, int]] = {}
    for place, measurement in enumerate(grid.measurements):
        places.setdefault(measurement.but_for_gradient(), {})[measurement.gradient] = place
    firsts = [grid.measurements[min(of_attack.values())] for of_attack in places.values()]
    heads = [(first.attack, first.threat.norm, _radius(first)) for first in firsts]
    return [
        _Attack((*head, *(first.settings() if heads.count(head) > 1 else ())), of_attack)
        for head, first, of_attack in zip(heads, firsts, places.values(), strict=True)
    ]


def _radius(measurement: Measurement) -> str:
    return f"{measurement.written} px" if measurement.threat.norm == "l0" else measurement.written


def _lines(grid: GridResult, network: Assessment) -> Iterator[tuple[str, list[str]]]:
    """Yield for each gradient that a network was attacked with its name and the robust accuracy under every attack."""
    attacks = _attacks(grid)
    for gradient in dict.fromkeys((RULE, OWN, EXACT, *(measurement.gradient for measurement in grid.measurements))):
        results = [attack.result(network, gradient) for attack in attacks]
        if any(result is not None for result in results):
            yield str(gradient), [NONE if result is None else percent(result.robust_accuracy) for result in results]
            if grid.preset.robust_meter == "shared":
                shared = [NONE if result is None else percent(shared_meter(result)) for result in results]
                yield f"{gradient}, shared", shared


def _worst(grid: GridResult, network: Assessment) -> str:
    robust = network.robust[grid.headline]
    return with_interval(sum(robust), len(robust))


def _answers(network: Assessment) -> list[str]:
    """Return what to think of the number and of the usual way, in a word each."""
    return [NONE, NONE] if network.diagnosis is None else [network.diagnosis.number, network.diagnosis.verdict]


def _gap(grid: GridResult, network: Assessment) -> float | None:
    """Return the largest amount by which an attack through the rule leaves more than through the exact gradient."""
    gaps = []
    for attack in _attacks(grid):
        results = {gradient: attack.result(network, gradient) for gradient in attack.places}
        accuracy = {gradient: result.robust_accuracy for gradient, result in results.items() if result}
        exact = {gradient: gradient.held_against(accuracy) for gradient in accuracy}
        gaps += [accuracy[claimed] - accuracy[true] for claimed, true in exact.items() if true]
    return max(gaps, default=None)


def table(grid: GridResult) -> Group:
    """Return the ranking, and below it the robust accuracy of every network in every measurement."""
    caption = ["worst case over all attacks and gradients, Wilson 95 % interval; gap = largest rule (own) − exact"]
    diagnoses = [(one.model, one.diagnosis) for one in grid.networks if one.diagnosis is not None]
    caption += [f"{model}: {one.reason}" for model, one in diagnoses if NO_CLASSIFIER in one.flags]
    title = f"{grid.preset.title}: {grid.dataset} (test, n = {grid.n}), worst case at {grid.headline}"
    ranking = compact_table(title=title, caption="\n".join(caption))
    for name in ("#", "model", "clean %", "worst case %", "gap", *ANSWERS):
        ranking.add_column(name, justify="left" if name in {"model", *ANSWERS} else "right", no_wrap=True)
    for network in grid.networks:
        gap, clean = _gap(grid, network), percent(network.clean_accuracy)
        gap_text = NONE if gap is None else f"{100 * gap:+.1f}"
        ranking.add_row(str(network.rank), network.model, clean, _worst(grid, network), gap_text, *_answers(network))
    blocks = [_block(grid, first) for first in range(0, len(_attacks(grid)), ATTACKS_BESIDE)]
    blocks[-1].caption = _legend(grid)
    return Group(ranking, *blocks)


def _block(grid: GridResult, first: int) -> Table:
    """Return the robust accuracy under some of the attacks, side by side."""
    block = Table(title="robust accuracy (%)" if first == 0 else None, box=box.SIMPLE_HEAD)
    block.add_column("model", no_wrap=True)
    block.add_column("gradient", no_wrap=True)
    shown = slice(first, first + ATTACKS_BESIDE)
    for attack in _attacks(grid)[shown]:
        block.add_column("\n".join(attack.head), justify="right")
    for network in grid.networks:
        for i, (gradient, values) in enumerate(_lines(grid, network)):
            block.add_row(network.model if i == 0 else "", gradient, *values[shown])
    return block


def _legend(grid: GridResult) -> str:
    remarks = []
    if any("σ" in measurement.written for measurement in grid.measurements):
        remarks.append(f"σ: in units of the data's mean standard deviation, {grid.sigma:.4g}")
    if grid.preset.robust_meter == "shared":
        remarks.append("shared: the mean of clean and robust accuracy, which one meter for both reports")
    return "\n".join(remarks)


def document(grid: GridResult, files: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the JSON document of `biorobust grid --json`; accuracies are fractions."""
    return {
        "preset": grid.preset.name,
        "dataset": grid.dataset,
        "n": grid.n,
        "rank_by": grid.headline.document(),
        "models": [
            {
                "rank": network.rank,
                "model": network.model,
                "clean_accuracy": network.clean_accuracy,
                "worst_case": worst_case_document(grid.headline, network.robust[grid.headline]),
                "by_threat": [worst_case_document(*pair) for pair in network.robust.items()],
                "gap": _gap(grid, network),
                **verdict_document(network.diagnosis),
                "results": [_result_document(grid, *pair) for pair in _pairs(grid, network)],
            }
            for network in grid.networks
        ],
        "skipped": grid.skipped,
        "files": [str(path) for path in files],
    }


def _pairs(grid: GridResult, network: Assessment) -> Iterator[tuple[Measurement, Result]]:
    for measurement, result in zip(grid.measurements, network.results, strict=True):
        if result is not None:
            yield measurement, result


def _result_document(grid: GridResult, measurement: Measurement, result: Result) -> dict[str, Any]:
    asked = {"eps_written": measurement.written, "params": measurement.params}
    shared = {"shared_meter": shared_meter(result)} if grid.preset.robust_meter == "shared" else {}
    return result_document(result) | asked | shared


def write(grid: GridResult, folder: Path) -> list[Path]:
    """Write results.csv and table.md, and a plot for each norm with an attack at several radii; return the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    write_atomically(folder / "results.csv", _csv(grid).encode())
    write_atomically(folder / "table.md", _markdown(grid).encode())
    paths = [folder / "results.csv", folder / "table.md"]
    for norm, curves in curve_places(grid).items():
        stem = folder / ("eps-curve" if norm == "linf" else f"eps-curve-{norm}")
        write_figure(plot(grid, norm, curves), stem)
        paths += [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    return paths


def _csv(grid: GridResult) -> str:
    rows = []
    for network in grid.networks:
        for measurement, result in _pairs(grid, network):
            row: dict[str, Any] = {
                "rank": network.rank,
                "model": network.model,
                "dataset": grid.dataset,
                "n": grid.n,
                "seed": result.spec.seed,
                **dict(zip(("number", "verdict"), _answers(network), strict=True)),
                "clean_accuracy": network.clean_accuracy,
            }
            row |= _result_document(grid, measurement, result)
            row["ci_low"], row["ci_high"] = row.pop("ci95")
            row["params"] = json.dumps(measurement.params, sort_keys=True)
            del row["from_store"], row["notices"]
            rows.append(row)
    return csv_text(rows, list(rows[0]))


def _markdown(grid: GridResult) -> str:
    heads = ["#", "model", "gradient", "clean %", *(" ".join(attack.head) for attack in _attacks(grid))]
    heads += [f"worst case %, {grid.headline}", *ANSWERS]
    rows = [heads, ["--:", "---", "---", *["--:"] * (len(heads) - 5), "---", "---"]]
    for network in grid.networks:
        for i, (gradient, values) in enumerate(_lines(grid, network)):
            once = [str(network.rank), network.model] if i == 0 else ["", ""]
            last = [_worst(grid, network), *_answers(network)] if i == 0 else ["", "", ""]
            rows.append([*once, gradient, percent(network.clean_accuracy), *values, *last])
    lines = [f"# {grid.preset.title}", "", f"{grid.dataset} (test, n = {grid.n}); robust accuracy in percent.", ""]
    lines += [markdown_row(value.replace("|", "/") for value in row) for row in rows]
    remarks = ["Worst case over all attacks and gradients, with Wilson 95 % interval.", *_legend(grid).splitlines()]
    diagnoses = {network.model: network.diagnosis for network in grid.networks if network.diagnosis}
    for model, one in diagnoses.items():
        said = ("number", one.number, one.number_reason), ("usual way", one.verdict, one.reason)
        remarks += [f"{model}: {what} {word}: {reason}" for what, word, reason in said if word != "sound"]
    remarks += [f"skipped: {model}: {reason}" for model, reason in grid.skipped.items()]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks)]) + "\n"
