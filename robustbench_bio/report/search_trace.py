"""Plots of the course of a search, and of the Pareto front of one for motifs."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustbench_bio.report.figures import new_figure, write_figure
from robustbench_bio.report.palette import VERMILION

Row = dict[str, float]

_UNITS = {"spikes": "spikes per image (thousands)", "parameters": "weights (thousands)"}


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


def _lines(panel: Any, trace: Sequence[Row], across: str, labels: dict[str, str], unit: float = 1) -> None:
    for name, label in labels.items():
        panel.plot([row[across] for row in trace], [unit * row[name] for row in trace], marker=".", label=label)
    panel.set(xlabel=across)
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    panel.legend()


def draw_motif_trace(trace: Sequence[Row], folder: Path) -> None:
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
        for front, colour, label in ((0.0, "0.7", "dominated"), (1.0, VERMILION.light, "front")):
            rows = sorted((row[across], row[up]) for row in trace if row["front"] == front)
            panel.plot(*zip(*rows, strict=True), ".", color=colour, label=label) if rows else None
        panel.set(xlabel=_UNITS.get(across, across), ylabel=_UNITS.get(up, up))
        panel.grid(alpha=0.3)
        panel.legend()
    write_figure(figure, folder / "pareto")
