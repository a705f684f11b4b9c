"""`biorobust grid`: a preset of attacks on many networks."""

from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, DataFile, DataRoot, DatasetName, Device, OutDir


def grid(
    preset: Annotated[str, typer.Argument(help="Name of a preset, see `biorobust list presets`, or path to TOML.")],
    models: Annotated[str, typer.Option(help="Ids, patterns with *, paths of cards; with commas: 'bionas-*,bp-*'.")],
    dataset: DatasetName = "digits",
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
    from robustbench_bio.diagnosis.grid import run_grid
    from robustbench_bio.evaluation.planning import preset_plan, read_settings
    from robustbench_bio.evaluation.store import Store
    from robustbench_bio.report import grid as report
    from robustbench_bio.zoo import catalog
    from robustbench_bio.zoo.loading import DataSource

    folder = out_dir or default_home() / "results"
    chosen, settings = catalog.preset(preset), read_settings(seed=seed, device=device)
    with terminal.progress_shown("attacking") as progress:
        asked = preset_plan(
            chosen, models, DataSource(dataset, data_root, data_file), n_examples=n_examples, settings=settings
        )
        for label, reason in asked.skipped.items():
            terminal.err.print(f"{label} is skipped: {reason}")
        done = run_grid(asked, Store(folder), progress)
    files = report.write(done, folder / f"grid-{chosen.name}")
    terminal.print_result(as_json, report.document(done, files), report.table(done))
    if not as_json:
        terminal.out.print(f"written to {files[0].parent}: {', '.join(path.name for path in files)}", highlight=False)
