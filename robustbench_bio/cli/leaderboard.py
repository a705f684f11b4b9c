"""`biorobust leaderboard`: show, build and verify the boards."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, Boards, Jobs, Models, Zoo
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown

leaderboard = typer.Typer(help="Show, build and verify the boards.", no_args_is_help=True)


@leaderboard.command()
def show(
    board: Annotated[str | None, typer.Argument(help="Name of a board [default: the only one, else all].")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, markdown or latex.")] = "table",
    leaderboards: Boards = None,
    as_json: AsJson = False,
) -> None:
    """Print the ranking of a board; rows that no paired test tells apart share a range of ranks."""
    from robustbench_bio.leaderboard.ranking import rank_entries
    from robustbench_bio.report import boards as report
    from robustbench_bio.zoo import catalog

    if form not in report.FORMATS:
        raise UserError(unknown("format", form, list(report.FORMATS)))
    chosen = catalog.boards_with_entries(board, leaderboards).values()
    rankings = [(one, rank_entries(entries)) for one, entries in chosen]
    if as_json:
        documents = [report.document(*ranking) for ranking in rankings]
        terminal.print_document(documents[0] if len(documents) == 1 else {"boards": documents})
        return
    for ranking in rankings:
        if form == "table":
            terminal.out.print(report.table(*ranking))
        else:
            sys.stdout.write(report.TEXTS[form](*ranking))


@leaderboard.command()
def build(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the site; made anew.")] = Path("site"),
    board: Annotated[str | None, typer.Option(help="Name of a board [default: all].")] = None,
    leaderboards: Boards = None,
    as_json: AsJson = False,
) -> None:
    """Write the boards as a static site that needs no network."""
    from robustbench_bio.report import site
    from robustbench_bio.zoo import catalog

    with terminal.progress_shown("building", late=True) as progress:
        paths = site.build_site(catalog.boards_with_entries(board, leaderboards), out_dir, progress)
    if as_json:
        terminal.print_document({"folder": str(out_dir), "files": len(paths)})
    else:
        terminal.out.print(f"{len(paths)} files: open {out_dir / 'index.html'}", highlight=False, soft_wrap=True)


@leaderboard.command()
def verify(
    board: Annotated[str | None, typer.Option(help="Name of a board [default: all].")] = None,
    models: Models = "*",
    fraction: Annotated[float, typer.Option(help="Part of the outcomes to measure again; 1 is all of them.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    jobs: Jobs = None,
    leaderboards: Boards = None,
    zoo: Zoo = None,
    as_json: AsJson = False,
) -> None:
    """Check every entry against zoo and board, and measure a random part of the outcomes again; exit 1 on a fault."""
    from robustbench_bio.leaderboard.folders import Folders
    from robustbench_bio.leaderboard.verify import verify as verify_board
    from robustbench_bio.report.submission import verification_lines

    folders = Folders.of(zoo, leaderboards)
    reports = []
    for one in folders.boards(board):
        with terminal.progress_shown(f"verifying {one.name}") as progress:
            reports.append(
                verify_board(
                    one,
                    folders,
                    models=models,
                    fraction=fraction,
                    seed=seed,
                    jobs=jobs or os.cpu_count() or 1,
                    progress=progress,
                )
            )
    if as_json:
        terminal.print_document({"boards": [report.document() for report in reports]})
    else:
        for report in reports:
            for line in verification_lines(report):
                terminal.out.print(line, highlight=False, soft_wrap=True)
    if not all(report.holds for report in reports):
        raise typer.Exit(1)


@leaderboard.command()
def migrate(
    board: Annotated[str | None, typer.Option(help="Name of a board [default: all].")] = None,
    leaderboards: Boards = None,
    zoo: Zoo = None,
    as_json: AsJson = False,
) -> None:
    """Bring entries of an older schema up to date; nothing is measured again."""
    from robustbench_bio.leaderboard.folders import Folders
    from robustbench_bio.leaderboard.migrate import migrate as bring_up_to_date

    folders = Folders.of(zoo, leaderboards)
    changed = [path for one in folders.boards(board) for path in bring_up_to_date(one, folders)]
    if as_json:
        terminal.print_document({"files": [str(path) for path in changed]})
    else:
        terminal.out.print(f"{len(changed)} entries brought up to date", highlight=False)
