"""What a submission shows: JSON document, lines."""

from collections.abc import Iterator, Sequence
from typing import Any

from robustbench_bio.leaderboard.submit import Submitted
from robustbench_bio.report.tables import percent


def document(board: str, submitted: Sequence[Submitted]) -> dict[str, Any]:
    """Return the JSON document of `biorobust submit --json`; accuracies are fractions."""
    entries = [
        {
            "model": one.entry.model,
            **one.entry.scores.model_dump(mode="json"),
            "verdict": one.entry.finding and one.entry.finding.verdict,
        }
        for one in submitted
    ]
    return {"board": board, "entries": entries, "files": [str(path) for one in submitted for path in one.paths]}


def lines(submitted: Sequence[Submitted]) -> Iterator[str]:
    """Yield a line for each entry, and the command that commits all that was written."""
    for one in submitted:
        scores, finding = one.entry.scores, one.entry.finding
        low, high = map(percent, scores.ci95)
        yield (
            f"{one.entry.model}: clean {percent(scores.clean_accuracy)} %, worst case {percent(scores.worst_case)} % "
            f"[{low}, {high}], {finding.verdict if finding else 'no verdict'}"
        )
    yield f"commit: git add {' '.join(str(path) for one in submitted for path in one.paths)}"
