"""`biorobust regress`: did a network become less robust?"""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, Models, Zoo


def regress(
    baseline: Annotated[Path, typer.Option(help="Folder of entries, such as leaderboards/digits-linf.")],
    candidate: Annotated[
        Path | None, typer.Option(help="Compare with this folder of entries; nothing is measured.")
    ] = None,
    models: Models = "*",
    attacks: Annotated[str, typer.Option(help="Of those at the board's radius: names and patterns with *.")] = "*",
    n_examples: Annotated[int | None, typer.Option(help="First N examples [default: all of the baseline].")] = None,
    fraction: Annotated[float | None, typer.Option(help="A random part of the examples instead.")] = None,
    seed: Annotated[int, typer.Option(help="Of that part.")] = 0,
    alpha: Annotated[float, typer.Option(help="Chance of a false alarm over all tests.")] = 0.05,
    min_drop: Annotated[float, typer.Option(help="Smallest drop that counts, in points.")] = 1.0,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML into this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write a Markdown summary into this file.")] = None,
    zoo: Zoo = None,
    as_json: AsJson = False,
) -> None:
    """Compare the networks of the zoo with a baseline, example by example; exit 1 if one became less robust."""
    from robustbench_bio.core.files import write_atomically
    from robustbench_bio.leaderboard import regress as work
    from robustbench_bio.leaderboard.folders import Folders
    from robustbench_bio.report import regress as regress_report

    part, limits = work.Part(attacks, n_examples, fraction, seed), work.Limits(alpha, min_drop)
    if candidate is not None:
        comparison = work.between(baseline, candidate, models=models, part=part, limits=limits)
    else:
        with terminal.progress_shown("measuring") as progress:
            comparison = work.against_checkout(
                baseline, Folders.of(zoo), models=models, part=part, limits=limits, progress=progress
            )
    for path, text in ((junit, regress_report.junit), (markdown, regress_report.pull_request_summary)):
        if path is not None:
            write_atomically(path, text(comparison).encode())
    terminal.print_result(as_json, regress_report.document(comparison), regress_report.table(comparison))
    if comparison.regressions:
        raise typer.Exit(1)
