"""An append-only folder of results, keyed by what was measured."""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robustbench_bio.core.documents import parse_json
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import read_file, write_atomically
from robustbench_bio.records.base import R, Record
from robustbench_bio.records.result import EvalSpec, Outcomes, Result

#: Bytes of a stored result: the outcomes of 100,000 examples take a tenth of this.
MAX_STORED = 100_000_000


class Store:
    """Results of finished measurements, and the finished batches of unfinished ones.

    Layout: `ROOT/<model>/<dataset>/<attack>-<norm>-<gradient>-<key>.json`, and beside it, while a measurement
    runs, a folder `….parts` with one file per batch. Each file carries the hash of its content, which is
    checked when it is read.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def path(self, spec: EvalSpec) -> Path:
        """Return where the result of `spec` lies once it is finished."""
        name = file_name(spec.attack, spec.threat.norm, str(spec.gradient), spec.key())
        return self.root / _plain(spec.model) / _plain(spec.dataset) / name

    def check_writable(self) -> None:
        """Raise `UserError` now rather than after the work if nothing can be written below the root."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise UserError(f"cannot write {self.root}: {error.strerror}: name another folder with --out") from None

    def get(self, spec: EvalSpec) -> Result | None:
        """Return the finished result of `spec`, or None.

        Raises:
            UserError: there is a file, but it was damaged or edited, or the folder cannot be read.
        """
        path = self.path(spec)
        try:
            if not path.is_file():
                return None
        except OSError as error:
            raise UserError(f"cannot read {path.parent}: {error.strerror}: name another folder with --out") from None
        result = unseal(Result, path)
        if result is None or result.spec != spec or len(result.outcomes_record) != spec.n:
            raise UserError(f"{path} does not match its own hash or spec: it was damaged or edited, delete it")
        return result.model_copy(update={"from_store": True})

    def put(self, result: Result) -> Path:
        """Write a finished result, forget its parts, and return its path."""
        path = self.path(result.spec)
        write_atomically(path, seal(result))
        shutil.rmtree(self._parts(result.spec), ignore_errors=True)
        return path

    def put_part(self, spec: EvalSpec, outcomes: Outcomes) -> None:
        """Write the outcomes of one finished batch."""
        write_atomically(self._parts(spec) / f"{outcomes.sha256()[:16]}.json", seal(outcomes))

    def parts(self, spec: EvalSpec) -> list[Outcomes]:
        """Return the finished batches of an unfinished measurement; files that fail their hash are skipped."""
        parts = (unseal(Outcomes, path) for path in sorted(self._parts(spec).glob("*.json")))
        return [part for part in parts if part is not None]

    def recall(self, question: Record, name: str, cls: type[R]) -> R | None:
        """Return what `remember` kept as the answer to a question; None where it kept nothing, or it was edited."""
        return unseal(cls, self._memory(question, name))

    def remember(self, question: Record, name: str, answer: Record) -> None:
        """Keep an answer that can be worked out again, such as a diagnosis, beside the results."""
        write_atomically(self._memory(question, name), seal(answer))

    def _memory(self, question: Record, name: str) -> Path:
        return self.root / "diagnoses" / f"{_plain(name)}-{question.sha256()[:16]}.json"

    def _parts(self, spec: EvalSpec) -> Path:
        return self.path(spec).with_suffix(".parts")


def file_name(attack: str, norm: str, gradient: str, key: str) -> str:
    """Return the file of a measurement: what it is, for people, and its key."""
    return f"{attack}-{norm}-{_plain(gradient)}-{key[:16]}.json"


def _plain(name: str) -> str:
    """Return a name that is one safe folder; the key tells apart what this makes equal."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "_"


def seal(record: Record) -> bytes:
    """Return a record and the hash of its content, as a file holds them."""
    body = record.canonical()
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"sha256":"{digest}","record":{body}}}\n'.encode()


def unseal(cls: type[R], path: Path) -> R | None:
    """Return the record in a file; None where there is none, or it was damaged or edited."""
    try:
        return cls.model_validate(sealed_record(path))
    except (ValidationError, UserError):
        return None


def sealed_record(path: Path) -> dict[str, Any] | None:
    """Return the document in a file whose hash is that of its content, None for any other file."""
    try:
        sealed = parse_json(read_file(path, MAX_STORED), str(path))
        record = sealed["record"]
        body = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
        right = hashlib.sha256(body.encode()).hexdigest() == sealed["sha256"]
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if right and isinstance(record, dict) else None
