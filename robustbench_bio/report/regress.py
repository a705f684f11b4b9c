"""What a comparison shows: table, JSON document, Markdown summary, JUnit XML."""

from typing import Any
from xml.etree import ElementTree as Xml

from rich import box
from rich.table import Table

from robustbench_bio.leaderboard.regress import Change, Comparison
from robustbench_bio.report.tables import markdown_row, percent

HEADS = ("model", "what", "n", "before %", "now %", "lost", "won", "p", "")


def table(comparison: Comparison) -> Table:
    """Return one row for each network and question."""
    shown = Table(title=summary(comparison), caption=legend(comparison), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, head in enumerate(HEADS):
        shown.add_column(head, justify="right" if 2 <= i < 8 else "left", no_wrap=True)
    for change in comparison.changes:
        shown.add_row(*_values(change), style="bold" if change.regression else "")
    return shown


def summary(comparison: Comparison) -> str:
    """Return the outcome in one line."""
    models = len({change.pair.model for change in comparison.changes})
    worse = len({change.pair.model for change in comparison.regressions})
    return f"{worse} of {models} networks are less robust" if worse else f"no regression in {models} networks"


def legend(comparison: Comparison) -> str:
    """Return what the figures mean."""
    limits = comparison.limits
    line = (
        "paired on the same examples; lost: robust in the baseline and not now; p: exact McNemar, one-sided, "
        f"corrected for {len(comparison.changes)} tests (Holm); a regression has p < {limits.alpha:g} "
        f"and a drop of at least {limits.min_drop:g} points"
    )
    return "\n".join([line, *(f"left out: {model}: {reason}" for model, reason in comparison.left_out.items())])


def document(comparison: Comparison) -> dict[str, Any]:
    """Return the JSON document; accuracies are fractions."""
    return {
        "regressions": len(comparison.regressions),
        "alpha": comparison.limits.alpha,
        "min_drop_points": comparison.limits.min_drop,
        "changes": [
            {
                "model": change.pair.model,
                "what": change.pair.question,
                "n": len(change.pair.before),
                "before": change.before,
                "now": change.after,
                "lost": change.lost,
                "won": change.won,
                "p": change.p,
                "regression": change.regression,
            }
            for change in comparison.changes
        ],
        "left_out": comparison.left_out,
    }


def pull_request_summary(comparison: Comparison) -> str:
    """Return the summary for a pull request."""
    lines = [f"# {summary(comparison).capitalize()}", "", markdown_row(HEADS)]
    lines.append(markdown_row(["---", "---", *["--:"] * 6, "---"]))
    lines += [markdown_row(_values(change)) for change in comparison.changes]
    return "\n".join([*lines, "", *(f"{line}\n" for line in legend(comparison).splitlines())])


def junit(comparison: Comparison) -> str:
    """Return JUnit XML: a test for each network and question, failed where it is a regression."""
    suite = Xml.Element(
        "testsuite",
        name="biorobust regress",
        tests=str(len(comparison.changes) + len(comparison.left_out)),
        failures=str(len(comparison.regressions)),
        errors="0",
        skipped=str(len(comparison.left_out)),
    )
    for change in comparison.changes:
        case = Xml.SubElement(suite, "testcase", classname=f"biorobust.{change.pair.model}", name=change.pair.question)
        if change.regression:
            Xml.SubElement(case, "failure", message=change.line()).text = change.line()
        else:
            Xml.SubElement(case, "system-out").text = change.line()
    for model, reason in comparison.left_out.items():
        case = Xml.SubElement(suite, "testcase", classname=f"biorobust.{model}", name="left out")
        Xml.SubElement(case, "skipped", message=reason)
    Xml.indent(suite)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{Xml.tostring(suite, encoding="unicode")}\n'


def _values(change: Change) -> list[str]:
    return [
        change.pair.model,
        change.pair.question,
        str(len(change.pair.before)),
        percent(change.before),
        percent(change.after),
        str(change.lost),
        str(change.won),
        f"{change.p:.2g}",
        "regression" if change.regression else "",
    ]
