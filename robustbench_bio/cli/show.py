"""`biorobust show`: what one thing is."""

from pathlib import Path
from typing import Annotated

import typer

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson, DataFile, DataRoot


def show(
    name: str,
    dataset: Annotated[str, typer.Option(help="Which of a model's networks.")] = "digits",
    data_root: DataRoot = None,
    data_file: DataFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one model, attack, rule, data set, genotype, preset, network, space, engine or board.

    Of a model's network also: cost, share of each rule, and for each layer how its feedback and the gradient that it
    learns from lie to the exact ones.
    """
    from robustbench_bio.report import description
    from robustbench_bio.report.description_text import facts_table
    from robustbench_bio.zoo.loading import DataSource

    with terminal.progress_shown("measuring", late=True) as progress:
        facts = description.describe(name, DataSource(dataset, data_root, data_file), progress)
    title = Path(name).stem if name.endswith(".toml") else name
    terminal.print_result(as_json, facts, facts_table(title, facts))
