"""What a comparison shows: table, JSON document, Markdown summary, JUnit XML."""

from typing import Any
from xml.etree import ElementTree as Xml

from rich import box
from rich.table import Table

from robustbench_bio.leaderboard.regress import Change, Comparison
from robustbench_bio.report.tables import percent

HEADS = ("model", "what", "n", "before %", "now %", "lost", "won", "p", "")


def table(found: Comparison) -> Table:
    """Return one row for each network and question."""
    shown = Table(title=summary(found), caption=legend(found), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, head in enumerate(HEADS):
        shown.add_column(head, justify="right" if 2 <= i < 8 else "left", no_wrap=True)
    for change in found.changes:
        shown.add_row(*_values(change), style="bold" if change.regression else "")
    return shown


def summary(found: Comparison) -> str:
    """Return the outcome in one line."""
    models = len({change.pair.model for change in found.changes})
    worse = len({change.pair.model for change in found.regressions})
    return f"{worse} of {models} networks are less robust" if worse else f"no regression in {models} networks"


def legend(found: Comparison) -> str:
    """Return what the figures mean."""
    limits = found.limits
    line = (
        "paired on the same examples; lost: stood in the baseline and do not now; p: exact McNemar, one-sided, "
        f"corrected for {len(found.changes)} tests (Holm); a regression has p < {limits.alpha:g} "
        f"and a drop of at least {limits.min_drop:g} points"
    )
    return "\n".join([line, *(f"left out: {model}: {reason}" for model, reason in found.left_out.items())])


def document(found: Comparison) -> dict[str, Any]:
    """Return the JSON document; accuracies are fractions."""
    return {
        "regressions": len(found.regressions),
        "alpha": found.limits.alpha,
        "min_drop_points": found.limits.min_drop,
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
            for change in found.changes
        ],
        "left_out": found.left_out,
    }


def markdown(found: Comparison) -> str:
    """Return the summary for a pull request."""
    lines = [f"# {summary(found).capitalize()}", "", _row(HEADS), _row(["---", "---", *["--:"] * 6, "---"])]
    lines += [_row(_values(change)) for change in found.changes]
    return "\n".join([*lines, "", *(f"{line}\n" for line in legend(found).splitlines())])


def junit(found: Comparison) -> str:
    """Return JUnit XML: a test for each network and question, failed where it is a regression."""
    suite = Xml.Element(
        "testsuite", name="biorobust regress", tests=str(len(found.changes) + len(found.left_out)),
        failures=str(len(found.regressions)), errors="0", skipped=str(len(found.left_out)),
    )  # fmt: skip
    for change in found.changes:
        case = Xml.SubElement(suite, "testcase", classname=f"biorobust.{change.pair.model}", name=change.pair.question)
        if change.regression:
            Xml.SubElement(case, "failure", message=change.line()).text = change.line()
        else:
            Xml.SubElement(case, "system-out").text = change.line()
    for model, reason in found.left_out.items():
        case = Xml.SubElement(suite, "testcase", classname=f"biorobust.{model}", name="left out")
        Xml.SubElement(case, "skipped", message=reason)
    Xml.indent(suite)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{Xml.tostring(suite, encoding="unicode")}\n'


def _values(change: Change) -> list[str]:
    return [
        change.pair.model, change.pair.question, str(len(change.pair.before)), percent(change.before),
        percent(change.after), str(change.lost), str(change.won), f"{change.p:.2g}",
        "regression" if change.regression else "",
    ]  # fmt: skip


def _row(values: "list[str] | tuple[str, ...]") -> str:
    return f"| {' | '.join(values)} |"
