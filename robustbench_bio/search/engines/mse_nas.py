"""The engine mse-nas: evolution of motifs for spiking networks, with or without training."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_bio import nets, rules
from robustbench_bio.core.errors import DivergedError, UserError
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.datasets.base import Examples
from robustbench_bio.nets.base import Inputs
from robustbench_bio.nets.cost import parameters
from robustbench_bio.records.base import Record
from robustbench_bio.records.card import Recipe
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.records.motifs import Coding, MotifGenotype, reduction_cells
from robustbench_bio.search.base import ENGINES, Engine, Found, Labelled, Task
from robustbench_bio.search.executor import Scores, Work
from robustbench_bio.search.motifs import rdm
from robustbench_bio.search.motifs.fitness import MotifFitness
from robustbench_bio.search.motifs.genome import Bounds, Genome, GenomeCode
from robustbench_bio.training import checkpoint
from robustbench_bio.training import loop as train


@final
@ENGINES.register("mse-nas")
@dataclass(frozen=True, kw_only=True)
class MseNas(Engine[MotifSpace]):
    """Genetic search over motifs, kernels and connections of spiking networks (MSE-NAS, arXiv:2304.10749), by pymoo.

    Two-point crossover, polynomial mutation (η = 3) rounded to integers, one gene in each genome on average. One
    objective, the weighted sum of the fitness, is followed by an elitist genetic algorithm; with
    `algorithm="nsga2"` every term of the fitness is an objective of its own and the outcome is a Pareto front.

    Different on purpose from the released code, which declares two objectives and fills in one: the number of
    objectives is that of the terms. Two genomes that build the same network count as duplicates, as half of the
    genes are inert. Candidates are judged on images of the train split only.

    Args:
        population, offspring: sizes; the first generation is drawn uniformly.
        generations: the first one among them.
        algorithm: "ga" for the weighted sum, "nsga2" for one objective for each term.
        bounds: "clean", or "released" for the genes that the released code reaches, see `GenomeCode`.
        steps: T of the networks.
        coding: "direct" for images, "frames" for the frames of event cameras, see `MotifNet`.
        batches, batch_size: of the stimuli that rdm and sahd take.
        epochs: of a candidate's training, where the fitness says `trained` without a number.
        lr: of that training, by AdamW with a cosine to zero, in batches of 64.

    Raises:
        UserError: a value out of its range.
    """

    fitness: ClassVar[str] = "rdm"
    terms: ClassVar[frozenset[str]] = frozenset({"rdm", "sahd", "trained", "spikes", "parameters"})
    scores_candidates: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = MappingProxyType({
        "population": 20, "offspring": 20, "generations": 10, "steps": 4, "batches": 1, "epochs": 4, "channels": 4,
        "layers": 6,
    })  # fmt: skip
    searches: ClassVar[type[Record]] = MotifSpace

    population: int = 50
    offspring: int = 50
    generations: int = 100
    algorithm: Literal["ga", "nsga2"] = "ga"
    bounds: Bounds = "clean"
    steps: int = 10
    coding: Coding = "direct"
    batches: int = 2
    batch_size: int = 128
    epochs: int = 10
    lr: float = 0.003

    def __post_init__(self) -> None:
        at_least(population=(self.population, 2), offspring=(self.offspring, 1), generations=(self.generations, 1))
        at_least(steps=(self.steps, 1), batches=(self.batches, 1), batch_size=(self.batch_size, 2))
        at_least(epochs=(self.epochs, 1))
        if not self.lr > 0:
            raise UserError(f"expected lr > 0, got {self.lr:g}")

    @classmethod
    def read_fitness(cls, text: str) -> MotifFitness:
        return MotifFitness.read(text)

    def search(self, task: Task[MotifSpace], progress: train.Progress | None = None) -> Found:
        return _Evolution(task, self).run(progress)

    def work(self, task: Task[MotifSpace]) -> "MotifWork":
        """Return what scores a genotype in a search of this task; raises `UserError` as the search does."""
        return _Evolution(task, self).work

    def network_changes(self) -> str:
        coding = f" --set net.coding={self.coding}" if self.coding != "direct" else ""
        return f" --set net.steps={self.steps}{coding} --set recipe.optimiser=adamw --set recipe.lr={self.lr:g}"


class _Prepared(NamedTuple):
    stimuli: list[Tensor]
    examples: Examples


@dataclass(frozen=True)
class MotifWork(Work):
    """Scores a genotype of motifs: what its untrained network does with stimuli, or what it learns in some epochs.

    Every candidate starts from the same seed, so that its scores are a function of its motifs alone. Stimuli are
    the same for all, drawn from the fit half; that half also trains, the other judges.
    """

    inputs: Inputs
    channels: int
    engine: MseNas
    fitness: MotifFitness
    fit: Labelled
    validation: Labelled
    recipe: Recipe
    seed: int
    device: str

    def prepare(self) -> _Prepared:
        size = min(self.engine.batch_size, len(self.fit.y))
        order = torch.randperm(len(self.fit.y), generator=torch_generator(self.seed, "stimuli"))
        chosen = order.repeat(1 + self.engine.batches * size // len(order))[: self.engine.batches * size]
        stimuli = [(self.fit.x[rows].float() / 255).to(self.device) for rows in torch.split(chosen, size)]
        return _Prepared(stimuli, Examples(self.fit.x.numpy(), self.fit.y.numpy(), np.arange(len(self.fit.y))))

    def score(self, prepared: _Prepared, job: MotifGenotype) -> Scores:
        net = nets.build(
            "motifs", self.inputs, seed=self.seed, genotype=job, channels=self.channels, steps=self.engine.steps,
            coding=self.engine.coding,
        ).to(self.device)  # fmt: skip
        sahd = any(term.name == "sahd" for term in self.fitness.terms)
        scores = rdm.measure(net, prepared.stimuli, self.fitness.metrics, sahd=sahd)
        scores = {**scores, "spikes": scores["spikes"] / 1000, "parameters": parameters(net) / 1000}
        if self.fitness.trains:
            name = next(term.name for term in self.fitness.terms if term.name.startswith("trained"))
            scores[name] = self._trained(net, prepared.examples)
        return scores

    def _trained(self, net: nets.Net, examples: Examples) -> float:
        rules.attach(net, "bp", seed=self.seed)
        try:
            train.train(net, examples, self.recipe, seed=self.seed, device=self.device)
        except DivergedError:
            return 0.0
        return train.accuracy(net, *self.validation.to(self.device))


class _Scored(NamedTuple):
    genome: Genome
    generation: int
    scores: Scores


class _Evolution:
    """One search. A continued one runs through the generations again, with the scores that it has kept."""

    def __init__(self, task: Task[MotifSpace], engine: MseNas) -> None:
        if not isinstance(task.fitness, MotifFitness):
            raise UserError(f"expected a fitness of spiking networks, got {task.fitness}: take MotifFitness")
        if task.precision != "float32":
            raise UserError(f"expected precision float32 for the engine mse-nas, got {task.precision}")
        if engine.algorithm == "nsga2" and len(task.fitness.terms) < 2:
            raise UserError(f"expected two or more terms for the algorithm nsga2, got {task.fitness}: add one, such as "
                            "spikes, or take the algorithm ga")  # fmt: skip
        self.task, self.engine, self.fitness = task, engine, task.fitness
        self.code = GenomeCode(task.space, task.layers, engine.bounds)
        self.reductions = reduction_cells(task.layers, engine.coding)
        if len(self.reductions) == task.layers:
            raise UserError(f"expected layers >= 4 for motifs, got {task.layers}: every cell would halve the map")
        recipe = Recipe(
            epochs=self.fitness.epochs(engine.epochs), batch_size=min(64, len(task.fit.y)), optimiser="adamw",
            lr=engine.lr, weight_decay=0.01, init="network", crop=task.crop, flip=task.flip, val_fraction=0,
            select="last",
        )  # fmt: skip
        self.work = MotifWork(
            task.inputs, task.channels, engine, self.fitness, task.fit, task.validation, recipe, task.seed, task.device
        )
        self.known: dict[str, Scores] = {}
        self.history: list[_Scored] = []
        self._canonicals: dict[Genome, Genome] = {}
        self._identity = task.identity(engine)

    def run(self, progress: train.Progress | None) -> Found:
        saved = checkpoint.restore(self.task.checkpoint, self._identity, "cpu")
        if saved is not None:
            self.known = saved.state["known"]
        algorithm = self._algorithm()
        generation, finished = 0, True
        while algorithm.has_next():
            generation += 1
            asked = algorithm.ask()
            genomes = [self._canonical(row) for row in asked.get("X")]
            finished = self._score(genomes, generation, progress)
            for genome in genomes:
                if _key(genome) not in self.known:
                    break
                self.history.append(_Scored(genome, generation, self.known[_key(genome)]))
            if not finished:
                break
            self._tell(algorithm, asked, genomes)
        self._save()
        return self._found(finished)

    def _algorithm(self) -> Any:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.duplicate import ElementwiseDuplicateElimination
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.pntx import TwoPointCrossover
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling

        lower, upper = np.array(self.code.lower), np.array(self.code.upper)
        several = self.engine.algorithm == "nsga2"
        problem = Problem(
            n_var=self.code.length, n_obj=len(self.fitness.terms) if several else 1, xl=lower, xu=upper, vtype=int
        )
        algorithm = (NSGA2 if several else GA)(
            pop_size=self.engine.population,
            n_offsprings=self.engine.offspring,
            sampling=IntegerRandomSampling(),
            crossover=TwoPointCrossover(),
            mutation=PM(eta=3, prob_var=1 / self.code.length, vtype=float, repair=RoundingRepair()),
            eliminate_duplicates=ElementwiseDuplicateElimination(
                cmp_func=lambda one, other: self._canonical(one.X) == self._canonical(other.X)
            ),
        )
        seed = torch_generator(self.task.seed, "mse-nas").initial_seed() % 2**32
        algorithm.setup(problem, termination=("n_gen", self.engine.generations), seed=seed, verbose=False)
        return algorithm

    def _canonical(self, row: NDArray[np.int64]) -> Genome:
        """Return the canonical genome of a row; kept, as the search for duplicates asks for each again and again."""
        genes = tuple(row.tolist())
        if genes not in self._canonicals:
            self._canonicals[genes] = self.code.canonical(genes, self.reductions)
        return self._canonicals[genes]

    def _tell(self, algorithm: Any, asked: Any, genomes: Sequence[Genome]) -> None:
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        rows = [self._objectives(self.known[_key(genome)]) for genome in genomes]
        Evaluator().eval(StaticProblem(algorithm.problem, F=-np.array(rows)), asked)
        algorithm.tell(infills=asked)

    def _objectives(self, scores: Scores) -> list[float]:
        if self.engine.algorithm == "nsga2":
            return self.fitness.objectives(scores)
        return [self.fitness.value(scores)]

    def _score(self, genomes: Sequence[Genome], generation: int, progress: train.Progress | None) -> bool:
        """Score the genomes that are not known yet; false if the deadline came first."""
        fresh = {_key(genome): genome for genome in genomes if _key(genome) not in self.known}
        keys, saved = list(fresh), time.monotonic()
        jobs = [self.code.decode(genome, name="candidate", source="") for genome in fresh.values()]
        total = self.engine.population + (self.engine.generations - 1) * self.engine.offspring
        done = len(self.history) + len(genomes) - len(fresh)
        if jobs and not self.task.expired():
            for place, scores in self.task.executor.scores(self.work, jobs, self.task.deadline):
                self.known[keys[place]] = scores
                done += 1
                if time.monotonic() - saved > train.CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
                if progress:
                    progress(done, total, f"generation {generation}: fitness {self.fitness.value(scores):.4f}")
        return all(key in self.known for key in keys)

    def _found(self, finished: bool) -> Found:
        if not self.history:
            return Found(None, [], finished)
        several = self.engine.algorithm == "nsga2"
        first = {one.genome: i for i, one in reversed(list(enumerate(self.history)))}
        values = np.array([self._objectives(one.scores) for one in self.history])
        front = [i for i in sorted(first.values()) if several and not _dominated(values[i], values)]
        totals = [self.fitness.value(one.scores) for one in self.history]
        on_front = {self.history[i].genome for i in front}
        best = max(front or range(len(totals)), key=totals.__getitem__)
        trace = [
            {"candidate": i + 1.0, "generation": float(one.generation)}
            | {term.name: one.scores[term.name] for term in self.fitness.terms}
            | {"fitness": totals[i], "best_fitness": max(totals[: i + 1])}
            | ({"front": float(one.genome in on_front)} if several else {})
            | one.scores
            for i, one in enumerate(self.history)
        ]
        made = tuple(self._genotype(i, f"{self.task.name}-{i + 1}") for i in front)
        return Found(self._genotype(best, self.task.name), trace, finished, made)

    def _genotype(self, i: int, name: str) -> MotifGenotype:
        source = f"{self.task.source} Fitness {self.fitness}, {self.engine.algorithm}. Candidate {i + 1}."
        return self.code.decode(self.history[i].genome, name=name, source=source)

    def _save(self) -> None:
        checkpoint.save(self.task.checkpoint, self._identity, checkpoint.Saved({"known": self.known}, {}))


def _key(genome: Genome) -> str:
    """Return a text for one canonical genome, as JSON keys are texts."""
    return ",".join(map(str, genome))


def _dominated(one: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Tell whether another row is nowhere smaller and somewhere larger."""
    return bool(((others >= one).all(1) & (others > one).any(1)).any())
