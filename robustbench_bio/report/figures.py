"""Figures that need no display, written as PNG and SVG."""

import io
from pathlib import Path
from typing import Any

from robustbench_bio.core.files import write_atomically


def new_figure(columns: int, rows: int = 1, **axes: Any) -> tuple[Any, Any]:
    """Return a figure that needs no display, and its axes as `subplots` makes them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **axes)


def write_figure(figure: Any, stem: Path) -> None:
    """Write a figure as stem.png and stem.svg."""
    for kind in ("png", "svg"):
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=150)
        write_atomically(stem.with_suffix(f".{kind}"), data.getvalue())
