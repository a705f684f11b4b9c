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
    ValidationError,
    ValidationInfo,
    field_validator,
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
    for part in place:
        field = record.model_fields.get(str(part))
        record = next(iter(_records(field.annotation)), record) if field else record
    return list(record.model_fields)


def _records(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _records(inner)


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


class Adversary(Record):
    """The attack that an adversarially trained network learns against."""

    attack: Literal["pgd", "tpgd"] = "pgd"
    eps: Fraction01
    steps: int = Field(default=7, ge=1)
    step_size: float | None = Field(default=None, gt=0)
    beta: float = Field(default=6.0, gt=0)
    """Weight of the KL term under tpgd (TRADES, Zhang et al. 2019, eq. 5)."""


class Recipe(Record):
    """How a network is trained; everything that decides the weights, together with the seed."""

    epochs: int = Field(default=50, ge=1)
    batch_size: int = Field(default=64, ge=1)
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=3e-4, ge=0)
    warmup_epochs: float = Field(default=0.0, ge=0)
    grad_clip: float | None = Field(default=5.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    crop: int = Field(default=0, ge=0)
    """Random shift by up to this many pixels, zero padded."""
    flip: bool = False
    cutout: int = Field(default=0, ge=0)
    """Side of the square that is set to zero, in pixels."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    drop_path_schedule: Literal["linear", "constant"] = "linear"
    auxiliary_weight: float = Field(default=0.0, ge=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    select: Literal["best", "last"] = "best"
    """Which epoch's weights are kept: the best on the held-out part of train, or the last."""
    init: Literal["one-law", "ruled-only", "network"] = "one-law"
    """Weights drawn from the feedback's law everywhere, in ruled layers only, or as the network was built."""
    precision: Precision = "float32"
    adversary: Adversary | None = None


class TrainedNet(Record):
    """One network of a card: its size, weights and training for one data set."""

    net: dict[str, Scalar | list[int]] = Field(default_factory=dict)
    seed: int = 0
    recipe: Recipe
    weights: FileName | None = None
    weights_sha256: Sha256 | None = None
    trained_on: str = ""
    val_accuracy: Fraction01 | None = None

    @model_validator(mode="after")
    def _weights_have_a_hash(self) -> Self:
        if (self.weights is None) != (self.weights_sha256 is None):
            raise ValueError("expected weights and weights_sha256 together")
        return self


class ModelCard(Record):
    """A network of the zoo: architecture, rules, and what was trained for each data set."""

    id: Identifier
    title: str
    summary: str = ""
    reference: str = ""
    licence: str = "MIT"
    rule: str = "genotype"
    """Assignment of rules to layers, in the syntax of `rules.resolve`."""
    rule_options: dict[str, Scalar] = Field(default_factory=dict)
    net: dict[str, Scalar | list[int]]
    """`name` of the network and parameters that hold for every data set."""
    datasets: dict[str, TrainedNet] = Field(default_factory=dict)


class Radius(Record):
    """A threat model as a preset names it."""

    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    eps: str

    @field_validator("eps")
    @classmethod
    def _a_radius(cls, eps: str, info: ValidationInfo) -> str:
        _checked([eps], info)
        return eps

    def value(self) -> float:
        """Return eps in input units, pixels for l0."""
        return parse_eps(self.eps)


class PresetCell(Record):
    """One attack of a preset, to be run at each radius and with each gradient."""

    attack: Identifier
    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    eps_unit: Literal["input", "normalised"] = "input"
    """normalised: eps and the attack's lengths are in units of the data set's mean standard deviation."""
    eps: list[str] = Field(min_length=1)
    """Radii as people write them, such as "8/255"; whole pixels for l0."""
    gradients: list[GradientText] = Field(default=["rule", "exact"], min_length=1)
    """Networks without rules are not attacked with "rule"."""
    params: dict[str, Scalar] = Field(default_factory=dict)

    @field_validator("eps")
    @classmethod
    def _radii_once_each(cls, eps: list[str], info: ValidationInfo) -> list[str]:
        radii = _checked(eps, info)
        if len(set(radii)) < len(radii):
            raise ValueError("expected each radius once")
        return eps

    @field_validator("gradients")
    @classmethod
    def _gradients_once_each(cls, gradients: list[GradientText]) -> list[GradientText]:
        if len(set(gradients)) < len(gradients):
            raise ValueError("expected each gradient once")
        return gradients

    @model_validator(mode="after")
    def _pixels_have_no_unit(self) -> Self:
        if self.norm == "l0" and self.eps_unit == "normalised":
            raise ValueError("expected eps_unit input for l0, which counts pixels, got 'normalised'")
        return self


class AttackPreset(Record):
    """Attacks to run on many networks, and how the networks are ranked."""

    name: Identifier
    title: str
    summary: str = ""
    reference: str = ""
    n_examples: int | None = Field(default=None, ge=1)
    """First N of the test split; all by default."""
    probe_examples: int = Field(default=64, ge=1)
    """Correctly classified examples that the probe before the attacks looks at; more where the attacks take long."""
    rank_by: Radius | None = None
    """Threat model whose worst case ranks the networks; the first radius of the first cell by default."""
    robust_meter: Literal["separate", "shared"] = "separate"
    """shared: show also the mean of clean and robust accuracy, which some released code reports as robust accuracy."""
    cells: list[PresetCell] = Field(min_length=1)

    @model_validator(mode="after")
    def _cells_once_each(self) -> Self:
        seen = [
            (cell.attack, cell.norm, cell.eps_unit, parse_eps(eps), gradient, sorted(cell.params.items()))
            for cell in self.cells for eps in cell.eps for gradient in cell.gradients
        ]  # fmt: skip
        twice = next((one for i, one in enumerate(seen) if one in seen[:i]), None)
        if twice:
            raise ValueError(f"expected each measurement once, got {twice[0]} {twice[1]} {twice[3]:g} {twice[4]} twice")
        return self

    @model_validator(mode="after")
    def _every_network_has_a_rank(self) -> Self:
        chosen = self.headline()
        reached = [
            (cell.norm, parse_eps(eps))
            for cell in self.cells if cell.eps_unit == "input" and "exact" in cell.gradients for eps in cell.eps
        ]  # fmt: skip
        if (chosen.norm, chosen.value()) not in reached:
            raise ValueError(
                "expected rank_by to name a radius, in input units, of a cell with the exact gradient, "
                f"got {chosen.norm} {chosen.eps}"
            )
        return self

    def headline(self) -> Radius:
        """Return the threat model whose worst case ranks the networks."""
        return self.rank_by or Radius(norm=self.cells[0].norm, eps=self.cells[0].eps[0])


def _checked(eps: Sequence[str], info: ValidationInfo) -> list[float]:
    """Return radii as numbers; ValueError for one that the norm beside it does not take."""
    norm = info.data.get("norm", "l2")
    # Only pixels and input units have a largest or smallest radius.
    norm = "l2" if info.data.get("eps_unit") == "normalised" else norm
    try:
        return [check_eps(parse_eps(text), norm) for text in eps]
    except UserError as error:
        raise ValueError(str(error)) from None


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
