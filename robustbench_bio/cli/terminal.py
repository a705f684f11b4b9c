"""What commands print with: tables on stdout, progress and complaints on stderr."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from rich import progress as bars
from rich.console import Console, RenderableType

from robustbench_bio.core.progress import Progress

#: Seconds that nobody needs a progress bar for; without a terminal those before the first line and between lines.
_LATE, _FIRST, _EVERY = 2.0, 10.0, 30.0

#: Seconds over which a bar's speed is taken: a step of a large network may last for minutes.
_SPEED_PERIOD = 600.0

# What stands in brackets is text (norms, paths, patterns of layers), never markup.
out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)


def print_document(document: dict[str, Any]) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")


def print_result(as_json: bool, document: dict[str, Any], table: RenderableType) -> None:
    """Print a document or, for people, a table."""
    if as_json:
        print_document(document)
    else:
        out.print(table)


@contextlib.contextmanager
def progress_shown(doing: str, *, late: bool = False, epochs: bool = False) -> Iterator[Progress]:
    """Show on stderr how far the block has come: a bar with the time left, or now and then a line without a terminal.

    Args:
        doing: what the block does, such as "training".
        late: show no bar before the block has run for two seconds.
        epochs: also print a line whenever the text on what runs changes, as that of a training does after an epoch.
    """
    if not err.is_terminal:
        yield _Lines(doing, each_text=epochs)
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[line]}", markup=False),
    )
    bar = bars.Progress(*columns, console=err, transient=True, speed_estimate_period=_SPEED_PERIOD)
    task = bar.add_task(doing, total=None, line="")
    begun = time.monotonic()

    def show(done: int, total: int, line: str, /) -> None:
        if not bar.live.is_started and time.monotonic() - begun > _LATE:
            bar.start()
        bar.update(task, completed=done, total=total, line=line)

    if not late:
        bar.start()
    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


class _Lines:
    """Progress for a log: a line after ten seconds, then one every thirty at most."""

    def __init__(self, doing: str, *, each_text: bool) -> None:
        self.doing, self.each_text = doing, each_text
        self.due = time.monotonic() + _FIRST
        # Work that continues starts with much done already: the speed is that since the first call.
        self.start: tuple[float, int] | None = None
        self.last = ""

    def __call__(self, done: int, total: int, line: str, /) -> None:
        """Take note, and print a line if it is time to."""
        now = time.monotonic()
        self.start = self.start or (now, done)
        changed, self.last = self.each_text and line != self.last, line
        if changed or now >= self.due:
            self.due = now + _EVERY
            parts = [f"{self.doing}: {done:,} of {total:,}", self._left(now, done, total), line]
            err.print(", ".join(filter(None, parts)), highlight=False, soft_wrap=True)

    def _left(self, now: float, done: int, total: int) -> str:
        begun, before = self.start or (now, done)
        if done <= before:
            return ""
        return f"{timedelta(seconds=round((now - begun) * (total - done) / (done - before)))} left"
