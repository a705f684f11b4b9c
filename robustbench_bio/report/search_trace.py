"""What a search leaves to look at: its course as a table and a plot, and the cells that it found as graphs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustbench_bio.records.genotype import Edge, Genotype, parse_primitive
from robustbench_bio.report.figures import new_figure, write_figure

#: Colours that also people with colour blindness tell apart (Okabe & Ito 2008); plain backpropagation is black.
COLOURS = {
    "usf": "#0072b2",
    "frsf": "#009e73",
    "brsf": "#d55e00",
    "fa": "#cc79a7",
    "dfa": "#e69f00",
    "oja": "#56b4e9",
    "hard-wta": "#8c6d31",
    "softhebb": "#7f3c8d",
}

Row = dict[str, float]
Place = tuple[float, float]


def draw_trace(trace: Sequence[Row], folder: Path) -> None:
    """Draw the rows as trace.png and trace.svg; nothing without rows.

    Rows of a supernet show the entropy of the alphas and accuracies by epoch, rows of candidates their fitness
    and the best so far.
    """
    if not trace:
        return
    figure, (left, right) = new_figure(columns=2)
    if "epoch" in trace[0]:
        _lines(left, trace, "epoch", {"entropy_normal": "normal cell", "entropy_reduce": "reduction cell"})
        left.set(ylabel="mean entropy of the alphas (nats)")
        _lines(right, trace, "epoch", {"train_accuracy": "train", "val_accuracy": "validation"}, 100)
        right.set(ylabel="accuracy of the supernet (%)")
    else:
        _lines(left, trace, "candidate", {"fitness": "candidate", "best_fitness": "best so far"})
        left.set(ylabel="fitness")
        robust = {name: name for name in trace[0] if name.startswith("robust")}
        _lines(right, trace, "candidate", {"accuracy": "clean"} | robust, 100)
        right.set(ylabel="validation accuracy (%)")
    write_figure(figure, folder / "trace")


def _lines(panel: Any, trace: Sequence[Row], across: str, columns: dict[str, str], unit: float = 1) -> None:
    for name, label in columns.items():
        panel.plot([row[across] for row in trace], [unit * row[name] for row in trace], marker=".", label=label)
    panel.set(xlabel=across)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    panel.legend()


def draw_cells(genotype: Genotype, folder: Path) -> None:
    """Draw both cells as cells.png and cells.svg: states as nodes, operations on the edges, rules as colours."""
    figure, panels = new_figure(columns=1, rows=2)
    figure.set_size_inches(13, 9)
    shown = [
        (panels[0], "normal cell", genotype.normal, genotype.normal_concat),
        (panels[1], "reduction cell", genotype.reduce, genotype.reduce_concat),
    ]
    for panel, title, edges, concat in shown:
        _draw(panel, edges, concat)
        panel.set_title(title)
    rules = sorted({parse_primitive(op).rule for op, _ in (*genotype.normal, *genotype.reduce) if _ruled(op)})
    for rule in rules:  # lines of no length, for the legend
        panels[0].plot([], [], color=COLOURS.get(rule, "black"), linewidth=2, label=rule)
    if rules:
        figure.legend(loc="outside lower center", ncols=len(rules), title="learning rule of the edge")
    figure.suptitle(genotype.name)
    write_figure(figure, folder / "cells")


def _ruled(op: str) -> bool:
    return "pool" not in op and op != "none"


#: Width of a node's box, and half the distance between its two rows, in units of the drawing.
_WIDTH, _ROW = 3.1, 0.25


def _places(nodes: int) -> list[Place]:
    """Return the left end of each state's box, and last of the output's.

    Nodes go down a staircase that gets flatter, inputs stand below it, so that few lines pass behind a box.
    """
    steps = [(3.9 * i, 2.2 * (0.55**i - 1)) for i in range(nodes)]
    floor = steps[-1][1] - 1.4
    return [(-3.0, floor + 1.0), (-3.0, floor), *steps, (steps[-1][0] + 4.1, 0.6)]


def _draw(panel: Any, edges: Sequence[Edge], concat: Sequence[int]) -> None:
    places = _places(len(edges) // 2)
    names = ["$c_{k-2}$", "$c_{k-1}$", *(str(i) for i in range(len(edges) // 2))]
    for state in concat:
        width = 0.8 if state < 2 else _WIDTH
        _arrow(panel, (places[state][0] + width, places[state][1]), places[-1], "0.8")
    for i, (op, state) in enumerate(edges):
        colour = COLOURS.get(parse_primitive(op).rule, "black") if _ruled(op) else "0.35"
        x, y = places[i // 2 + 2]
        y += -_ROW if i % 2 else _ROW
        width = 0.8 if state < 2 else _WIDTH
        _arrow(panel, (places[state][0] + width, places[state][1]), (x, y), colour)
        panel.text(x + 0.12, y, f"{op} ← {names[state]}", va="center", fontsize=9, color=colour, zorder=4)
    for state, ((x, y), name) in enumerate(zip(places, [*names, "out"], strict=True)):
        if 2 <= state < len(names):
            _box(panel, x, y, _WIDTH, 4 * _ROW)
            panel.text(x, y + 2 * _ROW + 0.05, f"node {name}", va="bottom", fontsize=9, zorder=4)
        else:
            _box(panel, x, y, 0.8, 2.4 * _ROW)
            panel.text(x + 0.4, y, name, ha="center", va="center", fontsize=10, zorder=4)
    panel.set_xlim(places[0][0] - 0.2, places[-1][0] + 1.0)
    panel.set_ylim(places[1][1] - 0.6, 1.2)
    panel.axis("off")


def _box(panel: Any, x: float, y: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    panel.add_patch(Rectangle((x, y - height / 2), width, height, facecolor="white", edgecolor="black", zorder=3))


def _arrow(panel: Any, start: Place, end: Place, colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 12}
    panel.annotate("", end, start, arrowprops=style, zorder=2)
