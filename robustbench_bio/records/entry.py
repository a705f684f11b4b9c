"""What a board and its entries are, as files: everything a reader needs to recompute a row, and nothing else."""

import base64
import binascii
import datetime
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from robustbench_bio.core.stats import all_of, wilson
from robustbench_bio.records.base import Identifier, Record, Seconds, SecondSchema, Sha256, Text
from robustbench_bio.records.board import MAX_EXAMPLES
from robustbench_bio.records.card import ModelCard
from robustbench_bio.records.diagnosis import Belief, Verdict
from robustbench_bio.records.genotype import Genotype
from robustbench_bio.records.kinds import kind_of
from robustbench_bio.records.motifs import MotifGenotype
from robustbench_bio.records.result import EvalSpec, Outcomes, Provenance, Result
from robustbench_bio.records.threat import Threat

#: Entries of a newer schema are refused: what they mean is not known here.
SCHEMA: Literal[2] = 2


def _bytes(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("expected base64") from None
    return text


Base64 = Annotated[str, AfterValidator(_bytes)]


#: A genotype of either kind; its errors name the one that it is read as.
EitherGenotype = Annotated[
    Annotated[Genotype, Tag("cells")] | Annotated[MotifGenotype, Tag("motifs")], Discriminator(kind_of)
]


def pack(bits: Sequence[bool]) -> str:
    """Return bools as base64 of bytes, eight in each, the first in the highest bit, zeros at the end."""
    return base64.b64encode(np.packbits(np.array(bits, bool)).tobytes()).decode()


def unpack(text: str, n: int) -> list[bool]:
    """Return the n bools that `pack` wrote; `ValueError` for no base64, another length or a bit behind the last one."""
    data = base64.b64decode(text, validate=True)
    bits: list[bool] = np.unpackbits(np.frombuffer(data, np.uint8)).astype(bool).tolist()
    if len(data) != -(-n // 8) or any(bits[n:]):
        raise ValueError(f"expected {n} packed bits, got {len(data)} bytes")
    return bits[:n]


class Measured(Record):
    """One attack on one network: what was asked, and for each example whether it is robust."""

    spec: EvalSpec
    clean: Base64
    """Packed bits: is the clean example classified correctly?"""
    robust: Base64
    """Packed bits: is it classified correctly both clean and under the attack?"""
    queries_mean: float = Field(ge=0, le=1e12)
    """Forward passes for an example that was attacked, that is, for one that is right clean."""
    seconds: Seconds

    @model_validator(mode="after")
    def _bits_fit(self) -> Self:
        if self.spec.n > MAX_EXAMPLES:
            raise ValueError(f"expected at most {MAX_EXAMPLES:,} examples, got {self.spec.n:,}")
        pairs = zip(unpack(self.clean, self.spec.n), unpack(self.robust, self.spec.n), strict=True)
        if any(robust and not clean for clean, robust in pairs):
            raise ValueError("expected no example to be robust that is wrong clean")
        return self

    @classmethod
    def of(cls, result: Result) -> Self:
        """Return what an entry keeps of a result."""
        outcomes = result.outcomes_record
        return cls(
            spec=result.spec, clean=pack(outcomes.clean_correct()), robust=pack(outcomes.robust_correct()),
            queries_mean=result.queries_mean, seconds=result.provenance.seconds,
        )  # fmt: skip

    def clean_correct(self) -> list[bool]:
        """Tell for each example whether it is classified correctly without an attack."""
        return unpack(self.clean, self.spec.n)

    def robust_correct(self) -> list[bool]:
        """Tell for each example whether it is classified correctly clean and under the attack."""
        return unpack(self.robust, self.spec.n)

    def result(self) -> Result:
        """Return a result of the same outcomes; class 0 stands for what is right, 1 for what is wrong."""
        n = self.spec.n
        outcomes = Outcomes(
            id=list(range(n)), label=[0] * n, clean_prediction=[int(not right) for right in self.clean_correct()],
            adversarial_prediction=[int(not right) for right in self.robust_correct()],
            distance=[0.0] * n, queries=[0] * n, steps=[0] * n,
        )  # fmt: skip
        provenance = Provenance(seconds=self.seconds, device="", created="", packages={})
        return Result(spec=self.spec, outcomes_record=outcomes, provenance=provenance)

    @property
    def robust_accuracy(self) -> float:
        """Fraction of examples classified correctly clean and under the attack."""
        return sum(self.robust_correct()) / self.spec.n


class Finding(Record):
    """Both answers of a diagnosis, in short: see `Diagnosis`."""

    verdict: Verdict
    reason: Text
    number: Belief = "inconclusive"
    number_reason: Text = ""
    flags: list[Identifier] = Field(default_factory=list, max_length=64)
    n: int = Field(ge=0, le=MAX_EXAMPLES)


class Gallery(Record):
    """A few adversarial examples to look at: PGD at the board's radius."""

    eps: float = Field(gt=0)
    shape: tuple[int, int, int]
    """Channels, height, width."""
    ids: list[int] = Field(min_length=1, max_length=16)
    labels: list[int]
    predictions: list[int]
    """Of the adversarial examples."""
    x: Base64
    """Clean images, uint8 [n, C, H, W]."""
    delta: Base64
    """Perturbations as int8 [n, C, H, W] in units of eps/127."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        n = len(self.ids)
        if len(set(self.ids)) < n:
            raise ValueError("expected each id once")
        if not len(self.labels) == len(self.predictions) == n:
            raise ValueError("expected a label and a prediction for each id")
        size = n * math.prod(self.shape)
        for name in ("x", "delta"):
            if (got := len(base64.b64decode(getattr(self, name)))) != size:
                raise ValueError(f"expected {size} bytes in {name!r}, got {got}")
        return self


class Scores(Record):
    """What is derived from the outcomes, written down for readers; `Entry` refuses any that do not follow."""

    clean_accuracy: float
    worst_case: float
    """Fraction of examples that are robust to every attack and gradient within the board's threat model."""
    ci95: tuple[float, float]
    """Wilson interval of the worst case."""

    def close_to(self, other: "Scores") -> bool:
        """Tell whether two scores are equal up to rounding."""
        pairs = zip(self._values(), other._values(), strict=True)
        return all(math.isclose(a, b, abs_tol=1e-9) for a, b in pairs)

    def _values(self) -> tuple[float, ...]:
        return self.clean_accuracy, self.worst_case, *self.ci95


class Entry(Record):
    """One row of a board.

    Raises (on reading):
        UserError: scores that do not follow from the outcomes, measurements of different networks or examples, a card
            of another id, a newer schema.
    """

    schema_version: SecondSchema = SCHEMA
    board: Identifier
    model: Identifier
    card: ModelCard
    """With the network of the board's data set alone."""
    card_sha256: Sha256
    """Of the card as it stands here."""
    genotype: EitherGenotype | None = None
    """The cells or motifs, where the network has some."""
    weights_sha256: Sha256
    """Of the weights file."""
    measurements: list[Measured] = Field(min_length=1, max_length=1000)
    finding: Finding | None = None
    gallery: Gallery | None = None
    facts: dict[Text, float | Text] = Field(default_factory=dict, max_length=100)
    """Parameters, MACs, energy, share of weights under each rule: as `biorobust show` gives them."""
    rank_by: Threat
    scores: Scores
    provenance: Provenance
    commit: str = Field(default="", pattern=r"^([0-9a-f]{7,64}(-dirty)?)?$")
    """Of the checkout that measured, if it was one."""

    @field_validator("schema_version", mode="before")
    @classmethod
    def _known_schema(cls, version: object) -> object:
        if isinstance(version, int) and version > SCHEMA:
            raise ValueError(
                f"expected {SCHEMA}, got {version}: this entry is newer than robustbench-bio here, update it"
            )
        if version == 1:
            raise ValueError(f"expected {SCHEMA}, got 1: bring the board up to date with biorobust leaderboard migrate")
        return version

    @model_validator(mode="after")
    def _follows_from_its_outcomes(self) -> Self:
        if self.card.id != self.model:
            raise ValueError(f"expected a card of {self.model!r}, got one of {self.card.id!r}")
        if self.card.sha256() != self.card_sha256:
            raise ValueError("card_sha256 is not that of the card: the entry was edited")
        specs = [measured.spec for measured in self.measurements]
        if len({(s.network_sha256, s.data_sha256, s.n, s.dataset, s.model) for s in specs}) > 1:
            raise ValueError("expected measurements of one network on the same examples")
        if len({s.key() for s in specs}) < len(specs):
            raise ValueError("expected each measurement once")
        if specs[0].model != self.model:
            raise ValueError(f"expected measurements of {self.model!r}, got some of {specs[0].model!r}")
        if not self.scores.close_to(self.derived()):
            raise ValueError(f"scores do not follow from the outcomes, which give {self.derived().canonical()}")
        return self

    @model_validator(mode="after")
    def _provenance_is_plain(self) -> Self:
        source = self.provenance
        texts = [source.device, *source.notices, *itertools.chain(*source.packages.items())]
        for spec in (measured.spec for measured in self.measurements):
            params = itertools.chain(*spec.params.items())
            texts += [spec.split, spec.attack, spec.backend, *(part for part in params if isinstance(part, str))]
        if len(texts) > 50_000 or not all(text.isprintable() and len(text) <= 500 for text in texts):
            raise ValueError("expected plain lines of at most 500 characters in specs and provenance, got others")
        try:
            datetime.datetime.fromisoformat(source.created or "2000-01-01")
        except ValueError:
            raise ValueError(f"expected provenance.created as an ISO date, got {source.created[:40]!r}") from None
        return self

    @property
    def n(self) -> int:
        """Examples."""
        return self.measurements[0].spec.n

    def robust_correct(self) -> list[bool]:
        """Tell for each example whether it is robust to every attack and gradient within the board's threat model."""
        return robust_to_all(self.measurements, self.rank_by)

    def derived(self) -> Scores:
        """Return the scores that follow from the outcomes."""
        return scored(self.measurements, self.rank_by)


def robust_to_all(measurements: Sequence[Measured], threat: Threat) -> list[bool]:
    """Tell for each example whether it is robust in every measurement of a threat model; `ValueError` for none."""
    columns = [measured.robust_correct() for measured in measurements if measured.spec.threat == threat]
    if not columns:
        raise ValueError(f"expected a measurement within {threat}, got none")
    return all_of(columns)


def scored(measurements: Sequence[Measured], threat: Threat) -> Scores:
    """Return the scores of measurements of one network on the same examples."""
    robust, clean = robust_to_all(measurements, threat), measurements[0].clean_correct()
    interval = wilson(sum(robust), len(robust))
    accuracy, worst = sum(clean) / len(clean), sum(robust) / len(robust)
    return Scores(clean_accuracy=accuracy, worst_case=worst, ci95=(interval.low, interval.high))
