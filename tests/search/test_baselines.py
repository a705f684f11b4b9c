import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch import Tensor

from robustbench_bio.core.errors import DivergedError, UserError
from robustbench_bio.core.files import write_csv
from robustbench_bio.datasets import load_examples
from robustbench_bio.nets.base import Inputs, Net
from robustbench_bio.records.genotype import Genotype
from robustbench_bio.records.space import Space
from robustbench_bio.report.drawing import draw_cells
from robustbench_bio.report.search_trace import draw_trace
from robustbench_bio.rules.hebbian import Hebbian
from robustbench_bio.search import candidate_engine as candidates
from robustbench_bio.search.base import SearchTask, halves, make_engine
from robustbench_bio.search.candidate_engine import CandidateScorer, Scored
from robustbench_bio.search.engines.evolution import Evolution
from robustbench_bio.search.engines.random_search import RandomSearch, drawn
from robustbench_bio.search.executors import CandidateScores, LocalExecutor
from robustbench_bio.search.fitness import Fitness, Term
from robustbench_bio.training import checkpoint

INPUTS = Inputs((1, 8, 8), 10, (0.3,), (0.4,))
SPACE = Space(
    name="tiny", title="Tiny", nodes=2, primitives=["none", "max_pool_3x3", "skip_connect_u", "dil_conv_3x3_br"]
)


def task(fitness: str = "accuracy", **changes: Any) -> SearchTask:
    fit, validation = halves(load_examples("digits", "train", 80), 0)
    settings: dict[str, Any] = {"channels": 2, "layers": 3, "space": SPACE}
    return SearchTask(
        inputs=INPUTS, fit=fit, validation=validation, fitness=Fitness.read(fitness), **(settings | changes)
    )


RANDOM = RandomSearch(candidates=3, epochs=1, batch_size=10)
EVOLUTION = Evolution(candidates=7, population=3, sample=2, offspring=2, epochs=1, batch_size=10)


def cells(genotype: Genotype) -> tuple[Any, Any]:
    return genotype.normal, genotype.reduce


def scored(genotype: Genotype, fitness: float) -> Scored:
    return Scored(genotype, {"accuracy": fitness, "loss": 1.0}, fitness)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Genotype]:
    """Replace training by a number that follows from the cells; return who was scored."""
    seen: list[Genotype] = []

    def score(self: CandidateScorer, prepared: object, job: Genotype) -> CandidateScores:
        seen.append(job)
        convolutions = sum(op.startswith("dil") for op, _ in (*job.normal, *job.reduce))
        return {"accuracy": convolutions / 8, "loss": 1.0 - convolutions / 8}

    monkeypatch.setattr(CandidateScorer, "score", score)
    return seen


def test_random_search_keeps_the_best_of_what_it_draws(counted: list[Genotype]) -> None:
    found = RandomSearch(candidates=8).search(task())
    assert len(counted) == 8
    assert [cells(one) for one in counted] == [cells(drawn(task(), i)) for i in range(8)]
    values = [row["fitness"] for row in found.trace]
    assert found.genotype is not None
    best = max(range(8), key=values.__getitem__)
    assert cells(found.genotype) == cells(counted[best])
    assert found.genotype.source.endswith(f"Candidate {best + 1}.")
    assert found.trace[-1]["best_fitness"] == max(values)
    assert found.finished


def test_evolution_climbs_where_random_draws_do_not(counted: list[Genotype]) -> None:
    climbed = Evolution(candidates=120, population=10, sample=5, offspring=1).search(task())
    assert climbed.trace[-1]["best_fitness"] == 1.0
    blind = RandomSearch(candidates=120).search(task())
    assert blind.trace[-1]["best_fitness"] < 1.0
    assert len(counted) < 240  # cells that were scored before are not scored again


def test_only_the_youngest_have_children_and_the_fittest_of_the_sample_is_the_parent() -> None:
    chosen = Evolution(candidates=9, population=3, sample=3, offspring=2)
    dead, *alive = [drawn(task(), number) for number in range(4)]
    history = [scored(dead, 9.0), scored(alive[0], 0.1), scored(alive[1], 0.7), scored(alive[2], 0.3)]
    children = chosen.propose(task(), history)
    assert len(children) == 2
    for child in children:
        pairs = zip((*child.normal, *child.reduce), (*alive[1].normal, *alive[1].reduce), strict=True)
        assert sum(one != other for one, other in pairs) == 1
    assert cells(children[0]) != cells(children[1])
    assert children == chosen.propose(task(), history)
    assert [child.source[-2] for child in children] == ["5", "6"]


