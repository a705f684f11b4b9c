"""Who scores candidates: this process, worker processes, or a Ray cluster; the scores are the same."""

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, final

import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown

#: How often one candidate may lose its worker before the search gives up.
MOST_LOSSES = 3

Scores = dict[str, float]


class Work(ABC):
    """How one job is scored; travels to workers once, jobs follow one by one. Both must be picklable."""

    @abstractmethod
    def prepare(self) -> Any:
        """Return what all jobs share, such as a network; called once in every worker."""

    @abstractmethod
    def score(self, prepared: Any, job: Any) -> Scores:
        """Return the scores of one job: a function of the work and the job, of nothing else."""


class Executor(ABC):
    """Scores jobs, each with one thread of torch, so that results depend neither on it nor on the order.

    Calls with the same work object prepare it once.
    """

    @abstractmethod
    def scores(self, work: Work, jobs: Sequence[Any], deadline: float = math.inf) -> Iterator[tuple[int, Scores]]:
        """Yield (place of the job, its scores) as they come, in any order, until the deadline.

        A job whose worker is lost is given to another one.

        Args:
            work: how to score.
            jobs: what to score.
            deadline: on the clock of `time.monotonic`; what runs then is dropped, in this process finished.

        Raises:
            UserError: a job lost its worker too often.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the workers and of what they hold; the next call of `scores` starts anew."""


def executor(name: str, workers: int, device: str = "cpu") -> Executor:
    """Return the executor `local` or `ray` with so many workers.

    Raises:
        UserError: unknown name, no workers, or Ray is not installed.
    """
    if workers < 1:
        raise UserError(f"expected workers >= 1, got {workers}")
    if name == "local":
        return Local(workers)
    if name == "ray":
        return RayCluster(workers, device)
    raise UserError(unknown("executor", name, ["local", "ray"]))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@final
class Local(Executor):
    """This process, or several worker processes of this machine.

    Args:
        workers: 1 scores in this process; more are spawned when they are first needed.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._opened: tuple[Work, Any] | None = None
        self._crew: list[_Worker] = []

    def scores(self, work: Work, jobs: Sequence[Any], deadline: float = math.inf) -> Iterator[tuple[int, Scores]]:
        if self.workers > 1:
            yield from self._spread(work, jobs, deadline)
            return
        for place, job in enumerate(jobs):
            if time.monotonic() > deadline:
                return
            with _one_thread():
                if self._opened is None or self._opened[0] is not work:
                    self._opened = (work, work.prepare())
                scores = work.score(self._opened[1], job)
            yield place, scores

    def close(self) -> None:
        self._opened = None
        for worker in self._crew:
            worker.end()
        self._crew = []

    def _spread(self, work: Work, jobs: Sequence[Any], deadline: float) -> Iterator[tuple[int, Scores]]:
        waiting = list(range(len(jobs)))[::-1]
        losses = [0] * len(jobs)
        try:
            while waiting or self._busy():
                while waiting and len(self._busy()) < self.workers:
                    place = waiting.pop()
                    self._idle().give(work, place, jobs[place])
                timeout = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
                ready = wait([worker.pipe for worker in self._busy()], timeout)
                if not ready:
                    return
                for worker in [worker for worker in self._busy() if worker.pipe in ready]:
                    place, scores = worker.take()
                    if scores is not None:
                        yield place, scores
                        continue
                    self._dismiss(worker)
                    losses[place] += 1
                    if losses[place] >= MOST_LOSSES:
                        raise _lost()
                    waiting.append(place)
        finally:
            for worker in self._busy():
                self._dismiss(worker)

    def _busy(self) -> list["_Worker"]:
        return [worker for worker in self._crew if worker.place is not None]

    def _idle(self) -> "_Worker":
        """Return a worker with nothing to do, a new one if there is none."""
        for worker in self._crew:
            if worker.place is None:
                return worker
        self._crew.append(_Worker())
        return self._crew[-1]

    def _dismiss(self, worker: "_Worker") -> None:
        worker.end()
        self._crew.remove(worker)


def _lost() -> UserError:
    return UserError(
        f"expected workers that live, but one candidate lost {MOST_LOSSES} of them: "
        "memory may be short, take fewer --workers or --channels"
    )


class _Worker:
    """One process, the pipe to it, the work that it knows and the place of the job that it has."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.place: int | None = None
        self.pipe, theirs = context.Pipe()
        self._work: Work | None = None
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, work: Work, place: int, job: Any) -> None:
        news = None if work is self._work else work
        self._work, self.place = work, place
        with contextlib.suppress(OSError):  # a process that is gone is noticed by `take`
            self.pipe.send((news, job))

    def take(self) -> tuple[int, Scores | None]:
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
    work: Work | None = None
    prepared = None
    while True:
        try:
            news, job = pipe.recv()
        except EOFError:
            return
        try:
            if news is not None:
                work, prepared = news, news.prepare()
            assert work is not None  # noqa: S101
            answer: Scores | Exception = work.score(prepared, job)
        except Exception as error:  # noqa: BLE001  (raised again in the parent)
            answer = error
        pipe.send(answer)


