"""Many networks under the attacks of a preset, ranked by their worst case."""

from dataclasses import dataclass

from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.diagnosis.assess import Assessment, assess, ranked
from robustbench_bio.evaluation.plan import Measurement
from robustbench_bio.evaluation.planning import PresetPlan
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat


@dataclass(frozen=True)
class GridResult(PresetPlan):
    """A finished grid: its plan, and what came of each network, best first."""

    networks: tuple[Assessment, ...]

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.plan.examples.dataset

    @property
    def n(self) -> int:
        """Examples of the test split that were attacked."""
        return len(self.plan.examples)

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """What each network was put to as far as it applies, in the order of results."""
        return self.plan.measurements

    @property
    def headline(self) -> Threat:
        """The threat model whose worst case ranks the networks."""
        return self.preset.headline()


def run_grid(asked: PresetPlan, store: Store | None = None, progress: Progress = silent) -> GridResult:
    """Run every attack of a preset on every network, or read from the store what was measured before, and rank."""
    headline = asked.preset.headline()
    assessed = assess(asked.plan, headline, n_probe=asked.preset.probe_examples, store=store, progress=progress)
    return GridResult(**vars(asked), networks=ranked(assessed, headline))


def shared_meter(result: Result) -> float:
    """Return what one meter shows that is fed clean and adversarial batches alike: the mean of both accuracies.

    The released BioNAS code reports this as robust accuracy. There, an example that is wrong from the start counts
    as robust if the attack happens to mend it; here it never does.
    """
    return (result.clean_accuracy + result.robust_accuracy) / 2
