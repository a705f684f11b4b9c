"""Drawings of cells: operations on the edges, learning rules as colours."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from robustbench_bio.records.genotype import OPERATIONS, SUFFIXES, Edge, Genotype, Primitive, parse_primitive
from robustbench_bio.report.layout import Circuit, Drawing, Wire, lay_out
from robustbench_bio.report.rendering import Key, write_sheet

#: Rule of an edge whose rule neither genotype nor card tells, such as one that was drawn at random.
UNTOLD = "untold"


def edge_rule(op: str, rule: str = "") -> str:
    """Return the rule that owns an edge: `rule` if given, else the primitive's; "" where there are no weights."""
    operation, own = parse_primitive(op)
    return (rule or own) if OPERATIONS.get(operation) else ""


def cell(edges: Sequence[Edge], concat: Sequence[int], rule: str = "") -> Drawing:
    """Return a cell: inputs left, nodes down a staircase, the output right; edges in their rule's style `r-…`."""

    def wire(edge: Edge) -> Wire:
        owner = edge_rule(edge.op, rule)
        shown = Primitive(parse_primitive(edge.op).operation, owner).name if owner in SUFFIXES else edge.op
        return Wire(shown, edge.state, f"r-{owner or 'none'}")

    nodes = [[wire(edge) for edge in edges[i : i + 2]] for i in range(0, len(edges), 2)]
    return lay_out(Circuit(("c k−2", "c k−1"), nodes, concat, {}))


def both_cells(genotype: Genotype, rule: str = "") -> list[tuple[str, Drawing]]:
    """Return heading and drawing of the normal and of the reduction cell."""
    return [
        ("Normal cell", cell(genotype.normal, genotype.normal_concat, rule)),
        ("Reduction cell", cell(genotype.reduce, genotype.reduce_concat, rule)),
    ]


def rule_keys(edges: Iterable[Edge], rule: str = "", untold: str = "") -> list[Key]:
    """Return the legend of cells: every rule that owns an edge, then what has no weights."""
    owners = {edge_rule(edge.op, rule) for edge in edges}
    keys = [Key(f"r-{owner}", untold if owner == UNTOLD else owner) for owner in sorted(owners - {""})]
    return keys + ([Key("r-none", "without weights")] if "" in owners else [])


def draw_cells(genotype: Genotype, folder: Path) -> None:
    """Draw both cells as cells.png and cells.svg."""
    write_sheet(folder / "cells", genotype.name, both_cells(genotype), rule_keys((*genotype.normal, *genotype.reduce)))
