import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets import load_examples
from robustbench_bio.nets.base import Inputs
from robustbench_bio.records.space import Space
from robustbench_bio.search.base import Labelled, SearchTask, halves, make_engine
from robustbench_bio.search.engines.eg_nas import EgNas, Vector, _EgSearch, compound, evolve, similarity
from robustbench_bio.search.executors import CandidateScores, Executor, LocalExecutor, Scorer
from robustbench_bio.search.fitness import Fitness
from robustbench_bio.search.supernet.scorer import SupernetScorer
from robustbench_bio.training import checkpoint

INPUTS = Inputs((1, 8, 8), 10, (0.3,), (0.4,))
SPACE = Space(
    name="tiny",
    title="Tiny",
    primitives=["max_pool_3x3", "skip_connect_u", "dil_conv_3x3_br"],
    nodes=1,
    pool_norm=False,
)


def task(**changes: Any) -> SearchTask:
    fit, validation = halves(load_examples("digits", "train", 60), 0)
    settings: dict[str, Any] = {"channels": 2, "layers": 3, "fitness": Fitness.read("loss"), "space": SPACE}
    return SearchTask(inputs=INPUTS, fit=fit, validation=validation, **(settings | changes))


def engine(**changes: Any) -> EgNas:
    settings = {"epochs": 3, "warm_start": 1, "batch_size": 10, "population": 4, "repeats": 2, "score_batch": 16}
    return EgNas(**(settings | changes))


class Watched(Executor):
    """Scores in this process and remembers the jobs."""

    def __init__(self) -> None:
        self.jobs: list[list[torch.Tensor]] = []

    def scores(self, scorer: Scorer, jobs: Any, deadline: float = math.inf) -> Any:
        self.jobs.append(list(jobs))
        return LocalExecutor().scores(scorer, jobs, deadline)

    def close(self) -> None:
        self.jobs.clear()


def test_evolve_finds_the_optimum_of_a_quadratic() -> None:
    goal = np.linspace(-2, 2, 20)
    scale = np.linspace(1, 30, 20)

    def judge(points: list[Vector]) -> list[float]:
        return [float((scale * (point - goal) ** 2).sum()) for point in points]

    found = evolve(judge, np.zeros(20), sigma=1.0, population=20, generations=300, seed=1)
    assert found is not None
    np.testing.assert_allclose(found.point, goal, atol=1e-6)
    assert found.value == judge([found.point])[0]
    # One generation only samples; more of them adapt.
    first = evolve(judge, np.zeros(20), sigma=1.0, population=20, generations=1, seed=1)
    assert first is not None
    assert first.value > 1e3 * found.value


def test_evolve_returns_the_best_point_that_was_ever_judged() -> None:
    judged: list[float] = []

    def judge(points: list[Vector]) -> list[float]:
        values = [float(np.sin(37 * point).sum()) for point in points]
        judged.extend(values)
        return values

    found = evolve(judge, np.zeros(5), sigma=1.0, population=7, generations=9, seed=2)
    assert found is not None
    assert len(judged) == 63
    assert found.value == min(judged)
    assert evolve(lambda _: None, np.zeros(5), sigma=1.0, population=7, generations=9, seed=2) is None


def test_candidates_at_least_as_accurate_are_pushed_away() -> None:
    assert compound(-1.5, 0.5, 0.71, 0.7, 0.4) == 1.5 + 0.2
    assert compound(-1.5, 0.5, 0.7, 0.7, 0.4) == 1.5 + 0.2
    assert compound(-1.5, 0.5, 0.69, 0.7, 0.4) == 1.5 - 0.2


def test_similarity_of_equal_orthogonal_and_opposite_edges() -> None:
    one = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    assert similarity(one, 3 * one) == pytest.approx(1.0)
    assert similarity(one, -one) == pytest.approx(0.0)
    assert similarity(one, one.flip(0)) == pytest.approx(0.5)
    assert similarity(one, torch.stack([one[0], -one[1]])) == pytest.approx(0.5)


def test_the_step_size_falls_to_its_smallest_and_stays_in_the_released_arithmetic() -> None:
    clean = EgNas(sigma=1.0, sigma_min=0.3)
    assert [clean.sigma_at(t) for t in range(5)] == [1, 1 / 2, 1 / 3, 0.3, 0.3]
    assert {EgNas(reference=True, sigma_min=0.3).sigma_at(t) for t in range(5)} == {1.0}


def test_a_score_is_that_of_the_supernet_with_these_weights() -> None:
    search = _EgSearch(task(), engine())
    search.net.train()
    search._learn()
    batch = Labelled(search.validation.x[:16], search.validation.y[:16])
    own = {k: v for k, v in search.net.state_dict().items() if not k.startswith("rules.")}
    scorer = SupernetScorer(SPACE, INPUTS, 2, 3, own, batch, "cpu", "float32")
    job = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0)).softmax(2)
    ((_, scores),) = LocalExecutor().scores(scorer, [job])
    # Alphas whose softmax is the job; train mode, so that batch norm uses the batch.
    with torch.no_grad():
        for alpha, weights in zip(search.net.alphas, job, strict=True):
            alpha.copy_(weights.log())
        logits = search.net(batch.x.float() / 255)
    assert scores["loss"] == pytest.approx(F.cross_entropy(logits, batch.y).item(), rel=1e-5)
    assert scores["accuracy"] == (logits.argmax(1) == batch.y).float().mean().item()


