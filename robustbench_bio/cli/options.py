"""Options that several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
DatasetName = Annotated[str, typer.Option("--dataset", help="Name of a data set, or path of an .npz.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of data sets [default: $BIOROBUST_DATA].")]
DataFile = Annotated[Path | None, typer.Option(help="An .npz (MedMNIST keys) that stands in for the data set.")]
AttackNorm = Annotated[
    str | None, typer.Option(help="linf, l2, l1 or l0 [default: what is natural to the attack, mostly linf].")
]
Radii = Annotated[
    str | None,
    typer.Option(
        help="In input units, several with commas: 4/255,8/255 "
        "[default: what is natural to the norm: linf 8/255, l2 0.5, l1 12, l0 1 pixel]."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
OutDir = Annotated[Path | None, typer.Option("--out", help="Folder of results [default: $BIOROBUST_HOME/results].")]
Boards = Annotated[
    Path | None, typer.Option("--leaderboards", help="Folder of boards [default: that of the installation].")
]
Zoo = Annotated[
    Path | None, typer.Option("--zoo", help="Folder of cards, weights and genotypes [default: that of the zoo].")
]
Models = Annotated[str, typer.Option(help="Ids and patterns with *; with commas: 'bionas-*,bp-*'.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes [default: one for each core].")]


def attack_params(pairs: Sequence[str] | None, steps: int | None) -> dict[str, Any]:
    """Return the parameters of an attack from `--set` and `--steps`."""
    from robustbench_bio.zoo.card_options import parse_pairs

    return parse_pairs([*(pairs or []), *([] if steps is None else [f"steps={steps}"])])
