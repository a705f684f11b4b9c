import importlib
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.search.executors import CandidateScores, LocalExecutor, Scorer, make_executor
from robustbench_bio.search.executors.base import MOST_LOSSES


class Square(Scorer):
    """Squares numbers; dies, fails or dawdles when it is told to."""

    def __init__(self, folder: Path | None = None, *, dies_at: int = -1, deaths: int = 1, fails_at: int = -1) -> None:
        self.folder, self.dies_at, self.deaths, self.fails_at = folder, dies_at, deaths, fails_at

    def prepare(self) -> int:
        return 2

    def score(self, prepared: int, job: Any) -> CandidateScores:
        if job == self.dies_at and self.folder is not None:
            died = len(list(self.folder.iterdir()))
            if died < self.deaths:
                (self.folder / f"died-{died}-{os.getpid()}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if job == self.fails_at:
            raise UserError("no square for this one")
        return {"value": float(job**prepared), "threads": float(torch.get_num_threads()), "pid": float(os.getpid())}


class Slow(Scorer):
    """Takes a second for every job but the first."""

    def prepare(self) -> None:
        return None

    def score(self, prepared: None, job: Any) -> CandidateScores:
        del prepared
        time.sleep(1.0 if job else 0.0)
        return {"value": float(job)}


def values(found: list[tuple[int, CandidateScores]]) -> dict[int, float]:
    assert len(dict(found)) == len(found)
    return {place: scores["value"] for place, scores in found}


@pytest.fixture
def pair() -> Iterator[LocalExecutor]:
    """Two worker processes, ended after the test."""
    executor = LocalExecutor(2)
    yield executor
    executor.close()
    assert not multiprocessing.active_children()


JOBS = [3, 1, 4, 1, 5]
SQUARES = {0: 9.0, 1: 1.0, 2: 16.0, 3: 1.0, 4: 25.0}


@pytest.fixture
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_two_threads")
def test_one_worker_is_this_process_with_one_thread() -> None:
    found = list(LocalExecutor().scores(Square(), JOBS))
    assert values(found) == SQUARES
    assert {scores["pid"] for _, scores in found} == {os.getpid()}
    assert {scores["threads"] for _, scores in found} == {1.0}
    assert torch.get_num_threads() == 2


def test_the_same_scorer_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[Scorer] = []
    monkeypatch.setattr(Square, "prepare", lambda self: prepared.append(self) or 2)
    executor, one, other = LocalExecutor(), Square(), Square()
    for scorer in (one, one, other):
        assert values(list(executor.scores(scorer, JOBS))) == SQUARES
    assert prepared == [one, other]


def test_no_jobs_need_no_workers() -> None:
    assert list(LocalExecutor(3).scores(Square(), [])) == []


def test_this_process_stops_at_the_deadline() -> None:
    assert list(LocalExecutor().scores(Square(), JOBS, -math.inf)) == []


def test_what_goes_wrong_in_this_process_is_raised() -> None:
    with pytest.raises(UserError, match="no square for this one"):
        list(LocalExecutor().scores(Square(fails_at=4), JOBS))


@pytest.mark.slow
def test_processes_score_the_same_and_replace_one_that_is_killed(tmp_path: Path, pair: LocalExecutor) -> None:
    found = list(pair.scores(Square(tmp_path, dies_at=4), JOBS))
    assert values(found) == SQUARES
    (corpse,) = tmp_path.iterdir()
    assert os.getpid() not in {scores["pid"] for _, scores in found}
    assert dict(found)[2]["pid"] != int(corpse.name.split("-")[-1])
    assert {scores["threads"] for _, scores in found} == {1.0}
    again = list(pair.scores(Square(), JOBS))
    assert values(again) == SQUARES
    assert {scores["pid"] for _, scores in again} & {scores["pid"] for _, scores in found}
    assert len(multiprocessing.active_children()) == 2


@pytest.mark.slow
def test_a_job_that_kills_every_worker_ends_the_search(tmp_path: Path, pair: LocalExecutor) -> None:
    with pytest.raises(UserError, match="one candidate lost 3 of them: memory may be short"):
        list(pair.scores(Square(tmp_path, dies_at=4, deaths=9), JOBS))
    assert len(list(tmp_path.iterdir())) == MOST_LOSSES


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_raised_here(pair: LocalExecutor) -> None:
    with pytest.raises(UserError, match="no square for this one"):
        list(pair.scores(Square(fails_at=4), JOBS))


@pytest.mark.slow
def test_processes_are_gone_after_the_deadline(pair: LocalExecutor) -> None:
    start = time.monotonic()
    jobs = [0, *[1] * 60]
    found = list(pair.scores(Slow(), jobs, start + 12))
    assert 12 <= time.monotonic() - start < 14
    assert 0 < len(found) < len(jobs)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("name", "workers", "message"),
    [
        ("locla", 1, "unknown executor 'locla': did you mean local?"),
        ("local", 0, "expected workers >= 1, got 0"),
        ("ray", -2, "expected workers >= 1, got -2"),
    ],
)
def test_a_mistake_in_an_executor(name: str, workers: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_executor(name, workers)
    assert str(caught.value) == message


def test_ray_that_is_not_installed_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"run pip install 'robustbench-bio\[ray\]', or take local"):
        make_executor("ray", 2)


@pytest.fixture(scope="module")
def ray() -> Any:
    """Return Ray, which starts a cluster at the first call; ended after the module."""
    module = pytest.importorskip("ray")
    cloudpickle = importlib.import_module("ray.cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its workers cannot import the tests
    yield module
    module.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_scores_the_same_though_one_worker_is_killed(
    tmp_path: Path, ray: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = list(make_executor("ray", 2).scores(Square(tmp_path, dies_at=4), JOBS))
    assert values(found) == SQUARES
    (corpse,) = tmp_path.iterdir()
    assert os.getpid() not in {scores["pid"] for _, scores in found}
    assert dict(found)[2]["pid"] != int(corpse.name.split("-")[-1])
    assert ray.cluster_resources()["CPU"] == 2
    assert capsys.readouterr().out == "", "stdout belongs to results"
    with pytest.raises(UserError, match="no square for this one"):
        list(make_executor("ray", 2).scores(Square(fails_at=4), JOBS))
    folder = tmp_path / "all"
    folder.mkdir()
    with pytest.raises(UserError, match="one candidate lost 3 of them"):
        list(make_executor("ray", 2).scores(Square(folder, dies_at=4, deaths=9), [4]))
    # Under load Ray may lose a worker before it gets to leave a trace; it is never asked more often than allowed.
    assert 0 < len(list(folder.iterdir())) <= MOST_LOSSES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_stops_at_the_deadline(ray: Any) -> None:
    executor = make_executor("ray", 2)
    start = time.monotonic()
    found = list(executor.scores(Slow(), [0, *[1] * 60], start + 15))
    assert time.monotonic() - start < 17
    assert 0 < len(found) < 61
