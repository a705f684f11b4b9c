"""What a grid shows: table, JSON document and files."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from robustbench_bio.core.files import write_atomically
from robustbench_bio.core.stats import wilson
from robustbench_bio.diagnosis.assess import Assessment
from robustbench_bio.diagnosis.grid import GridResult, shared_meter
from robustbench_bio.evaluation.plan import Measurement
from robustbench_bio.records.gradient import EXACT, RULE, Gradient
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat
from robustbench_bio.report.curves import curve_places, plot
from robustbench_bio.report.figures import write_figure
from robustbench_bio.report.tables import percent, with_interval

#: Columns side by side, so that a table fits 80 characters.
COLUMNS = 4

#: What a missing number looks like.
NONE = "–"


@dataclass(frozen=True)
class _Column:
    """Measurements that differ in nothing but the gradient."""

    head: tuple[str, ...]
    places: dict[Gradient, int]

    def value(self, row: Assessment, gradient: Gradient) -> Result | None:
        place = self.places.get(gradient)
        return None if place is None else row.results[place]


def _columns(grid: GridResult) -> list[_Column]:
    places: dict[tuple[object, ...], dict[Gradient, int]] = {}
    measurements: dict[tuple[object, ...], Measurement] = {}
    for place, measurement in enumerate(grid.measurements):
        places.setdefault(measurement.but_for_gradient(), {})[measurement.gradient] = place
        measurements.setdefault(measurement.but_for_gradient(), measurement)
    plain = {
        key: (measurement.attack, measurement.threat.norm, _radius(measurement))
        for key, measurement in measurements.items()
    }
    heads = list(plain.values())
    return [
        _Column((*plain[key], *(measurements[key].settings() if heads.count(plain[key]) > 1 else ())), places[key])
        for key in places
    ]


def _radius(measurement: Measurement) -> str:
    return f"{measurement.written} px" if measurement.threat.norm == "l0" else measurement.written


def _lines(grid: GridResult, row: Assessment) -> Iterator[tuple[str, list[str]]]:
    """Yield for each gradient that the row was attacked with its name and the value of every column."""
    columns = _columns(grid)
    for gradient in dict.fromkeys((RULE, EXACT, *(measurement.gradient for measurement in grid.measurements))):
        found = [column.value(row, gradient) for column in columns]
        if any(result is not None for result in found):
            yield str(gradient), [NONE if result is None else percent(result.robust_accuracy) for result in found]
            if grid.preset.robust_meter == "shared":
                shown = [NONE if result is None else percent(shared_meter(result)) for result in found]
                yield f"{gradient}, shared", shown


def _worst(grid: GridResult, row: Assessment) -> str:
    robust = row.robust[grid.headline]
    return with_interval(sum(robust), len(robust))


def _verdict(row: Assessment) -> str:
    return NONE if row.diagnosis is None else row.diagnosis.verdict


def _gap(grid: GridResult, row: Assessment) -> float | None:
    """Return the largest amount by which an attack through the rule leaves more than through the exact gradient."""
    pairs = [(column.value(row, RULE), column.value(row, EXACT)) for column in _columns(grid)]
    return max((rule.robust_accuracy - exact.robust_accuracy for rule, exact in pairs if rule and exact), default=None)


def table(grid: GridResult) -> Group:
    """Return the ranking, and below it the robust accuracy of every network in every measurement."""
    ranking = Table(
        title=f"{grid.preset.title}: {grid.dataset} (test, n = {grid.n})",
        caption="worst case over all attacks and gradients, Wilson 95 % interval; gap = largest rule − exact",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # no narrower than this, no wider than a plain terminal
        pad_edge=False,
        show_edge=False,
    )
    ranking.add_column("#", justify="right", no_wrap=True)
    ranking.add_column("model", no_wrap=True)
    for name in ("clean %", f"worst case %, {grid.headline}", "gap"):
        ranking.add_column(name, justify="right", no_wrap=True)
    ranking.add_column("verdict", no_wrap=True)
    for row in grid.networks:
        gap = _gap(grid, row)
        shown = NONE if gap is None else f"{100 * gap:+.1f}"
        ranking.add_row(str(row.rank), row.model, percent(row.clean_accuracy), _worst(grid, row), shown, _verdict(row))
    columns = _columns(grid)
    starts = range(0, len(columns), COLUMNS)
    blocks = [_block(grid, columns[i : i + COLUMNS], i) for i in starts]
    blocks[-1].caption = _legend(grid)
    return Group(ranking, *blocks)


def _block(grid: GridResult, columns: Sequence[_Column], first: int) -> Table:
    block = Table(title="robust accuracy (%)" if first == 0 else None, box=box.SIMPLE_HEAD)
    block.add_column("model", no_wrap=True)
    block.add_column("gradient", no_wrap=True)
    for column in columns:
        block.add_column("\n".join(column.head), justify="right")
    for row in grid.networks:
        for i, (gradient, values) in enumerate(_lines(grid, row)):
            block.add_row(row.model if i == 0 else "", gradient, *values[first : first + len(columns)])
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
                "rank": row.rank,
                "model": row.model,
                "clean_accuracy": row.clean_accuracy,
                "worst_case": _worst_document(row, grid.headline),
                "by_threat": [_worst_document(row, threat) for threat in row.robust],
                "gap": _gap(grid, row),
                "verdict": None if row.diagnosis is None else row.diagnosis.verdict,
                "diagnosis": None if row.diagnosis is None else row.diagnosis.summary(),
                "results": [
                    _result_document(grid, measurement, result) | {"notices": result.provenance.notices}
                    for measurement, result in _pairs(grid, row)
                ],
            }
            for row in grid.networks
        ],
        "skipped": grid.skipped,
        "files": [str(path) for path in files],
    }


def _pairs(grid: GridResult, row: Assessment) -> Iterator[tuple[Measurement, Result]]:
    for measurement, result in zip(grid.measurements, row.results, strict=True):
        if result is not None:
            yield measurement, result


def _worst_document(row: Assessment, threat: Threat) -> dict[str, Any]:
    robust = row.robust[threat]
    ci95 = list(wilson(sum(robust), len(robust)))
    return threat.document() | {"robust_accuracy": row.worst_case(threat), "ci95": ci95}


def _result_document(grid: GridResult, measurement: Measurement, result: Result) -> dict[str, Any]:
    found = result.summary() | {"eps_written": measurement.written, "params": measurement.params}
    if grid.preset.robust_meter == "shared":
        found["shared_meter"] = shared_meter(result)
    return found


def write(grid: GridResult, folder: Path) -> list[Path]:
    """Write results.csv and table.md, and a plot for each norm with an attack at several radii; return the paths.

    Raises:
        UserError: the folder cannot be written.
    """
    write_atomically(folder / "results.csv", _csv(grid).encode())
    write_atomically(folder / "table.md", _markdown(grid).encode())
    paths = [folder / "results.csv", folder / "table.md"]
    for norm, found in curve_places(grid).items():
        stem = folder / ("eps-curve" if norm == "linf" else f"eps-curve-{norm}")
        write_figure(plot(grid, norm, found), stem)
        paths += [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    return paths


def _csv(grid: GridResult) -> str:
    rows = []
    for row in grid.networks:
        for measurement, result in _pairs(grid, row):
            found = _result_document(grid, measurement, result)
            found["ci_low"], found["ci_high"] = found.pop("ci95")
            found["params"] = json.dumps(measurement.params, sort_keys=True)
            del found["from_store"]
            head = {
                "rank": row.rank,
                "model": row.model,
                "dataset": grid.dataset,
                "n": grid.n,
                "seed": result.spec.seed,
            }
            head["verdict"] = _verdict(row)
            rows.append(head | {"seed": result.spec.seed, "clean_accuracy": row.clean_accuracy} | found)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _markdown(grid: GridResult) -> str:
    heads = ["#", "model", "gradient", "clean %", *(" ".join(column.head) for column in _columns(grid))]
    heads += [f"worst case %, {grid.headline}", "verdict"]
    lines = [f"# {grid.preset.title}", "", f"{grid.dataset} (test, n = {grid.n}); robust accuracy in percent.", ""]
    lines += [_markdown_row(heads), _markdown_row(["--:", "---", "---", *["--:"] * (len(heads) - 4), "---"])]
    for row in grid.networks:
        for i, (gradient, values) in enumerate(_lines(grid, row)):
            once = [str(row.rank), row.model] if i == 0 else ["", ""]
            last = [_worst(grid, row), _verdict(row)] if i == 0 else ["", ""]
            lines.append(_markdown_row([*once, gradient, percent(row.clean_accuracy), *values, *last]))
    remarks = ["Worst case over all attacks and gradients, with Wilson 95 % interval.", *_legend(grid).splitlines()]
    lines += ["", *(f"- {remark}" for remark in remarks)]
    doubts = [row for row in grid.networks if row.diagnosis and row.diagnosis.verdict != "sound"]
    lines += [f"- {row.model}: {row.diagnosis.verdict}: {row.diagnosis.reason}" for row in doubts if row.diagnosis]
    lines += [f"- skipped: {model}: {reason}" for model, reason in grid.skipped.items()]
    return "\n".join(lines) + "\n"


def _markdown_row(values: Sequence[str]) -> str:
    return f"| {' | '.join(value.replace('|', '/') for value in values)} |"
