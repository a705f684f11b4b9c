"""Evolution in the space of the alphas: CMA-ES proposes them, a compound fitness judges them on the supernet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from cmaes import SepCMA
from numpy.typing import NDArray
from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.progress import Progress
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.search.base import ENGINES, Labelled, SearchResult, SearchTask
from robustbench_bio.search.executors import CandidateScores
from robustbench_bio.search.supernet.learning import SupernetEngine, SupernetSearch
from robustbench_bio.search.supernet.scorer import SupernetScorer

Vector = NDArray[np.float64]


@final
@ENGINES.register("eg-nas")
@dataclass(frozen=True, kw_only=True)
class EgNas(SupernetEngine):
    """EG-NAS (AAAI-24): SGD trains the weights, CMA-ES moves the alphas once per epoch from epoch `warm_start` on.

    One exploration: CMA-ES starts at the alphas with step size max(sigma/(t+1), sigma_min), t explorations
    after the first; every candidate is scored on one batch of the validation half, and the alphas go `step` of
    the way to the candidate with the smallest f = −fitness ± diversity·similarity. The sign is + for a
    candidate that is at least as accurate as the present alphas, so that good ones near them are pushed away
    (explore), − for a worse one. Similarity is the mean over edges of (1 + cos)/2 between the softmaxes.

    The covariance is diagonal (sep-CMA-ES; Ros & Hansen 2008): in 2·14·|O| dimensions a full one has 10⁵ entries
    to learn from about a hundred candidates, a diagonal one a few hundred.

    The fitness may be made of accuracy and loss (default: the loss alone, as published); robust accuracy would
    need batch statistics of attacked subsets, which mean nothing.

    On purpose different from the released code, whose search cannot run as it is: candidates are alphas, not
    softmaxes of softmaxes; sigma falls; repeats have seeds of their own; CMA-ES runs more than one generation;
    batch norm uses the batch's statistics. `reference` keeps the released arithmetic: one Gaussian generation
    around softmax(alphas) + 0.01·N(0, 1) with sigma 1, equal seeds in all repeats, candidates of unit length per
    edge, the best of each repeat through a second softmax, the most accurate one added to the alphas.

    Args:
        warm_start: epochs before the first exploration.
        repeats: runs of CMA-ES in one exploration.
        generations: of each run.
        population: candidates of a generation.
        sigma, sigma_min: step size of the first exploration, and the smallest.
        step: how far the alphas go towards the best candidate.
        diversity: λ, weight of the similarity.
        score_batch: images of the validation half that judge the candidates.
    """

    fitness: ClassVar[str] = "loss"
    terms: ClassVar[frozenset[str]] = frozenset({"accuracy", "loss"})
    scores_candidates: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 7, "warm_start": 3, "population": 8, "repeats": 2, "batch_size": 64, "channels": 4, "layers": 3}
    )

    batch_size: int = 256
    lr: float = 0.1
    min_lr: float = 0.0
    warm_start: int = 15
    repeats: int = 3
    generations: int = 2
    population: int = 50
    sigma: float = 1.0
    sigma_min: float = 0.02
    step: float = 0.1
    diversity: float = 0.4
    score_batch: int = 128
    reference: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(warm_start=(self.warm_start, 0), repeats=(self.repeats, 1), generations=(self.generations, 1))
        at_least(population=(self.population, 2), score_batch=(self.score_batch, 2), diversity=(self.diversity, 0))
        at_least(sigma_min=(self.sigma_min, 0), sigma=(self.sigma, self.sigma_min))
        if not self.sigma > 0 or not 0 < self.step <= 1:
            raise UserError(f"expected sigma > 0 and step in (0, 1], got {self.sigma:g} and {self.step:g}")
        if self.warm_start >= self.epochs:
            raise UserError(f"expected warm_start < epochs, got {self.warm_start} and {self.epochs}: it would not move")

    def sigma_at(self, exploration: int) -> float:
        """Return the step size of an exploration counted from 0."""
        return self.sigma if self.reference else max(self.sigma / (exploration + 1), self.sigma_min)

    def search(self, task: SearchTask, progress: Progress | None = None) -> SearchResult:
        return _EgSearch(task, self).run(progress)


class JudgedPoint(NamedTuple):
    """A vector that CMA-ES drew, and f of it, the smaller the better."""

    point: Vector
    value: float


def compound(quality: float, similarity: float, accuracy: float, present_accuracy: float, diversity: float) -> float:
    """Return f, the smaller the better: −quality + diversity·similarity, or − for less accuracy than at present."""
    sign = 1 if accuracy >= present_accuracy else -1
    return -quality + sign * diversity * similarity


def similarity(one: Tensor, other: Tensor) -> float:
    """Return the mean of (1 + cos)/2 over edges, of two tensors [2, edges, primitives]: 1 for equal directions."""
    return ((1 + F.cosine_similarity(one, other, dim=2)) / 2).mean().item()


def evolve(
    judge: Callable[[list[Vector]], list[float] | None],
    mean: Vector,
    *,
    sigma: float,
    population: int,
    generations: int,
    seed: int,
) -> JudgedPoint | None:
    """Minimise by sep-CMA-ES from `mean`; return the best candidate of all generations, None once the judge gives up.

    `judge` gives the values of a generation's points, or None to stop; `sigma` is the standard deviation of the first
    generation; `seed` is in 0..2³² − 1.
    """
    # Ask all, judge all, tell all: the judge may spread a generation over workers without a difference.
    strategy = SepCMA(mean, sigma, seed=seed, population_size=population)
    best: JudgedPoint | None = None
    for _ in range(generations):
        points = [strategy.ask() for _ in range(population)]
        values = judge(points)
        if values is None:
            return None
        strategy.tell(list(zip(points, values, strict=True)))
        for point, value in zip(points, values, strict=True):
            if best is None or value < best.value:
                best = JudgedPoint(point, value)
    return best


class _EgSearch(SupernetSearch[EgNas]):
    def alpha_optimiser(self) -> None:
        return None

    def move_alphas(self, line: Callable[[str], None]) -> bool:
        epoch, index = divmod(self.step, self.epoch_steps)
        if index or epoch < self.engine.warm_start:
            return True
        targets = _Exploration(self, epoch - self.engine.warm_start, line).best()
        if targets is None:
            return False
        with torch.no_grad():
            for alpha, target in zip(self.net.alphas, targets, strict=True):
                # A constant on an edge changes no softmax: without it the alphas do not drift.
                goal = target if self.engine.reference else target - target.mean(1, keepdim=True) - alpha
                alpha.add_(goal.to(alpha), alpha=self.engine.step)
        return True


class _Exploration:
    """One exploration, after `number` others; `line` receives a word on what is going on."""

    def __init__(self, search: _EgSearch, number: int, line: Callable[[str], None]) -> None:
        self.task, self.engine, self.number, self.line = search.task, search.engine, number, line
        alphas = torch.stack([alpha.detach().cpu().double() for alpha in search.net.alphas])
        self.alphas = alphas
        self.present = alphas.softmax(2)
        generator = torch_generator(self.task.seed, "score batch", number)
        rows = torch.randperm(len(self.task.validation.y), generator=generator)[: self.engine.score_batch]
        batch = Labelled(self.task.validation.x[rows], self.task.validation.y[rows])
        # Feedback of the rules is not needed: only outputs are compared.
        own = {k: v.cpu() for k, v in search.net.state_dict().items() if not k.startswith("rules.")}
        self.scorer = SupernetScorer(
            self.task.space, self.task.inputs, self.task.channels, self.task.layers, own, batch, self.task.device,
            self.task.precision,
        )  # fmt: skip
        # On the same batch as the candidates, or else the sign in `compound` would compare two samples of images.
        self.present_accuracy: float | None = None

    def best(self) -> Tensor | None:
        """Return what the alphas shall move to, [2, edges, primitives]; None if the deadline came first."""
        sigma = self.engine.sigma_at(self.number)
        winners: list[JudgedPoint] = []
        for repeat in range(self.engine.repeats):
            self.line(f"exploration {self.number + 1}, repeat {repeat + 1}/{self.engine.repeats}")
            generations = 1 if self.engine.reference else self.engine.generations
            winner = evolve(
                self._judge, self._mean(), sigma=sigma, population=self.engine.population,
                generations=generations, seed=self._seed(repeat),
            )  # fmt: skip
            if winner is None:
                return None
            winners.append(winner)
        if not self.engine.reference:
            return self._shaped(min(winners, key=lambda winner: winner.value).point)
        twice = [self._edge_weights(winner.point).softmax(2) for winner in winners]
        scores = self._scores(twice)
        if scores is None:
            return None
        accuracies = [score["accuracy"] for score in scores]
        return twice[accuracies.index(max(accuracies))]

    def _mean(self) -> Vector:
        mean = self.alphas
        if self.engine.reference:
            generator = torch_generator(self.task.seed, "exploration noise", self.number)
            mean = self.present + 1e-2 * torch.randn(self.present.shape, generator=generator, dtype=torch.float64)
        flat: Vector = mean.flatten().numpy().copy()
        return flat

    def _seed(self, repeat: int) -> int:
        if self.engine.reference:
            return 1
        return torch_generator(self.task.seed, "cma-es", self.number, repeat).initial_seed() % 2**32

    def _shaped(self, point: Vector) -> Tensor:
        return torch.from_numpy(point).reshape(self.present.shape)

    def _representation(self, point: Vector) -> Tensor:
        """Return what is compared with softmax(alphas)."""
        shaped = self._shaped(point)
        return F.normalize(shaped, dim=2) if self.engine.reference else shaped.softmax(2)

    def _edge_weights(self, point: Vector) -> Tensor:
        shown = self._representation(point)
        return shown.softmax(2) if self.engine.reference else shown

    def _judge(self, points: list[Vector]) -> list[float] | None:
        weights = [self._edge_weights(point) for point in points]
        first = [] if self.present_accuracy is not None else [self.present]
        scores = self._scores(first + weights)
        if scores is None:
            return None
        if first:
            self.present_accuracy = scores.pop(0)["accuracy"]
        present_accuracy = self.present_accuracy or 0.0
        return [
            compound(
                self.task.fitness.value(score),
                similarity(self.present, self._representation(point)),
                score["accuracy"],
                present_accuracy,
                self.engine.diversity,
            )
            for point, score in zip(points, scores, strict=True)
        ]

    def _scores(self, weights: list[Tensor]) -> list[CandidateScores] | None:
        jobs = [w.float() for w in weights]
        scores = dict(self.task.executor.scores(self.scorer, jobs, self.task.deadline))
        return [scores[i] for i in range(len(jobs))] if len(scores) == len(jobs) else None