@pytest.mark.parametrize("reference", [False, True])
def test_an_exploration_moves_the_alphas_and_nothing_else(reference: bool, global_rng_untouched: None) -> None:
    executor = Watched()
    search = _EgSearch(task(executor=executor), engine(reference=reference, warm_start=0, diversity=0.4))
    search.net.train()
    state = {name: value.clone() for name, value in search.net.state_dict().items()}
    before = torch.stack([alpha.detach().clone() for alpha in search.net.alphas])
    assert search.move_alphas(lambda _: None)
    after = torch.stack([alpha.detach() for alpha in search.net.alphas])
    assert all(torch.equal(value, state[name]) for name, value in search.net.state_dict().items())
    assert not torch.equal(before, after)
    for jobs in executor.jobs:
        for job in jobs:
            torch.testing.assert_close(job.sum(2), torch.ones(2, 2))
    generations = [executor.jobs[0][1:], *executor.jobs[1:]]  # the present alphas come first
    repeats = generations[:2] if reference else generations[::2]
    same = all(torch.equal(a, b) for a, b in zip(*repeats, strict=True))
    if reference:
        # One generation for each of two repeats, which draw the same; then the winners through a second softmax.
        assert [len(jobs) for jobs in executor.jobs] == [5, 4, 2]
        assert same
        spread = executor.jobs[-1][0].max() - executor.jobs[-1][0].min()
        assert spread < 0.2  # three softmaxes of a unit vector are nearly uniform
        # What is added sums to one on each edge: the alphas drift.
        torch.testing.assert_close((after - before).sum(2), torch.full((2, 2), 0.1))
    else:
        assert [len(jobs) for jobs in executor.jobs] == [5, 4, 4, 4]
        assert not same
        torch.testing.assert_close(after.mean(2), 0.9 * before.mean(2))


def test_the_alphas_go_a_step_towards_the_best_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    goal = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 2, 3)

    def score(self: SupernetScorer, prepared: object, job: torch.Tensor) -> CandidateScores:
        return {"accuracy": 0.5, "loss": float(((job.double() - goal.softmax(2)) ** 2).sum())}

    monkeypatch.setattr(SupernetScorer, "score", score)
    settings = {"population": 20, "generations": 60, "diversity": 0.0, "step": 1.0, "repeats": 1, "warm_start": 0}
    search = _EgSearch(task(), engine(**settings))
    search.move_alphas(lambda _: None)
    found = torch.stack([alpha.detach() for alpha in search.net.alphas]).double()
    torch.testing.assert_close(found.softmax(2), goal.softmax(2), rtol=0, atol=2e-3)
    torch.testing.assert_close(found.sum(2), torch.zeros(2, 2, dtype=torch.float64), rtol=0, atol=1e-5)


def test_alphas_rest_until_the_warm_start_is_over() -> None:
    search = _EgSearch(task(), engine(warm_start=2, epochs=3))
    before = [alpha.detach().clone() for alpha in search.net.alphas]
    for step in range(2 * search.epoch_steps):
        search.step = step
        search.move_alphas(lambda _: None)
    assert all(torch.equal(alpha, old) for alpha, old in zip(search.net.alphas, before, strict=True))
    search.step = 2 * search.epoch_steps + 1  # not the first step of an epoch
    search.move_alphas(lambda _: None)
    assert all(torch.equal(alpha, old) for alpha, old in zip(search.net.alphas, before, strict=True))


class Interrupted(Exception):
    pass


def stop_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, _: int, line: str) -> None:
        if done == step and not line.startswith("exploration"):
            raise Interrupted

    return progress


@pytest.mark.slow
def test_equal_seeds_give_equal_alphas_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine().search(task(checkpoint=tmp_path / "whole"))
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1.0)
    for step in (2, 5):
        with pytest.raises(Interrupted):
            engine().search(task(checkpoint=tmp_path / "broken"), stop_at(step))
    assert engine().search(task(checkpoint=tmp_path / "broken")) == whole
    one, other = load_file(tmp_path / "whole"), load_file(tmp_path / "broken")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    engine().search(task(checkpoint=tmp_path / "other", seed=1))
    assert not torch.equal(load_file(tmp_path / "other")["alphas/0"], one["alphas/0"])


@pytest.mark.slow
def test_a_deadline_within_an_exploration_leaves_the_alphas_as_they_were(tmp_path: Path) -> None:
    class Late(LocalExecutor):
        def scores(self, scorer: Scorer, jobs: Any, deadline: float = math.inf) -> Any:
            return super().scores(scorer, jobs, min(deadline, -math.inf))

    found = engine().search(task(executor=Late(), checkpoint=tmp_path / "c"))
    assert (len(found.trace), found.finished) == (1, False)
    assert engine().search(task(checkpoint=tmp_path / "c")) == engine().search(task())


@pytest.mark.slow
def test_workers_change_nothing() -> None:
    executor = LocalExecutor(2)
    try:
        assert engine().search(task(executor=executor)) == engine().search(task())
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"warm_start": 50}, "expected warm_start < epochs, got 50 and 50: it would not move"),
        ({"population": 1}, "expected population >= 2, got 1"),
        ({"step": 0}, "expected sigma > 0 and step in (0, 1], got 1 and 0"),
        ({"sigma": 0.01}, "expected sigma >= 0.02, got 0.01"),
        ({"reference": 1}, "expected reference of eg-nas to be bool, got 1"),
    ],
)
def test_a_mistake_in_a_parameter_says_what_was_expected(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_engine("eg-nas", params)
    assert str(caught.value) == message
