"""Scoring in this process, or in several worker processes of this machine."""

import contextlib
import math
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, final

import torch

from robustbench_bio.search.executors.base import (
    MOST_LOSSES,
    CandidateScores,
    Executor,
    Scorer,
    seconds_until,
    too_many_losses,
)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@final
class LocalExecutor(Executor):
    """This process for one worker, or several worker processes of this machine, spawned when they are first needed."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._prepared: tuple[Scorer, Any] | None = None
        self._processes: list[_WorkerProcess] = []

    def scores(
        self, scorer: Scorer, jobs: Sequence[Any], deadline: float = math.inf
    ) -> Iterator[tuple[int, CandidateScores]]:
        if self.workers > 1:
            yield from self._spread(scorer, jobs, deadline)
            return
        for place, job in enumerate(jobs):
            if time.monotonic() > deadline:
                return
            with _one_thread():
                if self._prepared is None or self._prepared[0] is not scorer:
                    self._prepared = (scorer, scorer.prepare())
                scores = scorer.score(self._prepared[1], job)
            yield place, scores

    def close(self) -> None:
        self._prepared = None
        for process in self._processes:
            process.end()
        self._processes = []

    def _spread(self, scorer: Scorer, jobs: Sequence[Any], deadline: float) -> Iterator[tuple[int, CandidateScores]]:
        waiting = list(range(len(jobs)))[::-1]
        losses = [0] * len(jobs)
        try:
            while waiting or self._busy():
                while waiting and len(self._busy()) < self.workers:
                    place = waiting.pop()
                    self._idle().give(scorer, place, jobs[place])
                ready = wait([process.pipe for process in self._busy()], seconds_until(deadline))
                if not ready:
                    return
                for process in [process for process in self._busy() if process.pipe in ready]:
                    place, scores = process.take()
                    if scores is not None:
                        yield place, scores
                        continue
                    self._dismiss(process)
                    losses[place] += 1
                    if losses[place] >= MOST_LOSSES:
                        raise too_many_losses()
                    waiting.append(place)
        finally:
            for process in self._busy():
                self._dismiss(process)

    def _busy(self) -> list["_WorkerProcess"]:
        return [process for process in self._processes if process.place is not None]

    def _idle(self) -> "_WorkerProcess":
        """Return a process with nothing to do, a new one if there is none."""
        for process in self._processes:
            if process.place is None:
                return process
        self._processes.append(_WorkerProcess())
        return self._processes[-1]

    def _dismiss(self, process: "_WorkerProcess") -> None:
        process.end()
        self._processes.remove(process)


class _WorkerProcess:
    """One process, the pipe to it, the scorer that it knows and the place of the job that it has."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.place: int | None = None
        self.pipe, far_end = context.Pipe()
        self._scorer: Scorer | None = None
        self._process = context.Process(target=_serve, args=(far_end,), daemon=True)
        self._process.start()
        far_end.close()

    def give(self, scorer: Scorer, place: int, job: Any) -> None:
        new_scorer = None if scorer is self._scorer else scorer
        self._scorer, self.place = scorer, place
        with contextlib.suppress(OSError):  # a process that is gone is noticed by `take`
            self.pipe.send((new_scorer, job))

    def take(self) -> tuple[int, CandidateScores | None]:
        """Return place and scores, None if the process is gone, or raise what went wrong in it."""
        assert self.place is not None  # noqa: S101
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            return self.place, None
        place, self.place = self.place, None
        if isinstance(answer, Exception):
            raise answer
        return place, answer

    def end(self) -> None:
        self.place = None
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection) -> None:
    """Score what comes through the pipe, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its workers
    torch.set_num_threads(1)
    scorer: Scorer | None = None
    prepared = None
    while True:
        try:
            new_scorer, job = pipe.recv()
        except EOFError:
            return
        try:
            if new_scorer is not None:
                scorer, prepared = new_scorer, new_scorer.prepare()
            assert scorer is not None  # noqa: S101
            answer: CandidateScores | Exception = scorer.score(prepared, job)
        except Exception as error:  # noqa: BLE001  (raised again in the parent)
            answer = error
        pipe.send(answer)
