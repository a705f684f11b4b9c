"""Drawings of motifs: excitation, inhibition and feedback between a few nodes."""

from collections.abc import Iterable
from pathlib import Path

from robustbench_bio.records.genotype import Edge
from robustbench_bio.records.motifs import Motif, MotifGenotype, parse_link
from robustbench_bio.report.layout import INHIBITS, Circuit, Drawing, Wire, lay_out
from robustbench_bio.report.rendering import Key, write_sheet

#: Class of a link's style, by sign; links without weights have that of edges without weights.
SIGNS = {"p": "s-p", "n": INHIBITS, "": "s-any"}


def link_style(op: str) -> str:
    """Return the class of a link's lines: by its sign, or that of what has no weights."""
    link = parse_link(op)
    return SIGNS[link.sign] if link.kernel else "r-none"


def motif_circuit(motif: Motif) -> Drawing:
    """Return a motif: excitation ends in a tip, inhibition in a bar, feedback runs back below the boxes, dashed.

    Links that are not there are left out; the nodes side by side make the output.
    """

    def wire(link: Edge) -> Wire:
        return Wire(link.op, link.state, link_style(link.op))

    nodes = [[wire(link) for link in node if link.op != "none"] for node in motif.nodes]
    back = {i: wire(link) for i, link in enumerate(motif.feedback, 1) if link.op != "none"}
    states = range(motif.inputs, motif.inputs + len(nodes))
    return lay_out(Circuit([f"in {i}" for i in range(motif.inputs)], nodes, states, back))


def placed_motifs(genotype: MotifGenotype, reductions: frozenset[int]) -> list[tuple[str, Motif]]:
    """Return every motif of the genotype, under a heading that names the cells that hold it."""
    places = dict[Motif, list[int]]()
    for i, motif in enumerate(genotype.cells):
        if i not in reductions:
            places.setdefault(motif, []).append(i)
    return [
        (f"Cell{'s' if len(at) > 1 else ''} {', '.join(map(str, at))}: {motif.name}", motif)
        for motif, at in places.items()
    ]


def sign_keys(motifs: Iterable[Motif]) -> list[Key]:
    """Return the legend of motifs: every sign of a link, what has no weights, feedback."""
    shown = [*motifs]
    feedback = [link for motif in shown for link in motif.feedback if link.op != "none"]
    links = [link for motif in shown for link in motif.links if link.op != "none"]
    styles = {link_style(link.op) for link in [*links, *feedback]}
    texts = {"s-p": "excites", "s-n": "inhibits", "s-any": "excites or inhibits", "r-none": "without weights"}
    keys = [Key(style, text) for style, text in texts.items() if style in styles]
    return keys + ([Key("feedback s-any", "feedback")] if feedback else [])


def draw_motifs(genotype: MotifGenotype, reductions: frozenset[int], folder: Path) -> None:
    """Draw the motifs as cells.png and cells.svg, each once, under the cells that hold it."""
    placed = placed_motifs(genotype, reductions)
    title = f"{genotype.name}: each cell reads the last {genotype.inputs}"
    parts = [(heading, motif_circuit(motif)) for heading, motif in placed]
    write_sheet(folder / "cells", title, parts, sign_keys(motif for _, motif in placed))