def test_the_first_population_is_that_of_random_search() -> None:
    first = Evolution(candidates=9, population=4, sample=3).propose(task(), [])
    assert first == RandomSearch(candidates=4).propose(task(), [])


def test_rounds_end_with_the_budget(counted: list[Genotype]) -> None:
    found = Evolution(candidates=8, population=3, sample=2, offspring=4).search(task())
    assert len(found.trace) == 8
    assert found.finished


class Interrupted(Exception):
    pass


def stop_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, _: int, __: str) -> None:
        if done == step:
            raise Interrupted

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("engine", [RANDOM, EVOLUTION], ids=["random", "evolution"])
def test_a_killed_search_continues_to_the_same_genotype(
    engine: RandomSearch | Evolution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, global_rng_untouched: None
) -> None:
    whole = engine.search(task("accuracy=1,robust=0.5"))
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1.0)
    broken = task("accuracy=1,robust=0.5", checkpoint=tmp_path / "c")
    for step in (1, 2):
        with pytest.raises(Interrupted):
            engine.search(broken, stop_at(step))
    assert engine.search(broken) == whole
    assert whole.finished
    with pytest.raises(UserError, match="belongs to a search with other settings"):
        engine.search(task(checkpoint=tmp_path / "c"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [RANDOM, EVOLUTION], ids=["random", "evolution"])
def test_workers_change_nothing(engine: RandomSearch | Evolution) -> None:
    executor = LocalExecutor(2)
    try:
        assert engine.search(task(executor=executor)) == engine.search(task())
    finally:
        executor.close()


def test_time_that_is_up_leaves_what_was_scored(tmp_path: Path, counted: list[Genotype]) -> None:
    late = RANDOM.search(task(deadline=-math.inf, checkpoint=tmp_path / "c"))
    assert (late.genotype, late.trace, late.finished) == (None, [], False)
    assert RANDOM.search(task(checkpoint=tmp_path / "c")) == RANDOM.search(task())


def test_a_round_that_is_cut_counts_up_to_the_first_gap(counted: list[Genotype]) -> None:
    class Gappy(LocalExecutor):
        def scores(self, scorer: Any, jobs: Sequence[Any], deadline: float = math.inf) -> Any:
            assert deadline == math.inf
            for place in (0, 2):
                yield place, scorer.score(None, jobs[place])

    found = RandomSearch(candidates=5).search(task(executor=Gappy()))
    assert (len(found.trace), found.finished) == (1, False)


def test_a_training_that_diverges_is_the_worst_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: object, **kwargs: object) -> None:
        raise DivergedError("training diverged at step 1: the loss is not finite; try a smaller lr")

    monkeypatch.setattr(candidates.loop, "train", diverge)
    found = RANDOM.search(task("accuracy,loss,robust"))
    assert found.genotype is not None
    assert {row["accuracy"] for row in found.trace} == {0.0}
    assert {row["fitness"] for row in found.trace} == {-1e6}


def test_a_hebbian_candidate_that_diverges_is_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hebbian, "change", lambda _self, layer, _seen: torch.full_like(layer.weight, math.inf))
    space = Space(name="oja", title="Oja", nodes=1, primitives=["dil_conv_3x3_oja", "sep_conv_3x3_oja"])
    found = RandomSearch(candidates=1, epochs=1, batch_size=10).search(task(space=space))
    assert [(row["accuracy"], row["loss"]) for row in found.trace] == [(0.0, 1e6)]


def test_a_candidate_is_trained_by_its_own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def watch(net: Net, *args: object, **kwargs: object) -> None:
        seen.append(set(net.rules.assignment.values()))  # type: ignore[union-attr]

    monkeypatch.setattr(candidates.loop, "train", watch)
    RANDOM.search(task())
    assert set().union(*seen) == {"usf", "brsf"}


