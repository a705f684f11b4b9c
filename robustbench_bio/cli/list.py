"""`biorobust list`: what there is."""

from enum import StrEnum

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
    from robustbench_bio.report.description import listing
    from robustbench_bio.report.description_text import listing_table

    lines = listing(kind.value)
    terminal.print_result(as_json, {kind.value: lines}, listing_table(kind.value, lines))
