"""Regularised evolution: the best of a sample has a child, the oldest dies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, final

import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.records.genotype import Genotype
from robustbench_bio.search.base import ENGINES, SearchTask
from robustbench_bio.search.candidate_engine import CandidateEngine, Scored, as_candidate
from robustbench_bio.search.cells import mutate
from robustbench_bio.search.engines.random_search import drawn


@final
@ENGINES.register("evolution")
@dataclass(frozen=True, kw_only=True)
class Evolution(CandidateEngine):
    """Regularised (aging) evolution (Real et al. 2019, arXiv:1802.01548, algorithm 1).

    The population is the youngest `population` candidates. A parent is the fittest of `sample` drawn from it
    without replacement; its child differs by one mutation.

    On purpose different from the paper: `offspring` children have their parents in one population and are
    scored side by side, so that the outcome does not depend on how many workers there are; with 1 it is the
    paper's loop. The first population counts among the `candidates`.
    """

    small: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 6, "candidates": 20, "population": 6, "sample": 3, "offspring": 2, "channels": 4, "layers": 3}
    )

    candidates: int = 200
    population: int = 50
    sample: int = 15
    offspring: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(population=(self.population, 1), sample=(self.sample, 1), offspring=(self.offspring, 1))
        if self.sample > self.population or self.population > self.candidates:
            got = f"{self.sample}, {self.population} and {self.candidates}"
            raise UserError(f"expected sample <= population <= candidates, got {got}")

    @property
    def total(self) -> int:
        return self.candidates

    def propose(self, task: SearchTask, history: Sequence[Scored]) -> list[Genotype]:
        if len(history) < self.population:
            return [drawn(task, number) for number in range(len(history), self.population)]
        alive = history[-self.population :]
        return [self._child(task, alive, len(history) + i) for i in range(self.offspring)]

    def _child(self, task: SearchTask, alive: Sequence[Scored], number: int) -> Genotype:
        generator = torch_generator(task.seed, "child", number)
        competing = torch.randperm(len(alive), generator=generator)[: self.sample].tolist()
        parent = max((alive[i] for i in sorted(competing)), key=lambda scored: scored.fitness)
        child = mutate(parent.genotype, task.space, generator, name=task.name, source=task.source)
        return as_candidate(task, child, number)
