"""`biorobust train`: train a network by its rules."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, DataFile, DataRoot, DatasetName, Device


def train(
    model: Annotated[
        str | None, typer.Option(help="Card to train: id of the zoo, or a path that ends in .toml.")
    ] = None,
    genotype: Annotated[str | None, typer.Option(help="Train these cells instead: name, or a path to TOML.")] = None,
    rule: Annotated[str | None, typer.Option(help="Rules of the layers: usf, genotype, random:3, 'layer*=fa'.")] = None,
    dataset: DatasetName = "digits",
    name: Annotated[str | None, typer.Option("--id", help="Id of the new card.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="recipe.lr=0.1, net.channels=16, …; repeatable.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs, instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed, instead of the card's.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after this time; the same call continues.")] = None,
    device: Device = "auto",
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of the run [default: runs/ID-DATASET].")] = None,
    to_zoo: Annotated[bool, typer.Option("--to-zoo", help="Also write card and weights into the zoo.")] = False,
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Train a network by its rules; continue where an interrupted run stopped."""
    from robustbench_bio.evaluation.planning import pick_device
    from robustbench_bio.report import training as report
    from robustbench_bio.training import run as runs
    from robustbench_bio.zoo import card_options, catalog

    card = card_options.card_from_options(
        model=model,
        genotype=genotype,
        rule=rule,
        dataset=dataset,
        name=name,
        seed=seed,
        changes=[*(change or []), *([f"recipe.epochs={epochs}"] if epochs else [])],
    )
    folder = out_dir or Path("runs") / f"{card.id}-{Path(dataset).stem}"
    with terminal.progress_shown("training", epochs=True) as progress:
        run = runs.train_card(
            card,
            dataset,
            folder,
            data_root=data_root,
            data_file=data_file,
            max_minutes=max_minutes,
            device=pick_device(device),
            zoo_folder=catalog.data_folder("models") if to_zoo else None,
            progress=progress,
        )
    report.draw_history(run.training.history, folder)
    terminal.print_result(as_json, report.document(run), report.table(run))
