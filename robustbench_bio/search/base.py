"""What a search engine is: from a search space and labelled images to a genotype."""

import dataclasses
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.parameters import checked
from robustbench_bio.core.progress import Progress
from robustbench_bio.core.registry import Registry
from robustbench_bio.datasets.base import Examples
from robustbench_bio.nets.base import Inputs
from robustbench_bio.records.base import Precision, Record
from robustbench_bio.records.motifs import AnyGenotype
from robustbench_bio.records.space import Space
from robustbench_bio.search.executors import Executor, LocalExecutor
from robustbench_bio.search.fitness import Fitness
from robustbench_bio.training.checkpoint import Checkpoint
from robustbench_bio.training.steps import split

#: The kind of space that an engine searches; cells unless it says otherwise.
S = TypeVar("S", bound=Record, default=Space)


class Labelled(NamedTuple):
    """Images x, uint8 [N, C, H, W], with labels y, int64 [N]."""

    x: Tensor
    y: Tensor

    def to(self, device: str) -> "Labelled":
        """Return the same on a device."""
        return Labelled(self.x.to(device), self.y.to(device))

    def examples(self) -> Examples:
        """Return the same as a data set gives it."""
        return Examples(self.x.cpu().numpy(), self.y.cpu().numpy(), np.arange(len(self.y)))


#: Fields of a space that do not change what a search finds; width and depth are those of the task.
_DECIDE_NOTHING = {"name", "title", "summary", "reference", "channels", "layers"}


@dataclass(frozen=True, kw_only=True)
class SearchTask(Generic[S]):
    """What an engine is given to search with; `name` and `source` are those of the genotype.

    Attributes:
        fit: images that weights learn from.
        validation: images that architectures are judged by.
        crop, flip: random changes of the images that weights learn from, as in `Recipe`.
        checkpoint: file to continue from and to write to; None keeps nothing.
        deadline: when to stop, on the clock of `time.monotonic`.
    """

    space: S
    inputs: Inputs
    fit: Labelled
    validation: Labelled
    channels: int
    layers: int
    fitness: Fitness
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "float32"
    crop: int = 0
    flip: bool = False
    executor: Executor = field(default_factory=LocalExecutor)
    checkpoint: Path | None = None
    deadline: float = math.inf
    name: str = "found"
    source: str = "Found by biorobust search."

    def __post_init__(self) -> None:
        if self.layers < 3:
            raise UserError(f"expected layers >= 3, got {self.layers}: fewer do not hold both kinds of cell")

    def expired(self) -> bool:
        """Tell whether the deadline has passed."""
        return time.monotonic() > self.deadline

    def identity(self, engine: "Engine[S]") -> str:
        """Return a text of all that decides the outcome: a checkpoint of another one must not be continued."""
        data = Labelled(*(torch.cat(pair) for pair in zip(self.fit, self.validation, strict=True))).examples()
        return json.dumps(
            {
                "engine": [type(engine).__name__, dataclasses.asdict(engine)],
                "space": self.space.model_dump(exclude=_DECIDE_NOTHING),
                "size": [self.channels, self.layers],
                "fitness": str(self.fitness),
                "seed": self.seed,
                "precision": self.precision,
                "augmentation": [self.crop, self.flip],
                "data": [data.sha256(), len(self.fit.y)],
            },
            sort_keys=True,
        )

    def open_checkpoint(self, engine: "Engine[S]") -> Checkpoint:
        """Return the checkpoint that this search with this engine continues from and writes."""
        return Checkpoint(self.checkpoint, self.identity(engine), "a search with other settings, seed, space or data")


def halves(examples: Examples, seed: int) -> tuple[Labelled, Labelled]:
    """Split images into two halves of every class: those to fit weights on, those to judge by; raises `UserError`."""
    labels, counts = np.unique(examples.y, return_counts=True)
    if len(examples) == 0 or counts.min() < 2:
        least = f"{counts.min()} of class {labels[counts.argmin()]}" if len(examples) else "none"
        raise UserError(f"expected two or more images of each class to split for a search, got {least}: take more")
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    fit, validation = split(examples.y, 0.5, seed)
    return Labelled(x[fit], y[fit]), Labelled(x[validation], y[validation])


class SearchResult(NamedTuple):
    """What a search found.

    Attributes:
        genotype: the best so far; None if nothing was scored yet.
        trace: one row for each epoch or candidate; all rows have the same columns.
        finished: whether the engine's budget was used up, not stopped by the deadline.
        front: genotypes of which none is better than another in every objective; empty for one objective.
    """

    genotype: AnyGenotype | None
    trace: list[dict[str, float]]
    finished: bool
    front: tuple[AnyGenotype, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Engine(ABC, Generic[S]):
    """A search algorithm with its hyper-parameters; a subclass is a frozen dataclass with the paper's defaults.

    Values out of their range raise `UserError`.

    Class attributes:
        fitness: what it looks for unless told otherwise.
        terms: kinds of fitness that it can follow.
        scores_candidates: whether it scores candidates, which an executor may spread over workers.
        small: parameters, `channels` and `layers` that fit images of 8×8 and minutes on two cores.
        searches: the kind of space.
    """

    fitness: ClassVar[str]
    terms: ClassVar[frozenset[str]]
    scores_candidates: ClassVar[bool]
    small: ClassVar[Mapping[str, Any]]
    searches: ClassVar[type[Record]] = Space

    epochs: int

    @classmethod
    def read_fitness(cls, text: str) -> Fitness:
        """Read what the engine shall look for; raises `UserError`."""
        return Fitness.read(text)

    @abstractmethod
    def search(self, task: SearchTask[S], progress: Progress | None = None) -> SearchResult:
        """Search until the budget is used up or the deadline has passed, and leave a checkpoint.

        Everything random is drawn from the task's seed and the number of the step, so that the same call gives
        the same genotype, and a search that was interrupted anywhere continues to the same genotype.

        Raises:
            UserError: a checkpoint of another search.
            DivergedError: the one network that the engine trains diverges.
        """

    def network_changes(self) -> str:
        """Return options of `biorobust train` that a network found takes besides its size; "" if none."""
        return ""


ENGINES: Registry[type[Engine[Any]]] = Registry("engine", "robustbench_bio.search.engines")


def make_engine(name: str, params: Mapping[str, Any]) -> Engine[Any]:
    """Return the engine `name` with some parameters set; raises `UserError` for a name or value that does not fit."""
    cls = ENGINES.get(name)
    return cls(**checked(cls, name, params))
