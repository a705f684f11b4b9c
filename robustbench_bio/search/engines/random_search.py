"""Random search: the baseline that every engine has to beat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, final

from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.records.genotype import Genotype
from robustbench_bio.search.base import ENGINES, SearchTask
from robustbench_bio.search.candidate_engine import CandidateEngine, Scored, as_candidate
from robustbench_bio.search.cells import draw_genotype


@final
@ENGINES.register("random")
@dataclass(frozen=True, kw_only=True)
class RandomSearch(CandidateEngine):
    """Genotypes drawn uniformly, each trained for a few epochs; the best wins (Li & Talwalkar 2019, arXiv:1902.07638).

    On purpose different from that paper: every candidate has weights of its own, none are shared.
    """

    small: ClassVar[Mapping[str, Any]] = MappingProxyType({"epochs": 8, "candidates": 16, "channels": 4, "layers": 3})

    candidates: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(candidates=(self.candidates, 1))

    @property
    def total(self) -> int:
        return self.candidates

    def propose(self, task: SearchTask, history: Sequence[Scored]) -> list[Genotype]:
        return [drawn(task, number) for number in range(len(history), self.candidates)]


def drawn(task: SearchTask, number: int) -> Genotype:
    """Return the genotype that a task's seed draws for candidate `number`, counted from 0."""
    generator = torch_generator(task.seed, "genotype", number)
    return as_candidate(task, draw_genotype(task.space, generator, name=task.name, source=task.source), number)
