"""`biorobust show`: what one thing is."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table

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
    from robustbench_bio.report import description as describe
    from robustbench_bio.report import description_text as facts_text

    with terminal.progress_shown("measuring", late=True) as progress:
        facts = describe.facts(name, dataset, data_root=data_root, data_file=data_file, progress=progress)
    table = Table(title=name if not name.endswith(".toml") else Path(name).stem, show_header=False)
    table.add_column("field", no_wrap=True)
    table.add_column("value")
    for field, value in facts.items():
        if field != describe.LAYERS:
            table.add_row(field, facts_text.text(field, value))
    layers = [facts_text.layer_table(facts[describe.LAYERS])] if describe.LAYERS in facts else []
    terminal.print_result(as_json, facts, Group(table, *layers))
