"""`biorobust grid`: a preset of attacks on many networks."""

from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, DataFile, DataRoot, Device, OutDir


def grid(
    preset: Annotated[str, typer.Argument(help="Name of a preset, see `biorobust list presets`, or path to TOML.")],
    models: Annotated[str, typer.Option(help="Ids, patterns with *, paths of cards; with commas: 'bionas-*,bp-*'.")],
    dataset: Annotated[str, typer.Option(help="Name of a data set, or path of an .npz.")] = "digits",
    n_examples: Annotated[
        int | None, typer.Option(help="First N of the test split [default: the preset's number].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the attacks' random draws.")] = 0,
    device: Device = "auto",
    out_dir: OutDir = None,
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Run every attack of a preset on many networks and rank them; continue where an interrupted run stopped.

    Writes results.csv, table.md and, for attacks at several radii, eps-curve.png and .svg into OUT/grid-PRESET.
    """
    from robustbench_bio.core.files import default_home
    from robustbench_bio.diagnosis import grid as grids
    from robustbench_bio.report import grid as grid_report

    folder = out_dir or default_home() / "results"
    with terminal.progress_shown("attacking") as progress:
        found = grids.run(
            preset,
            models,
            dataset=dataset,
            n_examples=n_examples,
            seed=seed,
            device=device,
            out=folder,
            data_root=data_root,
            data_file=data_file,
            progress=progress,
            notice=terminal.err.print,
        )
    files = grid_report.write(found, folder / f"grid-{found.preset.name}")
    terminal.print_result(as_json, grid_report.document(found, files), grid_report.table(found))
    if not as_json:
        terminal.out.print(f"written to {files[0].parent}: {', '.join(path.name for path in files)}", highlight=False)
