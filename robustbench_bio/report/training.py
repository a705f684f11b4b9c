"""What a training shows: table, JSON document, and the plot of its history."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from robustbench_bio.report.figures import new_figure, write_figure
from robustbench_bio.training.run import TrainingRun


def document(run: TrainingRun) -> dict[str, Any]:
    """Return the JSON document of `biorobust train --json`."""
    return {
        "model": run.card.id,
        "folder": str(run.folder),
        "finished": run.training.finished,
        "step": run.training.step,
        "steps": run.training.steps,
        "best_epoch": run.training.best_epoch,
        "val_accuracy": run.training.val_accuracy,
        "history": run.training.history,
    }


def table(run: TrainingRun) -> Table:
    """Return what a person wants to know after a training."""
    training = run.training
    shown = Table(title=f"{run.card.id}, trained by {run.card.rule}", show_header=False)
    shown.add_row("steps", f"{training.step} of {training.steps}")
    if training.history:
        shown.add_row("last train loss", f"{training.history[-1]['train_loss']:.4f}")
    if training.val_accuracy is not None:
        shown.add_row("held-out accuracy", f"{100 * training.val_accuracy:.1f} % (epoch {training.best_epoch})")
    if training.finished:
        data = "" if run.dataset == "digits" else f" --dataset {run.dataset}"
        shown.add_row("try it", f"biorobust eval --model {run.folder / run.card.id}.toml{data}")
    else:
        shown.add_row("not finished", "the same command continues")
    return shown


def draw_history(history: Sequence[dict[str, float]], folder: Path) -> None:
    """Draw a training's history as history.png and history.svg; nothing for an empty history."""
    if not history:
        return
    epochs = [row["epoch"] for row in history]
    figure, (loss, accuracy) = new_figure(columns=2)
    loss.plot(epochs, [row["train_loss"] for row in history], label="train")
    loss.set(xlabel="epoch", ylabel="loss")
    for name in ("train_accuracy", "val_accuracy"):
        if name in history[0]:
            accuracy.plot(epochs, [100 * row[name] for row in history], label=name.split("_")[0])
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    accuracy.legend()
    write_figure(figure, folder / "history")
