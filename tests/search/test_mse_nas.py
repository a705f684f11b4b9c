"""The engine mse-nas: its fitness, evolution, and what the command line makes of it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from robustbench_bio.cli import app as cli
from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets import load_examples
from robustbench_bio.nets.base import Inputs
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.records.motifs import MotifGenotype, parse_link, read_genotype, reduction_cells
from robustbench_bio.report.motif_drawing import draw_motifs
from robustbench_bio.report.search_trace import draw_motif_trace
from robustbench_bio.search.base import SearchTask, halves, make_engine
from robustbench_bio.search.engines.mse_nas import MseNas
from robustbench_bio.search.executors import CandidateScores, LocalExecutor
from robustbench_bio.search.motifs.fitness import MotifFitness
from robustbench_bio.search.motifs.scorer import MotifScorer
from robustbench_bio.search.run import write_result
from robustbench_bio.training import checkpoint
from robustbench_bio.zoo import catalog

SPACE = catalog.space("mse-nas")
assert isinstance(SPACE, MotifSpace)
DIGITS = Inputs((1, 8, 8), 10, (0.3,), (0.4,))
STATIC = reduction_cells(6, "direct")


# --- fitness ----------------------------------------------------------------------------------------------------


def test_a_fitness_reads_weights_and_directions() -> None:
    fitness = MotifFitness.read("rdm=2, rdm:released,spikes=0.5,trained:3")
    assert str(fitness) == "rdm:hamming=2,rdm:released=1,spikes=0.5,trained:3=1"
    scores = {"rdm:hamming": 0.3, "rdm:released": 5.0, "spikes": 4.0, "trained:3": 0.9}
    assert fitness.value(scores) == pytest.approx(0.6 + 5 - 2 + 0.9)
    assert fitness.objectives(scores) == [0.3, 5.0, -4.0, 0.9]
    assert (fitness.metrics, fitness.trains, fitness.epochs(7)) == (("hamming", "released"), True, 3)
    assert MotifFitness.read("trained").epochs(7) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rdm:haming", "unknown metric of rdm 'haming': did you mean hamming"),
        ("accuracy", "unknown term of a fitness 'accuracy'"),
        ("rdm,rdm:hamming", "each term of the fitness once"),
        ("trained:0", "expected trained:EPOCHS with 1 to 9999 epochs"),
        ("trained:2,trained:3", "expected one length of training"),
        ("spikes:2", "expected spikes without '2'"),
        ("rdm=0", "expected a weight > 0"),
    ],
)
def test_a_fitness_names_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MotifFitness.read(text)


# --- evolution --------------------------------------------------------------------------------------------------


def task(fitness: str = "rdm", images: int = 80, **changes: Any) -> SearchTask[MotifSpace]:
    fit, validation = halves(load_examples("digits", "train", images), 0)
    settings: dict[str, Any] = {"channels": 2, "layers": 6, "space": SPACE}
    read = MotifFitness.read(fitness)
    return SearchTask(inputs=DIGITS, fit=fit, validation=validation, fitness=read, **(settings | changes))


SMALL: dict[str, Any] = {"population": 6, "offspring": 4, "generations": 3, "steps": 2, "batches": 1, "batch_size": 8}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[MotifGenotype]:
    """Replace networks by numbers that follow from the motifs; return who was scored."""
    seen: list[MotifGenotype] = []

    def score(self: MotifScorer, prepared: object, job: MotifGenotype) -> CandidateScores:
        seen.append(job)
        used = [cell for i, cell in enumerate(job.cells) if i not in STATIC]
        kernels = [parse_link(op).kernel for cell in used for op, _ in cell.links]
        return {"rdm:hamming": kernels.count(5) / 10, "spikes": kernels.count(5) ** 2 / 50 + kernels.count(3) / 10}

    monkeypatch.setattr(MotifScorer, "score", score)
    return seen


def test_evolution_climbs_where_random_draws_do_not(counted: list[MotifGenotype]) -> None:
    found = MseNas(population=20, offspring=20, generations=10).search(task())
    climbed = found.trace[-1]["best_fitness"]
    assert len(found.trace) == 200
    assert found.finished
    blind = MseNas(population=200, offspring=1, generations=1).search(task())
    assert climbed > blind.trace[-1]["best_fitness"]
    assert isinstance(found.genotype, MotifGenotype)
    best = max(range(200), key=lambda i: found.trace[i]["fitness"])
    assert found.genotype.cells == next(one.cells for one in counted if one.genome == found.genotype.genome)
    assert found.genotype.source.endswith(f"Candidate {best + 1}.")
    assert found.front == ()


def test_no_network_is_scored_twice_and_inert_genes_make_no_other_network(counted: list[MotifGenotype]) -> None:
    found = MseNas(population=20, offspring=20, generations=6).search(task())
    networks = {
        json.dumps([cell.model_dump() for i, cell in enumerate(one.cells) if i not in STATIC]) for one in counted
    }
    assert len(networks) == len(counted)
    # Only what has died in between may come again.
    assert len(found.trace) == 120
    assert len(counted) > 110


def test_a_search_ends_with_what_it_has_where_no_new_offspring_is_left(counted: list[MotifGenotype]) -> None:
    found = MseNas(population=2, offspring=2, generations=50).search(task())
    assert 2 <= len(found.trace) < 100
    assert found.finished
    assert found.genotype is not None
    assert len(counted) == len({one.genome for one in counted})


def test_several_objectives_leave_a_front(counted: list[MotifGenotype], tmp_path: Path) -> None:
    engine = MseNas(population=20, offspring=20, generations=8, algorithm="nsga2")
    found = engine.search(task("rdm,spikes"))
    rows = [(row["rdm:hamming"], -row["spikes"]) for row in found.trace]

    def dominated(one: tuple[float, float]) -> bool:
        return any(a >= one[0] and b >= one[1] and (a, b) != one for a, b in rows)

    assert [row["front"] for row in found.trace] == [float(not dominated(one)) for one in rows]
    assert 4 < len(found.front) < len(rows)
    assert len({one.genome for one in found.front if isinstance(one, MotifGenotype)}) == len(found.front)
    # Both ends of the front are better than the first generation's: it moved, and in both directions.
    for axis in (0, 1):
        assert max(one[axis] for one in rows) > max(one[axis] for one in rows[:20])
    assert isinstance(found.genotype, MotifGenotype)
    write_result(found, tmp_path)
    draw_motif_trace(found.trace, tmp_path)
    draw_motifs(found.genotype, reduction_cells(len(found.genotype.cells), engine.coding), tmp_path)
    for name in ("trace", "pareto", "cells"):
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.01
    assert {read_genotype(path) for path in (tmp_path / "front").glob("*.toml")} == set(found.front)


class Interrupted(Exception):
    pass


def stop_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, _: int, __: str) -> None:
        if done == step:
            raise Interrupted

    return progress


@pytest.mark.parametrize("algorithm", ["ga", "nsga2"])
def test_a_killed_search_continues_to_the_same_genotype(
    algorithm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, global_rng_untouched: None
) -> None:
    engine = MseNas(**SMALL, algorithm=algorithm)
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    whole = engine.search(task("rdm,spikes=0.01"))
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1.0)
    broken = task("rdm,spikes=0.01", checkpoint=tmp_path / "c")
    for step in (2, 8, 12):
        with pytest.raises(Interrupted):
            engine.search(broken, stop_at(step))
    assert engine.search(broken) == whole
    assert whole.finished
    other = MseNas(**SMALL, algorithm=algorithm).search(task("rdm,spikes=0.01", seed=1))
    assert other.trace != whole.trace
    with pytest.raises(UserError, match="belongs to a search with other settings"):
        engine.search(task(checkpoint=tmp_path / "c", seed=1, fitness="rdm,spikes=0.01"))


def test_time_that_is_up_leaves_what_was_scored(tmp_path: Path) -> None:
    found = MseNas(**SMALL).search(task(checkpoint=tmp_path / "c", deadline=0.0))
    assert (found.genotype, found.trace, found.finished) == (None, [], False)
    assert MseNas(**SMALL).search(task(checkpoint=tmp_path / "c")) == MseNas(**SMALL).search(task())


@pytest.mark.slow
def test_workers_change_nothing_and_training_is_scored() -> None:
    engine = MseNas(**(SMALL | {"population": 2, "generations": 1, "steps": 3}), lr=0.01)
    asked = {"fitness": "trained:12,rdm:pearson=0.1", "images": 300}
    alone = engine.search(task(**asked))
    executor = LocalExecutor(2)
    try:
        assert engine.search(task(**asked, executor=executor)) == alone
    finally:
        executor.close()
    assert max(row["trained:12"] for row in alone.trace) > 0.15
    assert len({row["trained:12"] for row in alone.trace}) > 1


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        ({"algorithm": "nsga2"}, {}, "expected two or more terms for the algorithm nsga2"),
        ({}, {"layers": 3}, "expected layers >= 4 for motifs, got 3"),
        ({}, {"precision": "bfloat16"}, "expected precision float32 for the engine mse-nas"),
    ],
)
def test_a_search_names_what_is_wrong(engine: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MseNas(**SMALL, **engine).search(task(**changes))


def test_an_engine_names_what_is_wrong() -> None:
    with pytest.raises(UserError, match="expected steps >= 1, got 0"):
        make_engine("mse-nas", {"steps": 0})
    with pytest.raises(UserError, match="expected algorithm of mse-nas to be"):
        make_engine("mse-nas", {"algorithm": "sga"})


# --- the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["biorobust", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.mark.slow
def test_a_genotype_found_is_trained_listed_and_shown(call: Any, tmp_path: Path) -> None:
    examples = load_examples("digits", "train", 60)
    few = tmp_path / "few.npz"
    images = {"train_images": examples.x[:, 0], "train_labels": examples.y}
    np.savez(few, **images, test_images=examples.x[:20, 0], test_labels=examples.y[:20])
    changes = [f"{key}={value}" for key, value in (SMALL | {"algorithm": "nsga2"}).items()]
    sets = [part for change in changes for part in ("--set", change)]
    command = ["search", "--space", "mse-nas", "--engine", "mse-nas", "--fitness", "rdm,spikes", "--channels", "2",
               "--data-file", few, "--workers", "1", "--out", tmp_path / "s", *sets]  # fmt: skip
    code, out, err = call(*command, "--json")
    assert code == 0, err
    document = json.loads(out)
    genotype = read_genotype(tmp_path / "s" / "genotype.toml")
    assert genotype.model_dump(mode="json") == document["genotype"]
    assert (document["finished"], document["fitness"]) == (True, "rdm:hamming=1,spikes=1")
    code, out, err = call(*command)
    hint = out.replace("\n", " ").partition("train it: biorobust ")[2].split()
    assert hint[:3] == ["train", "--genotype", str(tmp_path / "s" / "genotype.toml")]
    code, out, err = call(*hint, "--epochs", "1", "--out", tmp_path / "t", "--json")
    assert code == 0, err
    card = catalog.card(str(tmp_path / "t" / "genotype.toml"))
    assert card.net["name"] == "motifs"
    assert card.datasets["digits"].net == {"channels": 2, "steps": 2}
    code, out, err = call("list", "spaces", "--json")
    assert json.loads(out)["spaces"]["mse-nas"].endswith("[17 motifs]")
    code, out, err = call("show", "mse-nas", "--json")
    facts = json.loads(out)
    assert (facts["kind"], facts["space of that name"]["kind"]) == ("engine", "space")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "mse-nas"], "expected a Space for the engine darts, got mse-nas: take the engine mse-nas"),
        (["--space", "darts", "--engine", "mse-nas"], "expected a MotifSpace for the engine mse-nas, got darts"),
        (["--space", "mse-nas", "--engine", "mse-nas", "--fitness", "rdm:x"], "unknown metric of rdm 'x'"),
        (["--space", "mse-nas", "--engine", "mse-nas", "--set", "steps=0"], "expected steps >= 1, got 0"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: list[str], message: str, call: Any) -> None:
    code, out, err = call("search", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
