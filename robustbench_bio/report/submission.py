"""What a submission and a verification of entries show: JSON document, lines."""

from collections.abc import Iterator, Sequence
from typing import Any

from robustbench_bio.leaderboard.submit import Submitted
from robustbench_bio.leaderboard.verify import Verification
from robustbench_bio.report.tables import bounds, percent


def document(board: str, submitted: Sequence[Submitted]) -> dict[str, Any]:
    """Return the JSON document of `biorobust submit --json`; accuracies are fractions."""
    entries = [
        {
            "model": one.entry.model,
            **one.entry.scores.model_dump(mode="json"),
            "verdict": one.entry.finding and one.entry.finding.verdict,
            "number": one.entry.finding and one.entry.finding.number,
        }
        for one in submitted
    ]
    return {"board": board, "entries": entries, "files": [str(path) for one in submitted for path in one.paths]}


def submission_lines(submitted: Sequence[Submitted]) -> Iterator[str]:
    """Yield a line for each entry, and the command that commits all that was written."""
    for one in submitted:
        scores, finding = one.entry.scores, one.entry.finding
        yield (
            f"{one.entry.model}: clean {percent(scores.clean_accuracy)} %, worst case {percent(scores.worst_case)} % "
            f"{bounds(scores.ci95)}, "
            + (f"number {finding.number}, usual way {finding.verdict}" if finding else "no verdict")
        )
    yield f"commit: git add {' '.join(str(path) for one in submitted for path in one.paths)}"


def verification_lines(report: Verification) -> list[str]:
    """Return what a person wants to know of a verification."""
    notes = [f"{name}: {line}" for name, faults in report.faults.items() for line in faults]
    tolerated = report.within_tolerance.items()
    notes += [f"{name}: rounding or luck decides: {line}" for name, lines in tolerated for line in lines]
    state = "holds" if report.holds else f"does not hold: {len(report.faults)} entries with faults"
    part = f"{report.again:,} of {report.outcomes:,} outcomes and {report.diagnoses} verdicts measured again"
    return [*notes, f"{report.board}: {report.entries} entries, {part}, {report.seconds:.0f} s: {state}"]