class Linear(Net):
    """Two classes, logits ±w·x/2."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(INPUTS)
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        margin = (x.flatten(1) @ self.weight) / 2
        return torch.stack([-margin, margin], 1)


@pytest.mark.parametrize("term", ["robust:fgsm:0.05", "robust:pgd7:0.05"])
def test_robust_accuracy_of_a_linear_network_is_known(term: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(16, generator=generator)
    x = torch.randint(60, 190, (200, 1, 4, 4), dtype=torch.uint8, generator=generator)
    y = torch.randint(2, (200,), generator=generator)
    net = Linear(weight - weight.mean())  # so that both classes occur
    margins = (x.flatten(1).float() / 255 @ net.weight.detach()) * (2 * y - 1)
    # The strongest change of w·x within the ball; the box [0, 1] is out of its reach.
    truth = (margins > 0.05 * net.weight.detach().abs().sum()).double().mean().item()
    scores = Fitness.read(f"{term},accuracy,loss").measure(net, x, y, seed=0)
    assert 0.02 < truth < 0.4
    assert scores[term] == pytest.approx(truth, abs=1e-9)
    assert scores["accuracy"] == pytest.approx((margins > 0).double().mean().item())
    assert scores["loss"] == pytest.approx(torch.log1p(torch.exp(-margins)).mean().item(), rel=1e-5)
    assert net.training
    assert net.weight.grad is None


def test_a_fitness_is_a_weighted_sum_in_which_loss_counts_against() -> None:
    fitness = Fitness.read("accuracy=1, loss=0.5,robust=2")
    assert fitness.value({"accuracy": 0.5, "loss": 3.0, "robust:fgsm:8/255": 0.25}) == 0.5 - 1.5 + 0.5
    assert str(fitness) == "accuracy=1,loss=0.5,robust:fgsm:8/255=2"
    assert Fitness.read(str(fitness)) == fitness
    assert fitness.value(fitness.worst()) < fitness.value({"accuracy": 0, "loss": 1e3, "robust:fgsm:8/255": 0})
    assert Fitness.read("robust:pgd12:4/255").terms == (Term("robust:pgd12:4/255", 1.0, 12, 4 / 255),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuarcy", "unknown term of a fitness 'accuarcy': did you mean accuracy?; a fitness is"),
        ("", "unknown term of a fitness ''"),
        ("accuracy,accuracy=2", "expected each term of the fitness once, got 'accuracy,accuracy=2'"),
        ("robust,robust:fgsm", "expected each term of the fitness once"),
        ("accuracy=0", "expected a weight > 0 in the fitness, got '0'"),
        ("accuracy=", "expected a weight > 0 in the fitness, got ''"),
        ("loss=nan", "expected a weight > 0 in the fitness, got 'nan'"),
        ("loss:pgd", "expected loss without 'pgd'"),
        ("robust:cw", "expected the attack fgsm or pgdSTEPS (1 to 999), got 'cw'"),
        ("robust:pgd0", "expected the attack fgsm or pgdSTEPS (1 to 999), got 'pgd0'"),
        ("robust:fgsm:8", "expected eps in (0, 1], got 8: eps is in input units, did you mean 8/255?"),
    ],
)
def test_a_mistake_in_a_fitness(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Fitness.read(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("random", {"candidates": 0}, "expected candidates >= 1, got 0"),
        ("random", {"epochs": 0}, "expected epochs >= 1, got 0"),
        ("evolution", {"sample": 60}, "expected sample <= population <= candidates, got 60, 50 and 200"),
        ("evolution", {"candidates": 9}, "expected sample <= population <= candidates, got 15, 50 and 9"),
        ("evolution", {"lr": 0}, "expected lr > 0, got 0"),
    ],
)
def test_a_mistake_in_a_parameter(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_engine(name, params)
    assert str(caught.value) == message


def test_the_trace_and_the_cells_are_drawn(tmp_path: Path) -> None:
    rows = [{"epoch": 1.0, "train_accuracy": 0.1, "val_accuracy": 0.2, "entropy_normal": 3.0, "entropy_reduce": 2.0}]
    for name, trace in {
        "supernet": rows,
        "candidates": [{"candidate": 1.0, "accuracy": 0.1, "robust:fgsm:8/255": 0.0, "fitness": 1, "best_fitness": 1}],
    }.items():
        draw_trace(trace, tmp_path / name)
        assert matplotlib.image.imread(tmp_path / name / "trace.png").std() > 0.01
        assert b"<svg" in (tmp_path / name / "trace.svg").read_bytes()
        write_csv(trace, tmp_path / name / "trace.csv")
        with (tmp_path / name / "trace.csv").open() as file:
            assert [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)] == trace
    draw_trace([], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    genotype = Genotype(
        name="three",
        source="",
        normal=[("sep_conv_3x3_u", 0), ("none", 1), ("skip_connect", 2), ("dil_conv_5x5_dfa", 0)],
        reduce=[("max_pool_3x3", 0), ("max_pool_3x3", 0)],
        normal_concat=[0, 3],
    )
    draw_cells(genotype, tmp_path)
    picture = (tmp_path / "cells.svg").read_text()
    for text in ("Normal cell", "Reduction cell", "sep_conv_3x3_u", "dil_conv_5x5_dfa", "usf", "dfa", "bp", "three"):
        assert f">{text}</text>" in picture
    assert matplotlib.image.imread(tmp_path / "cells.png").std() > 0.01
