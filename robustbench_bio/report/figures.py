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
    """Write a figure as stem.png and stem.svg, byte for byte the same whenever the same is drawn."""
    from matplotlib import rc_context

    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        data = io.BytesIO()
        with rc_context({"svg.hashsalt": stem.name}):  # else its ids are drawn at random
            figure.savefig(data, format=kind, dpi=150, metadata=metadata)
        write_atomically(stem.with_suffix(f".{kind}"), data.getvalue())
