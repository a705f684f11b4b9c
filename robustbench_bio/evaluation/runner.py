"""Runs a plan: every network's measurements one after the other, with one count of examples over all."""

from dataclasses import dataclass, field

from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.evaluation.measure import measure
from robustbench_bio.evaluation.plan import Measurement, Plan, Subject, prepare
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.result import Result


@dataclass
class Runner:
    """What the measurements of a plan share while they run.

    Attributes:
        store: where results are looked up and kept; None keeps nothing.
        progress: called with examples done, their total over the whole plan, and what runs now.
    """

    plan: Plan
    store: Store | None = None
    progress: Progress = silent
    _done: int = 0
    _total: int = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        self._total = len(plan.examples) * sum(len(plan.applicable(subject)) for subject in plan.subjects)

    def report(self, line: str, done: int = 0) -> None:
        """Tell what runs now, and how many examples of it are done."""
        self.progress(self._done + done, self._total, line)

    def on(self, subject: Subject) -> Progress:
        """Return what tells which other work on a network runs, such as a diagnosis."""
        return lambda _done, _total, line: self.report(f"{subject.label}: {line}")

    def measure(self, subject: Subject, measurement: Measurement) -> Result:
        """Return the result of one measurement of one network."""
        line = f"{subject.label}: {measurement.line()}"
        self.report(line)
        prepared = prepare(subject, measurement, self.plan.examples, self.plan.settings)
        result = measure(prepared, self.store, lambda done, _total, _line: self.report(line, done))
        self._done += len(self.plan.examples)
        self.report(line)
        return result
