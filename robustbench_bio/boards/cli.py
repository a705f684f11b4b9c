"""The commands of boards: submit, leaderboard show, build and verify, regress."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_bio import terminal
from robustbench_bio.errors import UserError
from robustbench_bio.registry import unknown
from robustbench_bio.terminal import AsJson, Device

leaderboard = typer.Typer(help="Show, build and verify the boards.", no_args_is_help=True)

Boards = Annotated[
    Path | None, typer.Option("--leaderboards", help="Folder of boards [default: that of the installation].")
]
Zoo = Annotated[
    Path | None, typer.Option("--zoo", help="Folder of cards, weights and genotypes [default: that of the zoo].")
]
Models = Annotated[str, typer.Option(help="Ids and patterns with *; with commas: 'bionas-*,bp-*'.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes [default: one for each core].")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of boards to the application."""
    app.command()(submit)
    app.command()(regress)
    app.add_typer(leaderboard, name="leaderboard")


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
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder of results [default: $BIOROBUST_HOME/results].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure networks as a board asks and write their entries; continue where an interrupted run stopped.

    Card, cells and weights are checked as data that nobody trusts. Nothing is written to zoo or board before all of a
    network is measured.
    """
    from robustbench_bio.boards import submit as work
    from robustbench_bio.boards.candidates import Order
    from robustbench_bio.boards.folders import Folders

    order = Order(weights, genotype, train, replace)
    with terminal.bar("measuring") as progress:
        done = work.submit(
            models, board, Folders.of(zoo, leaderboards), order, out=out_dir, device=device, progress=progress
        )
    paths = [path for one in done for path in one.paths]
    if as_json:
        entries = [{"model": one.entry.model, **one.entry.scores.model_dump(mode="json"),
                    "verdict": one.entry.finding and one.entry.finding.verdict} for one in done]  # fmt: skip
        terminal.document({"board": board, "entries": entries, "files": [str(path) for path in paths]})
        return
    for one in done:
        scores, finding = one.entry.scores, one.entry.finding
        terminal.out.print(
            f"{one.entry.model}: clean {100 * scores.clean_accuracy:.1f} %, worst case {100 * scores.worst_case:.1f} % "
            f"[{100 * scores.ci95[0]:.1f}, {100 * scores.ci95[1]:.1f}], {finding.verdict if finding else 'no verdict'}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    terminal.out.print(f"commit: git add {' '.join(map(str, paths))}", highlight=False, soft_wrap=True)


@leaderboard.command()
def show(
    board: Annotated[str | None, typer.Argument(help="Name of a board [default: the only one, else all].")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, markdown or latex.")] = "table",
    leaderboards: Boards = None,
    as_json: AsJson = False,
) -> None:
    """Print the ranking of a board; rows that no paired test tells apart share a range of ranks."""
    from robustbench_bio import catalog
    from robustbench_bio.boards import show as shows
    from robustbench_bio.boards.ranking import ranked

    if form not in shows.FORMATS:
        raise UserError(unknown("format", form, list(shows.FORMATS)))
    names = [board] if board else catalog.board_names(leaderboards)
    found = []
    for name in names:
        one = catalog.board(name, leaderboards)
        found.append((one, ranked([catalog.entry(path) for path in catalog.entry_files(name, leaderboards)])))
    if as_json:
        documents = [shows.document(one, rows) for one, rows in found]
        terminal.document(documents[0] if len(documents) == 1 else {"boards": documents})
        return
    texts = {"csv": shows.as_csv, "markdown": shows.markdown, "latex": shows.latex}
    for one, rows in found:
        if form == "table":
            terminal.out.print(shows.table(one, rows))
        else:
            sys.stdout.write(texts[form](one, rows))


@leaderboard.command()
def build(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the site; made anew.")] = Path("site"),
    board: Annotated[str | None, typer.Option(help="Name of a board [default: all].")] = None,
    leaderboards: Boards = None,
    as_json: AsJson = False,
) -> None:
    """Write the boards as a static site that needs no network."""
    from robustbench_bio import catalog
    from robustbench_bio.boards import site

    names = [board] if board else catalog.board_names(leaderboards)
    boards = {
        name: (
            catalog.board(name, leaderboards),
            [catalog.entry(path) for path in catalog.entry_files(name, leaderboards)],
        )
        for name in names
    }
    with terminal.late_bar("building") as progress:
        paths = site.build(boards, out_dir, progress)
    if as_json:
        terminal.document({"folder": str(out_dir), "files": len(paths)})
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
    from robustbench_bio.boards import verify as work
    from robustbench_bio.boards.folders import Folders

    folders = Folders.of(zoo, leaderboards)
    reports = []
    for one in folders.boards(board):
        with terminal.bar(f"verifying {one.name}") as progress:
            reports.append(
                work.verify(
                    one, folders, models=models, fraction=fraction, seed=seed, jobs=jobs or os.cpu_count() or 1,
                    progress=progress,
                )
            )  # fmt: skip
    if as_json:
        terminal.document({"boards": [report.document() for report in reports]})
    else:
        for report in reports:
            for line in work.lines(report):
                terminal.out.print(line, highlight=False, soft_wrap=True)
    if not all(report.holds for report in reports):
        raise typer.Exit(1)


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
    from robustbench_bio.boards import regress as work
    from robustbench_bio.boards import regress_report
    from robustbench_bio.boards.folders import Folders
    from robustbench_bio.store import write_atomically

    part, limits = work.Part(attacks, n_examples, fraction, seed), work.Limits(alpha, min_drop)
    if candidate is not None:
        found = work.between(baseline, candidate, models=models, part=part, limits=limits)
    else:
        with terminal.bar("measuring") as progress:
            found = work.against_checkout(
                baseline, Folders.of(zoo), models=models, part=part, limits=limits, progress=progress
            )
    for path, text in ((junit, regress_report.junit), (markdown, regress_report.markdown)):
        if path is not None:
            write_atomically(path, text(found).encode())
    terminal.show(as_json, regress_report.document(found), regress_report.table(found))
    if found.regressions:
        raise typer.Exit(1)
