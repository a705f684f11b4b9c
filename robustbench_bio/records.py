"""Everything that is written to disk: strict when read, canonical when written, one content hash."""

import hashlib
import json
import math
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from robustbench_bio import __version__
from robustbench_bio.errors import UserError
from robustbench_bio.gradients import Gradient
from robustbench_bio.registry import unknown
from robustbench_bio.toml import parse_toml, read_text

if TYPE_CHECKING:
    import pandas as pd

    from robustbench_bio.stats import Interval

Precision = Literal["float32", "bfloat16"]
Scalar = bool | int | float | str

#: What pydantic calls the kinds of a `Scalar` or a list, in words.
_KINDS = {
    "bool": "true or false",
    "float": "a finite number",
    "str": "a text",
    "list[int]": "a list of whole numbers",
}
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


def _gradient(value: str) -> str:
    try:
        return str(Gradient.read(value))
    except UserError as error:
        raise ValueError(str(error)) from None


#: The text of a gradient as `gradients.Gradient` writes it.
GradientText = Annotated[str, AfterValidator(_gradient)]
Identifier = Annotated[str, AfterValidator(_identifier)]
FileName = Annotated[str, AfterValidator(_file_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction01 = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Base of all records: no unknown fields, no coercion between kinds, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def canonical(self) -> str:
        """Return the one JSON text of this record: sorted keys, no spaces, shortest float form."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    def sha256(self) -> str:
        """Return the hash of the canonical text."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @classmethod
    def from_toml(cls, text: str, where: str) -> Self:
        """Read a record from TOML text; `where` names it in errors."""
        return cls.read(parse_toml(text, where), f"{where}: ")

    @classmethod
    def from_json(cls, text: str, where: str) -> Self:
        """Read a record from JSON text; `where` names it in errors."""
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
    problems = error.errors()
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
    others = sum(p["loc"][: len(place)] != place for p in problems)
    more = f" (and {others} more)" if others else ""
    return f"field {'.'.join(map(str, place)) or 'document'!r}: {message}{more}"


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


def parse_eps(text: str) -> float:
    """Read one radius: `8/255`, `0.03`.

    Raises:
        UserError: not a number.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        eps = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        eps = math.nan
    if not math.isfinite(eps):
        raise UserError(f"expected eps as a number or a fraction such as 8/255, got {text!r}")
    return eps


def format_eps(eps: float, norm: str) -> str:
    """Return a radius as people write it: linf in 255ths where that is exact, pixels for l0."""
    if norm == "l0":
        return f"{eps:g} px"
    steps = eps * 255
    if norm == "linf" and math.isclose(steps, round(steps, 2), rel_tol=1e-9):
        return f"{round(steps, 2):g}/255"
    return f"{eps:g}"


def check_eps(eps: float, norm: str) -> float:
    """Return `eps` if it is a sensible radius for `norm`, else raise `UserError` with the remedy."""
    if norm == "l0":
        if not eps >= 1 or not float(eps).is_integer():
            raise UserError(f"expected eps as a whole number of pixels for l0, got {eps:g}")
    elif not eps > 0 or not math.isfinite(eps):
        raise UserError(f"expected eps > 0, got {eps:g}")
    elif norm == "linf" and eps > 1:
        raise UserError(f"expected eps in (0, 1], got {eps:g}: eps is in input units, did you mean {eps:g}/255?")
    return eps


class EvalSpec(Record):
    """What is measured. Equal specs have equal outcomes, so the hash of a spec is its key in a store."""

    schema_version: Literal[1] = 1
    version: str = __version__
    model: str
    weights_sha256: Sha256
    """Hash of every parameter and buffer and of the architecture's description."""
    dataset: str
    split: str
    n: int = Field(ge=1)
    data_sha256: Sha256
    """Hash of pixels, labels and rows of the slice."""
    attack: str
    params: dict[str, Scalar | None]
    norm: Literal["linf", "l2", "l1", "l0"]
    eps: float = Field(ge=0)
    gradient: GradientText
    backend: str = "native"
    precision: Precision
    seed: int
    votes: int = Field(default=1, ge=1)
    """Forward passes whose mean answer counts; 1 for a network that always answers the same."""

    def key(self) -> str:
        """Return the hash that identifies this measurement."""
        return self.sha256()


class Outcomes(Record):
    """What happened to each example; columns of equal length."""

    id: list[int] = Field(default_factory=list)
    label: list[int] = Field(default_factory=list)
    clean_prediction: list[int] = Field(default_factory=list)
    adversarial_prediction: list[int] = Field(default_factory=list)
    """Equal to the clean prediction where the example was wrong from the start and so not attacked."""
    distance: list[float] = Field(default_factory=list)
    """Size of the perturbation in the threat's norm."""
    queries: list[int] = Field(default_factory=list)
    """Forward passes that the attack spent on this example."""
    steps: list[int] = Field(default_factory=list)

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in type(self).model_fields}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"expected columns of equal length, got {lengths}")
        return self

    def __len__(self) -> int:
        return len(self.id)

    @classmethod
    def joined(cls, parts: Sequence["Outcomes"], order: Sequence[int]) -> "Outcomes":
        """Return the rows of all parts in the order of example ids given."""
        where = {row: (part, i) for part in parts for i, row in enumerate(part.id)}
        rows = [where[row] for row in order]
        return cls(**{name: [getattr(part, name)[i] for part, i in rows] for name in cls.model_fields})

    def clean_correct(self) -> list[bool]:
        """Tell for each example whether the clean input is classified correctly."""
        return [p == y for p, y in zip(self.clean_prediction, self.label, strict=True)]

    def robust_correct(self) -> list[bool]:
        """Tell for each example whether clean and adversarial input are both classified correctly."""
        pairs = zip(self.clean_correct(), self.adversarial_prediction, self.label, strict=True)
        return [clean and p == y for clean, p, y in pairs]

    def frame(self) -> "pd.DataFrame":
        """Return one row per example, with the two correctness columns."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in type(self).model_fields}
        return pd.DataFrame(columns | {"clean": self.clean_correct(), "robust": self.robust_correct()})


class Provenance(Record):
    """Where a result comes from; none of it takes part in the key."""

    seconds: float = Field(ge=0)
    device: str
    created: str
    packages: dict[str, str]
    notices: list[str] = Field(default_factory=list)


class Result(Record):
    """A spec, its outcomes and their provenance. All scores are functions of the outcomes."""

    spec: EvalSpec
    outcomes_record: Outcomes = Field(alias="outcomes")
    provenance: Provenance
    from_store: bool = Field(default=False, exclude=True)

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    @property
    def outcomes(self) -> "pd.DataFrame":
        """One row per example: id, label, predictions, distance, queries, steps, clean, robust."""
        return self.outcomes_record.frame()

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.outcomes_record)

    @property
    def clean_accuracy(self) -> float:
        """Fraction of examples classified correctly without an attack."""
        return sum(self.outcomes_record.clean_correct()) / self.n

    @property
    def robust_accuracy(self) -> float:
        """Fraction of examples classified correctly clean and under the attack."""
        return sum(self.outcomes_record.robust_correct()) / self.n

    @property
    def ci95(self) -> "Interval":
        """Wilson 95 % interval of the robust accuracy."""
        from robustbench_bio.stats import wilson

        return wilson(sum(self.outcomes_record.robust_correct()), self.n)

    @property
    def success_rate(self) -> float | None:
        """Fraction of the correctly classified examples that the attack turned; None if there were none."""
        clean = sum(self.outcomes_record.clean_correct())
        return None if clean == 0 else 1 - sum(self.outcomes_record.robust_correct()) / clean

    @property
    def queries_mean(self) -> float:
        """Forward passes per attacked example."""
        clean = self.outcomes_record.clean_correct()
        spent = [q for q, attacked in zip(self.outcomes_record.queries, clean, strict=True) if attacked]
        return sum(spent) / len(spent) if spent else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the row of the command line's JSON document."""
        return {
            "attack": self.spec.attack,
            "norm": self.spec.norm,
            "eps": self.spec.eps,
            "gradient": self.spec.gradient,
            "backend": self.spec.backend,
            "robust_accuracy": self.robust_accuracy,
            "ci95": list(self.ci95),
            "success_rate": self.success_rate,
            "queries_mean": self.queries_mean,
            "seconds": self.provenance.seconds,
            "from_store": self.from_store,
            "key": self.spec.key(),
        }


def read_toml(cls: type[R], path: Path) -> R:
    """Read a record from a TOML file, or raise `UserError`."""
    try:
        return cls.from_toml(read_text(path), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
