"""`biorobust submit`: measure networks as a board asks and write their entries."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, Boards, Device, OutDir, Zoo


def submit(
    models: Annotated[
        list[str], typer.Argument(help="Cards (paths that end in .toml), or ids of the zoo and patterns with *.")
    ],
    board: Annotated[str, typer.Option(help="Name of a board; see `biorobust list boards`.")],
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the one card, as safetensors [default: beside the card].")
    ] = None,
    genotype: Annotated[Path | None, typer.Option(help="Cells of the one card [default: beside the card].")] = None,
    train: Annotated[bool, typer.Option("--train", help="Follow the recipe of a card without weights first.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put another network in the place of the one of this id.")
    ] = False,
    leaderboards: Boards = None,
    zoo: Zoo = None,
    device: Device = "auto",
    out_dir: OutDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure networks as a board asks and write their entries; continue where an interrupted run stopped.

    Card, cells and weights are checked as data that nobody trusts. Nothing is written to zoo or board before all of a
    network is measured.
    """
    from robustbench_bio.leaderboard import submit as work
    from robustbench_bio.leaderboard.folders import Folders
    from robustbench_bio.leaderboard.submission import SubmissionOptions
    from robustbench_bio.report import submission as report

    options = SubmissionOptions(weights, genotype, train, replace)
    with terminal.progress_shown("measuring") as progress:
        done = work.submit(
            models, board, Folders.of(zoo, leaderboards), options, out=out_dir, device=device, progress=progress
        )
    if as_json:
        terminal.print_document(report.document(board, done))
        return
    for line in report.submission_lines(done):
        terminal.out.print(line, highlight=False, soft_wrap=True)