@dataclass(frozen=True)
class _Parcel:
    """Work behind a reference, which a worker opens once.

    Attributes:
        token: names the work.
        reference: list of the one reference; Ray would open a bare one for every job.
    """

    token: str
    reference: list[Any]


@final
class RayCluster(Executor):
    """Tasks on a Ray cluster: the one of $RAY_ADDRESS, the one already joined, or a new one on this machine.

    Args:
        workers: processes of a new local cluster; an existing one decides itself.
        device: workers on a GPU share it.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, workers: int, device: str = "cpu") -> None:
        try:
            import ray
        except ImportError:
            raise UserError(
                "expected Ray for the executor 'ray', got none: run pip install 'robustbench-bio[ray]', or take local"
            ) from None
        self.workers = workers
        self._share = 1 / workers if device.startswith("cuda") else 0.0
        self._ray = ray
        self._parcel: tuple[Work, _Parcel] | None = None

    def close(self) -> None:
        self._parcel = None

    def _wrapped(self, work: Work) -> _Parcel:
        if self._parcel is None or self._parcel[0] is not work:
            reference = self._ray.put(work)
            self._parcel = (work, _Parcel(reference.hex(), [reference]))
        return self._parcel[1]

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

    def scores(self, work: Work, jobs: Sequence[Any], deadline: float = math.inf) -> Iterator[tuple[int, Scores]]:
        ray = self._ray
        self._join()
        parcel = self._wrapped(work)
        task = ray.remote(num_cpus=1, num_gpus=self._share, max_retries=MOST_LOSSES - 1)(_score_on_ray)
        places = {task.remote(parcel, job): place for place, job in enumerate(jobs)}
        try:
            while places:
                timeout = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
                # Ray reports lost workers on stdout, which belongs to results.
                with contextlib.redirect_stdout(sys.stderr):
                    ready, _ = ray.wait(list(places), num_returns=1, timeout=timeout)
                if not ready:
                    return
                place = places.pop(ready[0])
                try:
                    scores: Scores = ray.get(ready[0])
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    raise _lost() from None
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                yield place, scores
        finally:
            for future in places:
                ray.cancel(future, force=True)


_opened: dict[str, tuple[Work, Any]] = {}


def _score_on_ray(parcel: _Parcel, job: Any) -> Scores:
    """Score one job in a worker of Ray, which keeps the work that it opened last."""
    import ray

    torch.set_num_threads(1)
    if parcel.token not in _opened:
        _opened.clear()
        work: Work = ray.get(parcel.reference[0])
        _opened[parcel.token] = (work, work.prepare())
    work, prepared = _opened[parcel.token]
    return work.score(prepared, job)
