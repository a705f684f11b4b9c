"""How long it takes to verify a tenth of a board, and how often a regression is found or imagined.

python benchmarks/boards.py [--board digits-linf] [--fraction 0.1] [--jobs 2] [--repetitions 200] [--quick]
"""

import os
import random
import time

import common
from rich.console import Console
from rich.table import Table

from robustbench_bio.leaderboard.folders import Folders
from robustbench_bio.leaderboard.regress import WORST, Limits, Pair, judged
from robustbench_bio.leaderboard.verify import verify

#: (points that the first of ten networks drops, share of all examples that change sides by chance).
CASES = ((0, 0.0), (5, 0.0), (0, 0.02), (5, 0.02), (0, 0.05), (5, 0.05), (0, 0.1), (5, 0.1))


def simulated(n: int, drop: float, churn: float, draw: random.Random) -> Pair:
    """Return n examples of which half are robust, then `drop` of all are fooled and `churn` change sides by chance."""
    before = [draw.random() < 0.5 for _ in range(n)]
    moved = [robust != (draw.random() < churn) for robust in before]
    return Pair(
        "net", WORST, before, [a and not (b and draw.random() < 2 * drop) for b, a in zip(before, moved, strict=True)]
    )


def alarms(n: int, points: float, churn: float, repetitions: int) -> tuple[float, float]:
    """Return in which share of calls over ten networks the first one, and any other, is called less robust."""
    draw = random.Random(0)  # noqa: S311
    first = others = 0
    for _ in range(repetitions):
        pairs = [simulated(n, points / 100 if i == 0 else 0, churn, draw) for i in range(10)]
        worse = [change.pair for change in judged(pairs, Limits()).regressions]
        first += any(pair is pairs[0] for pair in worse)
        others += any(pair is not pairs[0] for pair in worse)
    return first / repetitions, others / repetitions


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--board", default="digits-linf")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repetitions", type=int, default=200)
    options = parser.parse_args()
    models = "*"
    if options.quick:
        options.fraction, options.repetitions, models = 0.001, 1, "pc-cnn"
    console = Console(width=100)

    table = Table(
        "drop, points", "churn %", "found %", "imagined %", title="regress: n = 500, ten networks, alpha 0.05"
    )
    cases = CASES[:2] if options.quick else CASES
    for points, churn in common.steps(cases, lambda case: f"regress, {case[0]} points, {100 * case[1]:g} % churn"):
        detected, imagined = alarms(500, points, churn, options.repetitions)
        table.add_row(f"{points:g}", f"{100 * churn:g}", f"{100 * detected:.1f}", f"{100 * imagined:.1f}")
    console.print(table)

    folders = Folders.of()
    started, spent = time.perf_counter(), os.times()
    told = started

    def progress(done: int, total: int, line: str) -> None:
        nonlocal told
        if time.perf_counter() - told > 5:
            told = time.perf_counter()
            common.note(f"{done:,} of {total:,}: {line}{common.remaining(started, done, total)}")

    report = verify(
        folders.board(options.board), folders, models=models, fraction=options.fraction, jobs=options.jobs,
        progress=progress,
    )  # fmt: skip
    wall, now = time.perf_counter() - started, os.times()
    processor = sum(now[:4]) - sum(spent[:4])
    console.print(
        f"verify --fraction {options.fraction:g} on {options.board}: {report.entries} entries, {report.again:,} of "
        f"{report.outcomes:,} outcomes, {report.diagnoses} verdicts: {wall:.0f} s, {processor:.0f} s of processor, "
        f"{options.jobs} processes: {'holds' if report.holds else report.faults}"
    )
    return int(not report.holds)


if __name__ == "__main__":
    common.command_line(main)
