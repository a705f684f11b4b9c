"""What an executor is: from a scorer and jobs to scores."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from robustbench_bio.core.errors import UserError

#: How often one candidate may lose its worker before the search gives up.
MOST_LOSSES = 3

CandidateScores = dict[str, float]


class Scorer(ABC):
    """How one job is scored; travels to workers once, jobs follow one by one. Both must be picklable."""

    @abstractmethod
    def prepare(self) -> Any:
        """Return what all jobs share, such as a network; called once in every worker."""

    @abstractmethod
    def score(self, prepared: Any, job: Any) -> CandidateScores:
        """Return the scores of one job: a function of the scorer and the job, of nothing else."""


class Executor(ABC):
    """Scores jobs, each with one thread of torch, so that results depend neither on it nor on the order.

    Calls with the same scorer object prepare it once.
    """

    @abstractmethod
    def scores(
        self, scorer: Scorer, jobs: Sequence[Any], deadline: float = math.inf
    ) -> Iterator[tuple[int, CandidateScores]]:
        """Yield (place of the job, its scores) as they come, in any order, until the deadline.

        A job whose worker is lost is given to another one, too often raises `UserError`. The deadline is on the clock
        of `time.monotonic`; what runs then is dropped, in this process finished.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the workers and of what they hold; the next call of `scores` starts anew."""


def too_many_losses() -> UserError:
    """Return the error for a job that lost its worker too often."""
    return UserError(
        f"expected workers that live, but one candidate lost {MOST_LOSSES} of them: "
        "memory may be short, take fewer --workers or --channels"
    )


def seconds_until(deadline: float) -> float | None:
    """Return the time left until a deadline on the clock of `time.monotonic`; None for one that never comes."""
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())
