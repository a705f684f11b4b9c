"""The scores of a search's candidates, each scored once, and kept in the search's checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

from robustbench_bio.search.base import Engine, SearchTask
from robustbench_bio.search.executors import CandidateScores, Scorer


class ScoreTable:
    """Candidate, as text, → its scores.

    A search that continues goes through its candidates from the first again: those in the table cost nothing.
    """

    def __init__(self, task: SearchTask[Any], engine: Engine[Any], scorer: Scorer) -> None:
        self._task, self._scorer = task, scorer
        self._checkpoint = task.open_checkpoint(engine)
        self._scores: dict[str, CandidateScores] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._scores

    def __getitem__(self, key: str) -> CandidateScores:
        return self._scores[key]

    def restore(self) -> None:
        """Read the checkpoint, if there is one; raises `UserError` for that of another search."""
        saved = self._checkpoint.restore()
        if saved is not None:
            self._scores = saved.state["known"]

    def save(self) -> None:
        """Write the checkpoint."""
        self._checkpoint.save({"known": self._scores})

    def score(self, jobs: Mapping[str, Any], report: Callable[[int, CandidateScores], None]) -> bool:
        """Score the candidates that the table does not hold yet; false if the deadline came first.

        `jobs` is candidate as text → what the scorer takes; `report` is called with (how many of them have scores, the
        scores that came last).
        """
        keys = [key for key in jobs if key not in self]
        done = len(jobs) - len(keys)
        if keys and not self._task.expired():
            unscored = [jobs[key] for key in keys]
            for place, scores in self._task.executor.scores(self._scorer, unscored, self._task.deadline):
                self._scores[keys[place]] = scores
                done += 1
                if self._checkpoint.due:
                    self.save()
                report(done, scores)
        return all(key in self for key in keys)
