"""Files that are written whole or not at all."""

import contextlib
import csv
import io
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from robustbench_bio.core.errors import UserError


def default_home() -> Path:
    """Return the folder for data and results: $BIOROBUST_HOME, or ~/.cache/biorobust."""
    return Path(os.environ.get("BIOROBUST_HOME") or "~/.cache/biorobust").expanduser()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that any reader, after any crash, sees either all of it or what was there before.

    Raises:
        UserError: the folder cannot be written.
    """
    # Not tempfile.mkstemp, whose files nobody else may read whatever the umask says.
    half = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = half.open("xb")
    except OSError as error:
        raise UserError(f"cannot write {path.parent}: {error.strerror}: name another folder with --out") from None
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            half.unlink()
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        raise


def csv_text(rows: Iterable[Mapping[str, object]], fields: Sequence[str], line_end: str = "\n") -> str:
    """Return rows as CSV under a head of fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows of equal columns as CSV with a header; nothing without rows.

    Raises:
        UserError: the folder cannot be written.
    """
    if rows:
        write_atomically(path, csv_text(rows, list(rows[0]), "\r\n").encode())
