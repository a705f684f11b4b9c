"""Files: read only if they are plain and of a size, written whole or not at all."""

import contextlib
import csv
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from robustbench_bio.core.errors import UserError


def default_home() -> Path:
    """Return the folder for data and results: $BIOROBUST_HOME, or ~/.cache/biorobust."""
    return Path(os.environ.get("BIOROBUST_HOME") or "~/.cache/biorobust").expanduser()


@contextlib.contextmanager
def opened(path: Path, most: int) -> Iterator[io.BufferedReader]:
    """Open a regular file of at most `most` bytes: how the package reads whatever others may have put there.

    A link is followed. A pipe or a device is refused without a byte of it being read, and without waiting for one.

    Raises:
        UserError: not there, not a regular file, too large, or not readable.
    """
    try:
        # Without O_NONBLOCK the call would wait until somebody writes to a pipe; Windows has neither.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UserError(f"cannot read {path}: {_reason(error)}: check the path") from None
    state = os.fstat(number)
    if not stat.S_ISREG(state.st_mode) or state.st_size > most:
        os.close(number)
        if stat.S_ISREG(state.st_mode):
            raise UserError(_too_large(path, most, f"{state.st_size:,}"))
        raise UserError(f"cannot read {path}: expected a file, got {_kind(state.st_mode)}: check the path")
    with os.fdopen(number, "rb") as file:
        yield file


def read_file(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file, of which there may be `most`; raises `UserError` as `opened`."""
    with opened(path, most) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise UserError(f"cannot read {path}: {_reason(error)}") from None
    if len(data) > most:  # it grew, or says nothing of its size, as files in /proc do
        raise UserError(_too_large(path, most, "more"))
    return data


def read_text(path: Path, most: int) -> str:
    """Return the text of a file in UTF-8; raises `UserError` for any other, and as `opened`."""
    try:
        return read_file(path, most).decode()
    except UnicodeDecodeError:
        raise UserError(f"cannot read {path}: expected text in UTF-8, got other bytes: mend it") from None


@contextlib.contextmanager
def parsing(problem: str, remedy: str) -> Iterator[None]:
    """Turn whatever a parser raises on a file of strangers into a `UserError`: problem, reason, remedy.

    Parsers document a part of what they raise: zipfile adds RuntimeError, numpy's headers whatever Python's own do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{problem}: {reason}: {remedy}") from error


def _too_large(path: Path, most: int, got: str) -> str:
    return f"{path}: expected a file of at most {most:,} bytes, got {got}: not what it is taken for"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


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
