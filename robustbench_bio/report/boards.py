"""A board as text: table, CSV, Markdown, LaTeX, JSON document."""

import re
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from robustbench_bio.core.files import csv_text
from robustbench_bio.leaderboard.ranking import LEVEL, RankedEntry
from robustbench_bio.records.board import Board
from robustbench_bio.report.tables import ANSWERS, NONE, bounds, compact_table, markdown_row, percent

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
                **_shares(row),
                "ci95": list(row.entry.scores.ci95),
                "verdict": None if row.entry.finding is None else row.entry.finding.verdict,
                "number": None if row.entry.finding is None else row.entry.finding.number,
                "n": row.entry.n,
            }
            for row in rows
        ],
    }


def _shares(row: RankedEntry) -> dict[str, Any]:
    """Return what an entry is and its accuracies, as fractions."""
    return {
        "model": row.entry.model,
        "title": row.entry.card.title,
        "rules": rule_shares(row),
        "clean_accuracy": row.entry.scores.clean_accuracy,
        "worst_case": row.entry.scores.worst_case,
    }


def table(board: Board, rows: Sequence[RankedEntry]) -> Table:
    """Return the board as a person reads it."""
    shown = compact_table(
        title=f"{board.title} (test, n = {board.n_examples}), worst case at {board.rank_by}",
        caption=f"worst case over all attacks and gradients, Wilson 95 % interval; rank: from one more than those that "
        f"a paired test finds better to all but those that it finds worse (exact McNemar, two-sided, {LEVEL:g})",
    )
    for head in ("rank", "model", "clean %", "worst case %", *ANSWERS):
        shown.add_column(head, no_wrap=True, justify="left" if head in {"model", *ANSWERS} else "right")
    shown.add_column("rules", overflow="fold")
    for row in rows:
        rank, model, _, rules, clean, worst, *answers, _ = _values(row)
        shown.add_row(rank, model, clean, worst, *answers, rules)
    return shown


def as_csv(board: Board, rows: Sequence[RankedEntry]) -> str:
    """Return the board as CSV; accuracies are fractions."""
    names = ["board", "best_rank", "worst_rank", "model", "title", "rules", "clean_accuracy", "worst_case"]
    return csv_text([_csv_row(board, row) for row in rows], [*names, "ci_low", "ci_high", "number", "verdict", "n"])


def _csv_row(board: Board, row: RankedEntry) -> dict[str, Any]:
    shares = _shares(row)
    shares |= {name: _no_formula(shares[name]) for name in ("title", "rules")}
    low, high = row.entry.scores.ci95
    number, verdict = _answers(row)
    ranks = {"board": board.name, "best_rank": row.best, "worst_rank": row.worst}
    return ranks | shares | {"ci_low": low, "ci_high": high, "number": number, "verdict": verdict, "n": row.entry.n}


def markdown(board: Board, rows: Sequence[RankedEntry]) -> str:
    """Return the board as a Markdown table."""
    lines = [markdown_row(_heads(board)), markdown_row(["--:", "---", "---", "---", "--:", "--:", "---", "---", "--:"])]
    lines += [markdown_row(map(_escaped, _values(row))) for row in rows]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return a text in one line that Markdown takes as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#!~])", r"\\\1", " ".join(text.split()))


def latex(board: Board, rows: Sequence[RankedEntry]) -> str:
    """Return the board as a LaTeX table for booktabs."""
    lines = [r"\begin{tabular}{rlllrrllr}", r"\toprule", _latex(_heads(board)), r"\midrule"]
    lines += [_latex(_values(row)) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _heads(board: Board) -> list[str]:
    return ["rank", "model", "title", "rules", "clean %", f"worst case %, {board.rank_by}", *ANSWERS, "n"]


def _values(row: RankedEntry) -> list[str]:
    entry = row.entry
    clean = percent(entry.scores.clean_accuracy)
    first = [row.rank, entry.model, entry.card.title, rule_shares(row), clean, _worst(row)]
    return [*first, *_answers(row), str(entry.n)]


def _worst(row: RankedEntry) -> str:
    return f"{percent(row.entry.scores.worst_case)} {bounds(row.entry.scores.ci95)}"


def _answers(row: RankedEntry) -> list[str]:
    """Return what to think of the number and of the usual way, in a word each."""
    finding = row.entry.finding
    return [NONE, NONE] if finding is None else [finding.number, finding.verdict]


def _no_formula(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


def _latex(values: Sequence[str]) -> str:
    texts = ["".join(_LATEX.get(letter, letter) for letter in " ".join(value.split())) for value in values]
    return f"{' & '.join(texts)} \\\\"


#: The forms of a board that are plain text.
TEXTS = {"csv": as_csv, "markdown": markdown, "latex": latex}

FORMATS = ("table", *TEXTS)
