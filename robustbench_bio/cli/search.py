"""`biorobust search`: search cells or motifs and their learning rules."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, DataFile, DataRoot, DatasetName, Device


def search(
    space: Annotated[str, typer.Option(help="Name of a space, see `biorobust list spaces`, or a path to TOML.")],
    engine: Annotated[str, typer.Option(help="Name of an engine; see `biorobust list engines`.")] = "darts",
    dataset: DatasetName = "digits",
    epochs: Annotated[int | None, typer.Option(help="Of the supernet, or of each candidate's training.")] = None,
    channels: Annotated[int | None, typer.Option(help="Width of the networks [default: the space's].")] = None,
    layers: Annotated[int | None, typer.Option(help="Cells of the networks [default: the space's].")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Parameter of the engine as name=value; repeatable.")
    ] = None,
    fitness: Annotated[
        str | None,
        typer.Option(help="accuracy, loss, robust:pgd5:8/255, or a sum: accuracy=1,robust=0.5; mse-nas: rdm, sahd, …"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after this time; the same call continues.")] = None,
    executor: Annotated[
        str, typer.Option(help="Who scores candidates: local, or ray ($RAY_ADDRESS or here).")
    ] = "local",
    workers: Annotated[int | None, typer.Option(help="Processes that score candidates [default: all cores].")] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="Of forward and backward passes: float32 or bfloat16.")] = "float32",
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Folder of the search [default: runs/search-SPACE-ENGINE-DATASET].")
    ] = None,
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Search cells and the learning rules of their operations; continue where an interrupted search stopped.

    Writes genotype.toml (for `biorobust train --genotype`), trace.csv and plots. Only the train split is used.
    Images under 16 pixels take 4 channels, 3 cells and few epochs unless told otherwise: under three minutes in
    the space bionas on two cores.
    """
    from robustbench_bio.evaluation.planning import pick_device
    from robustbench_bio.report import search as report
    from robustbench_bio.search import run as searches
    from robustbench_bio.zoo.card_options import parse_pairs

    request = searches.SearchRequest(
        space=space,
        engine=engine,
        dataset=dataset,
        channels=channels,
        layers=layers,
        seed=seed,
        fitness=fitness,
        params=parse_pairs([*(change or []), *([] if epochs is None else [f"epochs={epochs}"])]),
        executor=executor,
        workers=workers,
        device=pick_device(device),
        precision=precision,
        data_root=data_root,
        data_file=data_file,
    )
    folder = out_dir or Path("runs") / f"search-{Path(space).stem}-{engine}-{Path(dataset).stem}"
    with terminal.progress_shown("searching") as progress:
        run = searches.run_search(request, folder, max_minutes=max_minutes, progress=progress)
    report.draw_search(run)
    terminal.print_result(as_json, report.document(run), report.table(run))
    if not as_json and (command := report.next_command(run)):
        terminal.out.print(f"train it: {command}", highlight=False, soft_wrap=True)
