"""A plan measured and judged: every network probed, attacked, and its results held against each other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from robustbench_bio.attacks.access.surrogate import ATTACKED_BY
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.diagnosis.comparisons import contradictions, strongly_attacked
from robustbench_bio.diagnosis.probe import DIAGNOSED, probe
from robustbench_bio.evaluation.plan import Plan, Subject
from robustbench_bio.evaluation.runner import Runner
from robustbench_bio.evaluation.store import Store
from robustbench_bio.evaluation.worst_case import worst_cases
from robustbench_bio.records.diagnosis import Diagnosis
from robustbench_bio.records.gradient import EXACT
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat


@dataclass(frozen=True)
class Assessment:
    """What came of one network of a plan.

    Attributes:
        results: one for each measurement of the plan; None where it does not apply to the network.
        diagnosis: of a probe and of what the results say of each other; None where no threat model is linf or l2.
        rank: 1 is best, networks that are equal share it; 0 before a ranking.
    """

    model: str
    results: tuple[Result | None, ...]
    diagnosis: Diagnosis | None = None
    rank: int = 0

    @property
    def measured(self) -> list[Result]:
        """The results that there are."""
        return [result for result in self.results if result is not None]

    @cached_property
    def robust(self) -> dict[Threat, list[bool]]:
        """Which examples withstand every attack and gradient, for each threat model."""
        return worst_cases(self.measured)

    def worst_case(self, threat: Threat) -> float:
        """Return the fraction of the examples that withstand everything within a threat model."""
        return sum(self.robust[threat]) / len(self.robust[threat])

    @property
    def clean_accuracy(self) -> float:
        """Fraction of examples classified correctly without an attack."""
        return self.measured[0].clean_accuracy


def assess(
    plan: Plan, headline: Threat, *, n_probe: int = 64, store: Store | None = None, progress: Progress = silent
) -> Iterator[Assessment]:
    """Probe and measure every network of a plan; what is finished is kept, so that the same call continues.

    A short diagnosis comes before the attacks, so that masking is learnt before the time is spent; the finished
    measurements are weighed in afterwards.

    The probe looks within `headline` if it is linf or l2, else within the first threat model that is, at `n_probe`
    correctly classified examples. `progress` is called with examples done, their total over the whole plan, and what
    runs now.

    Yields:
        What came of each network, in the plan's order, as soon as it is measured.

    Raises:
        UserError: networks, examples and attacks that do not go together.
    """
    if store is not None:
        store.check_writable()
    runner = Runner(plan, store, progress)
    for subject in plan.subjects:
        diagnosis = probed(plan, subject, headline, n_probe, store, runner.on(subject))
        results: list[Result | None] = [None] * len(plan.measurements)
        for place, measurement in enumerate(plan.measurements):
            if plan.applies(measurement, subject):
                results[place] = runner.measure(subject, measurement)
        measured = [result for result in results if result is not None]
        yield Assessment(subject.label, tuple(results), diagnosis and weighed(diagnosis, measured))


def weighed(diagnosis: Diagnosis, results: Sequence[Result]) -> Diagnosis:
    """Return the diagnosis of a network, joined by what its finished measurements say of each other."""
    return diagnosis.joined(contradictions(results), strong=strongly_attacked(results, diagnosis.threat))


def probed(
    plan: Plan,
    subject: Subject,
    headline: Threat,
    n_probe: int,
    store: Store | None = None,
    progress: Progress = silent,
) -> Diagnosis | None:
    """Diagnose a network of a plan in short, within the headline, or the plan's first threat model that allows it.

    The probe follows the last gradient asked for by name, else one that the network has.
    """
    threats = [headline, *(measurement.threat for measurement in plan.measurements)]
    threat = next((threat for threat in threats if threat.norm in DIAGNOSED), headline)
    if plan.as_asked:
        gradient = plan.measurements[-1].gradient
    else:
        gradient = ATTACKED_BY[-1] if plan.has_thresholds(subject) else EXACT
    examples, seed = plan.examples.to(plan.settings.device), plan.settings.seed
    return probe(subject, examples, threat, gradient, seed=seed, n_examples=n_probe, store=store, progress=progress)


def ranked(assessments: Iterable[Assessment], threat: Threat) -> tuple[Assessment, ...]:
    """Return networks, largest worst case within `threat` first, then larger clean accuracy, then by name.

    Networks of equal worst case share their rank, and the next rank counts them all: 1, 2, 2, 4.
    """
    order = sorted(assessments, key=lambda one: (-one.worst_case(threat), -one.clean_accuracy, one.model))
    scores = [one.worst_case(threat) for one in order]
    return tuple(replace(one, rank=1 + scores.index(score)) for one, score in zip(order, scores, strict=True))
