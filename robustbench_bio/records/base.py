"""Everything that is written to disk: strict when read, canonical when written, one content hash."""

import hashlib
import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Tag, ValidationError

from robustbench_bio.core.documents import MAX_TOML_FILE, parse_json, parse_toml
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import read_text
from robustbench_bio.core.registry import shortened, unknown

Precision = Literal["float32", "bfloat16"]
Scalar = bool | int | float | str

#: What pydantic calls the kinds of a `Scalar` or a list, in words.
_KINDS = {"bool": "true or false", "float": "a finite number", "str": "a text", "list[int]": "a list of whole numbers"}
_ID = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*")
R = TypeVar("R", bound="Record")


def _identifier(value: str) -> str:
    if not _ID.fullmatch(value) or len(value) > 64:
        raise ValueError("expected lower-case letters, digits, '-' and '.', at most 64 characters")
    return value


def _file_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value):
        raise ValueError("expected a plain file name without folders")
    return value


def _genotype_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError(
            f"expected up to 100 letters, digits, dots, dashes and underscores, got {value[:120]!r}: rename it"
        )
    return value


#: Characters of a text that people read; summaries of the zoo have a fifth of this.
MAX_TEXT = 2000


def _text(value: str) -> str:
    if len(value) > MAX_TEXT or not all(letter.isprintable() or letter == "\n" for letter in value):
        remedy = "shorten it, or remove control characters"
        raise ValueError(f"expected printable text of at most {MAX_TEXT:,} characters, got {value[:40]!r}: {remedy}")
    return value


#: A version as PEP 440 has it, without an epoch: what stands on a page should be nothing else.
_VERSION = (
    r"^[0-9]{1,9}(\.[0-9]{1,9}){0,5}((a|b|rc)[0-9]{1,9})?(\.post[0-9]{1,9})?(\.dev[0-9]{1,9})?(\+[a-z0-9.]{1,40})?$"
)


def _whole(value: object) -> object:
    if type(value) is not int:
        raise ValueError("expected a whole number")
    return value


#: Of specs and entries; a literal alone would take 2.0 as well.
SecondSchema = Annotated[Literal[2], BeforeValidator(_whole)]
Text = Annotated[str, AfterValidator(_text)]
Version = Annotated[str, Field(pattern=_VERSION)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Identifier = Annotated[str, AfterValidator(_identifier)]
FileName = Annotated[str, AfterValidator(_file_name)]
GenotypeName = Annotated[str, AfterValidator(_genotype_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction01 = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Base of all records: no unknown fields, no coercion between kinds, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    form: ClassVar[str] = ""
    """How its fields are written: closes errors in pydantic's own words."""

    def canonical(self) -> str:
        """Return the one JSON text of this record: sorted keys, no spaces, shortest float form."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def sha256(self) -> str:
        """Return the hash of the canonical text."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @classmethod
    def from_toml(cls, text: str, where: str = "document") -> Self:
        """Read a record from TOML text; `where` names it in errors."""
        return cls.read(parse_toml(text, where), f"{where}: ")

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Read a record from JSON text; `where` names it in errors."""
        parse_json(text, where)  # pydantic's own reader takes the last of two equal keys
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise UserError(f"{where}: {first_error(error, cls)}") from None

    @classmethod
    def read(cls, document: dict[str, Any], where: str = "") -> Self:
        """Return a record from plain dicts, lists and scalars, or raise `UserError`, which starts with `where`."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise UserError(where + first_error(error, cls)) from None

    def to_toml(self) -> str:
        """Return the record as TOML, unset and default fields left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, exclude_defaults=True))


def first_error(error: ValidationError, record: type[BaseModel]) -> str:
    """Return the first problem of a validation in one line: field, what was wrong or expected, what came."""
    # A default that waits for a faulty field is no mistake of the user's.
    problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
    problem, place = problems[0], problems[0]["loc"]
    got = reprlib.repr(problem["input"])
    if place[-1:] == ("bool",):  # a field of several kinds: pydantic complains once for each
        place = place[:-1]
        kinds = [str(p["loc"][len(place)]) for p in problems if p["loc"][: len(place)] == place]
        message = f"expected {', '.join(_KINDS[kind] for kind in dict.fromkeys(kinds) if kind in _KINDS)}, got {got}"
    elif problem["type"] == "missing":
        message = "expected a value, got none: add this field"
    elif problem["type"] == "extra_forbidden":
        message = unknown("field", str(place[-1]), _fields(record, place[:-1]))
    else:
        message = str(problem["msg"]).removeprefix("Value error, ")
        if ", got " not in message:
            message += f", got {got}"
        if problem["type"] != "value_error" and (form := getattr(record, "form", "")):
            message += f": {form}"
    others = sum(p["loc"][: len(place)] != place for p in problems)
    rest = f" (and {others} more)" if others else ""
    return f"field {shortened('.'.join(map(str, place))) or 'document'!r}: {message}{rest}"


def _fields(record: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Return the fields of the record that stands at `place` within `record`."""
    kinds: dict[str, type[BaseModel]] = {}
    for part in place:
        field = record.model_fields.get(str(part))
        if field is None:  # a place in a list, or a kind of the field before
            record = kinds.get(str(part), record)
        else:
            record, kinds = next(_records(field.annotation), record), dict(_tagged(field.annotation))
    return list(record.model_fields)


def _records(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _records(inner)


def _tagged(annotation: object) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield name and record of every kind that a field of several tags."""
    inside = get_args(annotation)
    for tag in inside:
        if isinstance(tag, Tag):
            yield tag.tag, inside[0]
        yield from _tagged(tag)


def read_document(path: Path) -> dict[str, Any]:
    """Return the document of a TOML file, or raise `UserError`."""
    return parse_toml(read_text(path, MAX_TOML_FILE), str(path))


def read_toml(cls: type[R], path: Path) -> R:
    """Read a record from a TOML file; raises `UserError` naming the file and the field."""
    return cls.read(read_document(path), f"{path}: ")
