"""What a search for motifs leaves to look at: its course, the Pareto front, and the motifs as graphs."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustbench_bio.records.motifs import Motif, MotifGenotype, parse_link
from robustbench_bio.report.figures import new_figure, write_figure

Row = dict[str, float]

#: Colours of excitation, inhibition and plain links (Okabe & Ito 2008).
_COLOURS = {"p": "#0072b2", "n": "#d55e00", "": "0.35"}

_UNITS = {"spikes": "spikes per image (thousands)", "parameters": "weights (thousands)"}


def draw_trace(trace: Sequence[Row], folder: Path) -> None:
    """Draw the rows as trace.png and .svg; with a front also pareto.png and .svg."""
    if not trace:
        return
    figure, (left, right) = new_figure(columns=2)
    numbers = [row["candidate"] for row in trace]
    left.plot(numbers, [row["fitness"] for row in trace], ".", label="candidate")
    left.plot(numbers, [row["best_fitness"] for row in trace], label="best so far")
    left.set(xlabel="candidate", ylabel="fitness")
    left.legend()
    right.scatter([row["spikes"] for row in trace], [row["fitness"] for row in trace], c=numbers, s=12)
    right.set(xlabel=_UNITS["spikes"], ylabel="fitness")
    for panel in (left, right):
        panel.grid(alpha=0.3)
    write_figure(figure, folder / "trace")
    if "front" in trace[0]:
        _pareto(trace, folder)


def _pareto(trace: Sequence[Row], folder: Path) -> None:
    """Draw each pair of objectives, three at most, the front in colour; objectives stand before the fitness."""
    columns = list(trace[0])
    names = columns[columns.index("generation") + 1 : columns.index("fitness")]
    pairs = list(itertools.combinations(names, 2))[:3]
    figure, panels = new_figure(columns=len(pairs), squeeze=False)
    for panel, (across, up) in zip(panels[0], pairs, strict=True):
        for front, colour, label in ((0.0, "0.7", "dominated"), (1.0, "#d55e00", "front")):
            rows = sorted((row[across], row[up]) for row in trace if row["front"] == front)
            panel.plot(*zip(*rows, strict=True), ".", color=colour, label=label) if rows else None
        panel.set(xlabel=_UNITS.get(across, across), ylabel=_UNITS.get(up, up))
        panel.grid(alpha=0.3)
        panel.legend()
    write_figure(figure, folder / "pareto")


def draw_motifs(genotype: MotifGenotype, reductions: frozenset[int], folder: Path) -> None:
    """Draw the motifs as cells.png and cells.svg: states as nodes, links as arrows, inhibition in another colour."""
    shown = [(i, cell) for i, cell in enumerate(genotype.cells) if i not in reductions]
    figure, panels = new_figure(columns=len(shown), squeeze=False)
    for panel, (i, cell) in zip(panels[0], shown, strict=True):
        _draw(panel, cell)
        panel.set_title(f"cell {i}: {cell.name}")
    for sign, label in (("p", "excites"), ("n", "inhibits"), ("", "passes on")):
        panels[0][0].plot([], [], color=_COLOURS[sign], label=label)
    panels[0][0].plot([], [], color="0.2", linestyle="--", label="feedback")
    figure.legend(loc="outside lower center", ncols=4)
    figure.suptitle(f"{genotype.name}: each cell reads the last {genotype.inputs}")
    write_figure(figure, folder / "cells")


def _draw(panel: Any, motif: Motif) -> None:
    """Draw inputs in a column on the left and nodes on a staircase to the right."""
    places = [(0.0, 1.4 * i) for i in range(motif.inputs)]
    places += [(2.2 + 1.6 * i, 0.7 * (motif.inputs - 1) + (1.0 if i % 2 else -0.4)) for i in range(len(motif.nodes))]
    arrows = [(state, motif.inputs + i, op, False) for i, node in enumerate(motif.nodes) for op, state in node] + [
        (motif.inputs + i, state, op, True) for i, (op, state) in enumerate(motif.feedback, 1)
    ]
    for start, end, op, back in arrows:
        if op == "none":
            continue
        link = parse_link(op)
        style = {
            "arrowstyle": "-[" if link.sign == "n" else "-|>", "color": _COLOURS[link.sign], "shrinkA": 12,
            "shrinkB": 12, "mutation_scale": 4 if link.sign == "n" else 12, "linestyle": "--" if back else "-",
            "connectionstyle": f"arc3,rad={-0.35 if back else 0.12}",
        }  # fmt: skip
        panel.annotate("", places[end], places[start], arrowprops=style)
        if link.kernel:
            x, y = ((a + b) / 2 for a, b in zip(places[start], places[end], strict=True))
            panel.text(x, y, f"{link.kernel}×{link.kernel}", fontsize=7, color=_COLOURS[link.sign], ha="center")
    for state, (x, y) in enumerate(places):
        name = f"in {state}" if state < motif.inputs else str(state - motif.inputs)
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "black"}
        panel.text(x, y, name, ha="center", va="center", bbox=box, fontsize=9)
    panel.set_xlim(-0.8, places[-1][0] + 0.8)
    panel.set_ylim(-1.4, 1.4 * motif.inputs)
    panel.axis("off")
