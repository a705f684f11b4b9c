"""What a search shows: table, JSON document, pictures, and the command that goes on from it."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from robustbench_bio.records.genotype import Genotype
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.records.motifs import reduction_cells
from robustbench_bio.report.drawing import draw_cells
from robustbench_bio.report.motif_drawing import draw_motifs
from robustbench_bio.report.search_trace import draw_motif_trace, draw_trace
from robustbench_bio.search.run import SearchRun


def document(run: SearchRun) -> dict[str, Any]:
    """Return the JSON document of `biorobust search --json`."""
    genotype = run.result.genotype
    return {
        "space": run.task.space.name,
        "engine": run.request.engine,
        "dataset": run.request.dataset,
        "seed": run.task.seed,
        "channels": run.task.channels,
        "layers": run.task.layers,
        "parameters": asdict(run.engine),
        "fitness": str(run.task.fitness),
        "finished": run.result.finished,
        "genotype": None if genotype is None else genotype.model_dump(mode="json"),
        "genotype_file": None if genotype is None else str(run.genotype_file),
        "folder": str(run.folder),
        "trace": run.result.trace,
    }


def table(run: SearchRun) -> Table:
    """Return what a person wants to know after a search."""
    result = run.result
    shown = Table(title=f"{run.task.name}: {run.request.engine} in {run.task.space.name}", show_header=False)
    shown.add_row("size", f"{run.task.channels} channels, {run.task.layers} cells")
    if result.trace:
        last = result.trace[-1]
        if "epoch" in last:
            shown.add_row("epochs", f"{last['epoch']:.0f}, validation accuracy {100 * last['val_accuracy']:.1f} %")
        else:
            shown.add_row("candidates", f"{last['candidate']:.0f}, best fitness {last['best_fitness']:.4f}")
    if isinstance(result.genotype, Genotype):
        for kind in ("normal", "reduce"):
            shown.add_row(kind, ", ".join(f"{op}←{state}" for op, state in getattr(result.genotype, kind)))
    elif result.genotype is not None:
        shown.add_row(
            "motifs",
            f"{', '.join(cell.name for cell in result.genotype.cells)}; each reads the last "
            f"{result.genotype.inputs} cells",
        )
    if result.front:
        shown.add_row("front", f"{len(result.front)} genotypes, none better than another in everything")
    if not result.finished:
        shown.add_row("not finished", "the same command continues")
    return shown


def next_command(run: SearchRun) -> str:
    """Return the command that trains the cells that were found, in the size that they were searched in; "" if none."""
    if run.result.genotype is None:
        return ""
    request, task = run.request, run.task
    data = f"--dataset {request.dataset}" + (f" --data-file {request.data_file}" if request.data_file else "")
    size = f"--set net.channels={task.channels}"
    size += f" --set net.layers={task.layers}" if isinstance(run.result.genotype, Genotype) else ""
    return f"biorobust train --genotype {run.genotype_file} {data} {size}{run.engine.network_changes()}"


def draw_search(run: SearchRun) -> None:
    """Draw the course of a search and what it found into its folder, as PNG and SVG."""
    genotype = run.result.genotype
    draw = draw_motif_trace if isinstance(run.task.space, MotifSpace) else draw_trace
    draw(run.result.trace, run.folder)
    if isinstance(genotype, Genotype):
        draw_cells(genotype, run.folder)
    elif genotype is not None:
        reductions = reduction_cells(len(genotype.cells), getattr(run.engine, "coding", "direct"))
        draw_motifs(genotype, reductions, run.folder)
