"""What commands print with: tables on stdout, progress and complaints on stderr."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: Seconds that nobody needs a progress bar for.
_SOON = 2.0

# What stands in brackets is text (norms, paths, patterns of layers), never markup.
out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)


def document(found: dict[str, Any]) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")


def show(as_json: bool, found: dict[str, Any], table: RenderableType) -> None:
    """Print a document or, for people, a table."""
    if as_json:
        document(found)
    else:
        out.print(table)


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar with an estimate on stderr while the block runs, if somebody is there to look."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[line]}"))  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        task = shown.add_task(what, total=None, line="")
        yield lambda done, total, line: shown.update(task, completed=done, total=total, line=line)


@contextlib.contextmanager
def late_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a progress bar as `bar` does, but only once the block has run for two seconds."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        bars: list[Callable[[int, int, str], None]] = []

        def progress(done: int, total: int, line: str) -> None:
            if not bars and time.monotonic() - started > _SOON:
                bars.append(stack.enter_context(bar(what)))
            for one in bars:
                one(done, total, line)

        yield progress
