"""How a genotype of motifs is scored: by what its untrained network does, or by what it learns in some epochs."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_bio import nets, rules
from robustbench_bio.core.errors import DivergedError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.datasets.base import Examples
from robustbench_bio.nets.base import Inputs
from robustbench_bio.nets.cost import parameters
from robustbench_bio.records.card import Recipe
from robustbench_bio.records.motifs import Coding, MotifGenotype
from robustbench_bio.search.base import Labelled
from robustbench_bio.search.executors import CandidateScores, Scorer
from robustbench_bio.search.motifs import rdm
from robustbench_bio.search.motifs.fitness import MotifFitness
from robustbench_bio.training.loop import train
from robustbench_bio.training.steps import accuracy


class PreparedImages(NamedTuple):
    """What all genotypes are scored with: stimuli in batches x [B, C, H, W] in [0, 1], and the fit half."""

    stimuli: list[Tensor]
    examples: Examples


@dataclass(frozen=True, kw_only=True)
class MotifScorer(Scorer):
    """Scores a genotype of motifs: what its untrained network does with stimuli, or what it learns in some epochs.

    Every candidate starts from the same seed, so that its scores are a function of its motifs alone. Stimuli are
    the same for all, `batches` drawn from the fit half; that half also trains, the other judges.
    """

    inputs: Inputs
    channels: int
    steps: int
    coding: Coding
    batches: int
    batch_size: int
    fitness: MotifFitness
    fit: Labelled
    validation: Labelled
    recipe: Recipe
    seed: int
    device: str

    def prepare(self) -> PreparedImages:
        size = min(self.batch_size, len(self.fit.y))
        order = torch.randperm(len(self.fit.y), generator=torch_generator(self.seed, "stimuli"))
        chosen = order.repeat(1 + self.batches * size // len(order))[: self.batches * size]
        stimuli = [(self.fit.x[rows].float() / 255).to(self.device) for rows in torch.split(chosen, size)]
        return PreparedImages(stimuli, self.fit.examples())

    def score(self, prepared: PreparedImages, job: MotifGenotype) -> CandidateScores:
        net = nets.build(
            "motifs", self.inputs, seed=self.seed, genotype=job, channels=self.channels, steps=self.steps,
            coding=self.coding,
        ).to(self.device)  # fmt: skip
        sahd = any(term.name == "sahd" for term in self.fitness.terms)
        scores = rdm.spike_scores(net, prepared.stimuli, self.fitness.metrics, sahd=sahd)
        scores = {**scores, "spikes": scores["spikes"] / 1000, "parameters": parameters(net) / 1000}
        if self.fitness.trains:
            name = next(term.name for term in self.fitness.terms if term.name.startswith("trained"))
            scores[name] = self._trained_accuracy(net, prepared.examples)
        return scores

    def _trained_accuracy(self, net: nets.Net, examples: Examples) -> float:
        rules.attach(net, "bp", seed=self.seed)
        try:
            train(net, examples, self.recipe, seed=self.seed, device=self.device)
        except DivergedError:
            return 0.0
        return accuracy(net, *self.validation.to(self.device))
