"""Scoring on a Ray cluster."""

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, final

import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.search.executors.base import (
    MOST_LOSSES,
    CandidateScores,
    Executor,
    Scorer,
    seconds_until,
    too_many_losses,
)


class _StoredScorer(NamedTuple):
    """A scorer in Ray's object store, which a worker fetches once by its key."""

    key: str
    reference: list[Any]
    """The one reference in a list; Ray would fetch a bare one for every job."""


@final
class RayExecutor(Executor):
    """Tasks on a Ray cluster: the one of $RAY_ADDRESS, the one already joined, or a new one on this machine.

    A new cluster has `workers` processes, an existing one decides itself; workers on a GPU share it. Raises `UserError`
    where Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, workers: int, device: str = "cpu") -> None:
        try:
            import ray
        except ImportError:
            raise UserError(
                "expected Ray for the executor 'ray', got none: run pip install 'robustbench-bio[ray]', or take local"
            ) from None
        self.workers = workers
        self._gpu_share = 1 / workers if device.startswith("cuda") else 0.0
        self._ray = ray
        self._stored: tuple[Scorer, _StoredScorer] | None = None

    def close(self) -> None:
        self._stored = None

    def _store(self, scorer: Scorer) -> _StoredScorer:
        if self._stored is None or self._stored[0] is not scorer:
            reference = self._ray.put(scorer)
            self._stored = (scorer, _StoredScorer(reference.hex(), [reference]))
        return self._stored[1]

    def _join(self) -> None:
        if self._ray.is_initialized():
            return
        own: dict[str, Any] = {"num_cpus": self.workers, "include_dashboard": False}
        if os.environ.get("RAY_ADDRESS"):
            own = {}
        try:
            self._ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"cannot join a Ray cluster: {reason}: check RAY_ADDRESS, or take local") from None

    def scores(
        self, scorer: Scorer, jobs: Sequence[Any], deadline: float = math.inf
    ) -> Iterator[tuple[int, CandidateScores]]:
        ray = self._ray
        self._join()
        stored = self._store(scorer)
        task = ray.remote(num_cpus=1, num_gpus=self._gpu_share, max_retries=MOST_LOSSES - 1)(_score_on_ray)
        places = {task.remote(stored, job): place for place, job in enumerate(jobs)}
        try:
            while places:
                # Ray reports lost workers on stdout, which belongs to results.
                with contextlib.redirect_stdout(sys.stderr):
                    ready, _ = ray.wait(list(places), num_returns=1, timeout=seconds_until(deadline))
                if not ready:
                    return
                place = places.pop(ready[0])
                try:
                    scores: CandidateScores = ray.get(ready[0])
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    raise too_many_losses() from None
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                yield place, scores
        finally:
            for future in places:
                ray.cancel(future, force=True)


_prepared: dict[str, tuple[Scorer, Any]] = {}


def _score_on_ray(stored: _StoredScorer, job: Any) -> CandidateScores:
    """Score one job in a worker of Ray, which keeps the scorer that it prepared last."""
    import ray

    torch.set_num_threads(1)
    if stored.key not in _prepared:
        _prepared.clear()
        scorer: Scorer = ray.get(stored.reference[0])
        _prepared[stored.key] = (scorer, scorer.prepare())
    scorer, prepared = _prepared[stored.key]
    return scorer.score(prepared, job)
