"""`biorobust list`: what there is."""

from enum import StrEnum

from rich.table import Table

from robustbench_bio.cli import terminal
from robustbench_bio.cli.options import AsJson


class Kind(StrEnum):
    """What `list` can list."""

    models = "models"
    attacks = "attacks"
    rules = "rules"
    datasets = "datasets"
    genotypes = "genotypes"
    presets = "presets"
    networks = "networks"
    spaces = "spaces"
    engines = "engines"
    boards = "boards"


def list_members(kind: Kind, as_json: AsJson = False) -> None:
    """List models, attacks, rules, data sets, genotypes, presets, networks, spaces, engines or boards."""
    from robustbench_bio.report import description as describe

    rows = describe.listing(kind.value)
    table = Table(title=kind.value)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name, line in rows.items():
        table.add_row(name, line)
    terminal.print_result(as_json, {kind.value: rows}, table)
