"""A board as text: table, CSV, Markdown, LaTeX, JSON document."""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from robustbench_bio.leaderboard.ranking import LEVEL, RankedEntry
from robustbench_bio.records.board import Board
from robustbench_bio.report.tables import percent

#: What LaTeX would read as something else.
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "–": "--",
}  # fmt: skip


def rule_shares(row: RankedEntry) -> str:
    """Return which rules teach how much of the network, largest share first."""
    prefix = "percent of weights under "
    facts = row.entry.facts.items()
    shares = {name.removeprefix(prefix): float(share) for name, share in facts if name.startswith(prefix)}
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{rule} {share:.0f} %" for rule, share in ordered) or row.entry.card.rule


def document(board: Board, rows: Sequence[RankedEntry]) -> dict[str, Any]:
    """Return the JSON document of a board; accuracies are fractions."""
    return {
        "board": board.name,
        "dataset": board.dataset,
        "n": board.n_examples,
        "rank_by": board.rank_by.document(),
        "rows": [
            {
                "rank": [row.best, row.worst],
                "model": row.entry.model,
                "title": row.entry.card.title,
                "rules": rule_shares(row),
                "clean_accuracy": row.entry.scores.clean_accuracy,
                "worst_case": row.entry.scores.worst_case,
                "ci95": list(row.entry.scores.ci95),
                "verdict": None if row.entry.finding is None else row.entry.finding.verdict,
                "n": row.entry.n,
            }
            for row in rows
        ],
    }


def table(board: Board, rows: Sequence[RankedEntry]) -> Table:
    """Return the board as a person reads it."""
    shown = Table(
        title=f"{board.title} (test, n = {board.n_examples})",
        caption=f"worst case over all attacks and gradients, Wilson 95 % interval; rows whose ranks overlap in a range "
        f"are not told apart by a paired test (exact McNemar, two-sided, {LEVEL:g})",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for head in ("rank", "model", "clean %", f"worst case %, {board.rank_by}", "verdict"):
        shown.add_column(head, no_wrap=True, justify="left" if head in {"model", "verdict"} else "right")
    shown.add_column("rules", overflow="fold")
    for row in rows:
        scores = row.entry.scores
        shown.add_row(
            row.rank, row.entry.model, percent(scores.clean_accuracy), _worst(row), _verdict(row), rule_shares(row)
        )
    return shown


def as_csv(board: Board, rows: Sequence[RankedEntry]) -> str:
    """Return the board as CSV; accuracies are fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "board",
            "best_rank",
            "worst_rank",
            "model",
            "title",
            "rules",
            "clean_accuracy",
            "worst_case",
            "ci_low",
            "ci_high",
            "verdict",
            "n",
        ]
    )
    for row in rows:
        entry = row.entry
        writer.writerow(
            [
                board.name,
                row.best,
                row.worst,
                entry.model,
                _no_formula(entry.card.title),
                _no_formula(rule_shares(row)),
                entry.scores.clean_accuracy,
                entry.scores.worst_case,
                *entry.scores.ci95,
                _verdict(row),
                entry.n,
            ]
        )
    return text.getvalue()


def markdown(board: Board, rows: Sequence[RankedEntry]) -> str:
    """Return the board as a Markdown table."""
    lines = [_markdown(_heads(board)), _markdown(["--:", "---", "---", "---", "--:", "--:", "---", "--:"])]
    for row in rows:
        values = _values(row)
        lines.append(
            _markdown([re.sub(r"([\\`*_{}\[\]<>|#!~])", r"\\\1", " ".join(value.split())) for value in values])
        )
    return "\n".join(lines) + "\n"


def latex(board: Board, rows: Sequence[RankedEntry]) -> str:
    """Return the board as a LaTeX table for booktabs."""
    lines = [r"\begin{tabular}{rlllrrlr}", r"\toprule", _latex(_heads(board)), r"\midrule"]
    lines += [_latex(_values(row)) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _heads(board: Board) -> list[str]:
    return ["rank", "model", "title", "rules", "clean %", f"worst case %, {board.rank_by}", "verdict", "n"]


def _values(row: RankedEntry) -> list[str]:
    entry = row.entry
    clean = percent(entry.scores.clean_accuracy)
    return [row.rank, entry.model, entry.card.title, rule_shares(row), clean, _worst(row), _verdict(row), str(entry.n)]


def _worst(row: RankedEntry) -> str:
    scores = row.entry.scores
    return f"{percent(scores.worst_case)} [{percent(scores.ci95[0])}, {percent(scores.ci95[1])}]"


def _verdict(row: RankedEntry) -> str:
    return "–" if row.entry.finding is None else row.entry.finding.verdict


def _no_formula(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def _markdown(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _latex(values: Sequence[str]) -> str:
    texts = ["".join(_LATEX.get(letter, letter) for letter in " ".join(value.split())) for value in values]
    return f"{' & '.join(texts)} \\\\"


#: The forms of a board that are plain text.
TEXTS = {"csv": as_csv, "markdown": markdown, "latex": latex}

FORMATS = ("table", *TEXTS)
