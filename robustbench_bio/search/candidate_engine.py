"""What engines share that train every candidate on its own: the training, the scores, the history."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from robustbench_bio import nets, rules
from robustbench_bio.core.errors import DivergedError, UserError
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.datasets.base import Examples
from robustbench_bio.nets.base import Inputs
from robustbench_bio.records.card import Recipe
from robustbench_bio.records.genotype import Genotype
from robustbench_bio.rules import RuleOptions
from robustbench_bio.search.base import Engine, Labelled, SearchResult, SearchTask
from robustbench_bio.search.executors import CandidateScores, Scorer
from robustbench_bio.search.fitness import Fitness
from robustbench_bio.search.score_table import ScoreTable
from robustbench_bio.training import loop


class Scored(NamedTuple):
    """A candidate with its scores, as `Fitness.measure` returns them, and their sum, the larger the better."""

    genotype: Genotype
    scores: CandidateScores
    fitness: float


@dataclass(frozen=True)
class CandidateScorer(Scorer):
    """Trains a network of the candidate's cells by its own rules on the fit half, and scores it on the other half.

    Every candidate starts from the same seed, so that its scores are a function of its cells alone. A job is a
    genotype. A training that diverges gets the scores of a network that learnt nothing.
    """

    inputs: Inputs
    channels: int
    layers: int
    fit: Labelled
    validation: Labelled
    recipe: Recipe
    fitness: Fitness
    seed: int
    device: str

    def prepare(self) -> Examples:
        return self.fit.examples()

    def score(self, prepared: Examples, job: Genotype) -> CandidateScores:
        net = nets.build("cells", self.inputs, seed=self.seed, genotype=job, channels=self.channels, layers=self.layers)
        rules.attach(net, "genotype", seed=self.seed)
        rules.initialise(net, RuleOptions(), self.seed)
        if self.device == "cpu":
            # Faster there; on a GPU candidates keep the order of memory in which their numbers were measured.
            net.to(memory_format=torch.channels_last)
        try:
            loop.train(net, prepared, self.recipe, seed=self.seed, device=self.device)
        except DivergedError:
            return self.fitness.worst()
        return self.fitness.measure(net, *self.validation.to(self.device), seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class CandidateEngine(Engine):
    """An engine that trains every candidate for a few epochs by SGD with a cosine to zero, and keeps the best."""

    terms: ClassVar[frozenset[str]] = frozenset({"accuracy", "loss", "robust"})
    fitness: ClassVar[str] = "accuracy"
    scores_candidates: ClassVar[bool] = True

    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.05

    def __post_init__(self) -> None:
        at_least(epochs=(self.epochs, 1), batch_size=(self.batch_size, 1))
        if not self.lr > 0:
            raise UserError(f"expected lr > 0, got {self.lr:g}")

    @property
    @abstractmethod
    def total(self) -> int:
        """How many candidates are scored."""

    @abstractmethod
    def propose(self, task: SearchTask, history: Sequence[Scored]) -> list[Genotype]:
        """Return the next candidates, at least one, given those of all rounds before; nothing else decides them."""

    def search(self, task: SearchTask, progress: Progress | None = None) -> SearchResult:
        return _CandidateSearch(task, self).run(progress or silent)


def as_candidate(task: SearchTask, genotype: Genotype, number: int) -> Genotype:
    """Return the genotype under the name and source of a search's candidate."""
    source = f"{task.source} Candidate {number + 1}."
    return genotype.model_copy(update={"name": task.name, "source": source})


class _CandidateSearch:
    def __init__(self, task: SearchTask, engine: CandidateEngine) -> None:
        self.task, self.engine = task, engine
        recipe = Recipe(
            epochs=engine.epochs, batch_size=engine.batch_size, lr=engine.lr, crop=task.crop, flip=task.flip,
            val_fraction=0, select="last", precision=task.precision,
        )  # fmt: skip
        scorer = CandidateScorer(
            task.inputs, task.channels, task.layers, task.fit, task.validation, recipe, task.fitness, task.seed,
            task.device,
        )  # fmt: skip
        self.table = ScoreTable(task, engine, scorer)

    def run(self, progress: Progress) -> SearchResult:
        self.table.restore()
        history: list[Scored] = []
        while len(history) < self.engine.total:
            proposed = self.engine.propose(self.task, history)[: self.engine.total - len(history)]
            complete = self._score(proposed, len(history), progress)
            # Of an incomplete round, what stands before the first gap.
            for genotype in proposed:
                if _cells(genotype) not in self.table:
                    break
                scores = self.table[_cells(genotype)]
                history.append(Scored(genotype, scores, self.task.fitness.value(scores)))
            if not complete:
                break
        self.table.save()
        best = max(history, key=lambda scored: scored.fitness, default=None)
        finished = len(history) >= self.engine.total
        return SearchResult(best.genotype if best else None, _trace(history), finished)

    def _score(self, proposed: list[Genotype], before: int, progress: Progress) -> bool:
        """Score a round of candidates; false if the deadline came first."""
        jobs = {_cells(genotype): genotype for genotype in proposed}
        repeated = len(proposed) - len(jobs)

        def report(done: int, scores: CandidateScores) -> None:
            line = f"fitness {self.task.fitness.value(scores):.3f}"
            progress(before + repeated + done, self.engine.total, line)

        return self.table.score(jobs, report)


def _cells(genotype: Genotype) -> str:
    """Return a text that is the same for equal cells."""
    return genotype.model_copy(update={"name": "x", "source": ""}).to_toml()


def _trace(history: Sequence[Scored]) -> list[dict[str, float]]:
    rows = []
    best = -np.inf
    for number, scored in enumerate(history, 1):
        best = max(best, scored.fitness)
        rows.append({"candidate": float(number), **scored.scores, "fitness": scored.fitness, "best_fitness": best})
    return rows
