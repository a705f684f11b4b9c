"""The engine mse-nas: evolution of motifs for spiking networks, with or without training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.records.base import Record
from robustbench_bio.records.card import Recipe
from robustbench_bio.records.motif_space import MotifSpace
from robustbench_bio.records.motifs import Coding, MotifGenotype, reduction_cells
from robustbench_bio.search.base import ENGINES, Engine, SearchResult, SearchTask
from robustbench_bio.search.executors import CandidateScores
from robustbench_bio.search.motifs.fitness import MotifFitness
from robustbench_bio.search.motifs.genetic import Algorithm, GeneticAlgorithm
from robustbench_bio.search.motifs.genome import Bounds, Genome, GenomeCode
from robustbench_bio.search.motifs.scorer import MotifScorer
from robustbench_bio.search.score_table import ScoreTable


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
    algorithm: Algorithm = "ga"
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

    def search(self, task: SearchTask[MotifSpace], progress: Progress | None = None) -> SearchResult:
        return _MotifSearch(task, self).run(progress or silent)

    def scorer(self, task: SearchTask[MotifSpace]) -> MotifScorer:
        """Return what scores a genotype in a search of this task; raises `UserError` as the search does."""
        return _MotifSearch(task, self).scorer

    def network_changes(self) -> str:
        coding = f" --set net.coding={self.coding}" if self.coding != "direct" else ""
        return f" --set net.steps={self.steps}{coding} --set recipe.optimiser=adamw --set recipe.lr={self.lr:g}"


class _Scored(NamedTuple):
    genome: Genome
    generation: int
    scores: CandidateScores


class _MotifSearch:
    """One search. A continued one runs through the generations again, with the scores that it has kept."""

    def __init__(self, task: SearchTask[MotifSpace], engine: MseNas) -> None:
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
        self.scorer = self._scorer(task.fitness)
        self.table = ScoreTable(task, engine, self.scorer)
        self.history: list[_Scored] = []
        self._canonicals: dict[Genome, Genome] = {}

    def _scorer(self, fitness: MotifFitness) -> MotifScorer:
        task, engine = self.task, self.engine
        recipe = Recipe(
            epochs=fitness.epochs(engine.epochs), batch_size=min(64, len(task.fit.y)), optimiser="adamw",
            lr=engine.lr, weight_decay=0.01, init="network", crop=task.crop, flip=task.flip, val_fraction=0,
            select="last",
        )  # fmt: skip
        return MotifScorer(
            inputs=task.inputs, channels=task.channels, steps=engine.steps, coding=engine.coding,
            batches=engine.batches, batch_size=engine.batch_size, fitness=fitness, fit=task.fit,
            validation=task.validation, recipe=recipe, seed=task.seed, device=task.device,
        )  # fmt: skip

    def run(self, progress: Progress) -> SearchResult:
        self.table.restore()
        algorithm = self._algorithm()
        generation, finished = 0, True
        while algorithm.has_next():
            generation += 1
            genomes = [self._canonical(genome) for genome in algorithm.ask()]
            if not genomes:
                break
            finished = self._score(genomes, generation, progress)
            for genome in genomes:
                if _key(genome) not in self.table:
                    break
                self.history.append(_Scored(genome, generation, self.table[_key(genome)]))
            if not finished:
                break
            algorithm.tell([self._objectives(self.table[_key(genome)]) for genome in genomes])
        self.table.save()
        return self._result(finished)

    def _algorithm(self) -> GeneticAlgorithm:
        engine = self.engine
        return GeneticAlgorithm(
            engine.algorithm,
            self.code,
            self._canonical,
            objectives=len(self.fitness.terms) if engine.algorithm == "nsga2" else 1,
            population=engine.population,
            offspring=engine.offspring,
            generations=engine.generations,
            seed=torch_generator(self.task.seed, "mse-nas").initial_seed() % 2**32,
        )

    def _canonical(self, genome: Genome) -> Genome:
        """Return the canonical genome; kept, as the search for duplicates asks for each again and again."""
        if genome not in self._canonicals:
            self._canonicals[genome] = self.code.canonical(genome, self.reductions)
        return self._canonicals[genome]

    def _objectives(self, scores: CandidateScores) -> list[float]:
        if self.engine.algorithm == "nsga2":
            return self.fitness.objectives(scores)
        return [self.fitness.value(scores)]

    def _score(self, genomes: Sequence[Genome], generation: int, progress: Progress) -> bool:
        """Score a generation; false if the deadline came first."""
        jobs = {_key(genome): self.code.decode(genome, name="candidate", source="") for genome in genomes}
        before = len(self.history) + len(genomes) - len(jobs)
        total = self.engine.population + (self.engine.generations - 1) * self.engine.offspring

        def report(done: int, scores: CandidateScores) -> None:
            progress(before + done, total, f"generation {generation}: fitness {self.fitness.value(scores):.4f}")

        return self.table.score(jobs, report)

    def _result(self, finished: bool) -> SearchResult:
        if not self.history:
            return SearchResult(None, [], finished)
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
        genotypes = tuple(self._genotype(i, f"{self.task.name}-{i + 1}") for i in front)
        return SearchResult(self._genotype(best, self.task.name), trace, finished, genotypes)

    def _genotype(self, i: int, name: str) -> MotifGenotype:
        source = f"{self.task.source} Fitness {self.fitness}, {self.engine.algorithm}. Candidate {i + 1}."
        return self.code.decode(self.history[i].genome, name=name, source=source)


def _key(genome: Genome) -> str:
    """Return a text for one canonical genome, as JSON keys are texts."""
    return ",".join(map(str, genome))


def _dominated(one: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Tell whether another row is nowhere smaller and somewhere larger."""
    return bool(((others >= one).all(1) & (others > one).any(1)).any())
