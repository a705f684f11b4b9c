"""What was measured and what came of it: spec, outcomes per example, provenance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import ConfigDict, Field, model_validator

from robustbench_bio.core.stats import Interval, wilson
from robustbench_bio.core.version import __version__

if TYPE_CHECKING:
    import pandas as pd

from robustbench_bio.records.base import Precision, Record, Scalar, Seconds, SecondSchema, Seed, Sha256, Version
from robustbench_bio.records.gradient import MOST_DRAWS, Gradient
from robustbench_bio.records.threat import Threat


class EvalSpec(Record):
    """What is measured. Equal specs have equal outcomes, so the hash of a spec is its key in a store."""

    schema_version: SecondSchema = 2
    version: Version = __version__
    model: str
    network_sha256: Sha256
    """Fingerprint of the network: parameters, buffers, and what it computes from them."""
    dataset: str
    split: str
    n: int = Field(ge=1)
    data_sha256: Sha256
    """Hash of pixels, labels and rows of the slice."""
    attack: str
    params: dict[str, Scalar | None]
    threat: Threat
    gradient: Gradient
    backend: str = "native"
    precision: Precision
    seed: Seed
    draws: int = Field(default=1, ge=1, le=MOST_DRAWS)
    """Forward passes whose mean prediction counts; 1 for a network that always answers the same."""
    batch_size: int | None = Field(default=None, ge=1)
    """Examples attacked together, where the outcome depends on it: under other libraries' attacks, which draw for a
    batch, and for random networks. None where every example has a stream of its own."""

    def key(self) -> str:
        """Return the hash that identifies this measurement."""
        return self.sha256()

    @property
    def title(self) -> str:
        """What people call the measurement, such as "pgd linf 8/255 exact"."""
        return f"{self.attack} {self.threat} {self.gradient}"


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

    seconds: Seconds
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

    def __str__(self) -> str:
        """Return what a person wants to read, a line for the numbers and one for each notice."""
        spec, (low, high) = self.spec, self.ci95
        interval = f"[{100 * low:.1f}, {100 * high:.1f}]"
        numbers = f"clean {self.clean_accuracy:.1%}, robust {self.robust_accuracy:.1%} {interval}"
        asked = f"{spec.attack} {spec.threat}, {spec.gradient} gradient, {self.n:,} examples"
        return "\n".join([f"{asked}: {numbers}", *self.provenance.notices])

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
    def ci95(self) -> Interval:
        """Wilson 95 % interval of the robust accuracy."""
        return wilson(sum(self.outcomes_record.robust_correct()), self.n)

    @property
    def success_rate(self) -> float | None:
        """Fraction of the correctly classified examples on which the network was fooled; None if there were none."""
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
            **self.spec.threat.document(),
            "gradient": str(self.spec.gradient),
            "backend": self.spec.backend,
            "robust_accuracy": self.robust_accuracy,
            "ci95": list(self.ci95),
            "success_rate": self.success_rate,
            "queries_mean": self.queries_mean,
            "seconds": self.provenance.seconds,
            "from_store": self.from_store,
            "key": self.spec.key(),
        }
