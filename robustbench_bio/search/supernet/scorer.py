"""How weights of a supernet's edges are scored: on one batch, by the operations as they are trained so far."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_bio.nets.base import Inputs
from robustbench_bio.records.base import Precision
from robustbench_bio.records.space import Space
from robustbench_bio.search.base import Labelled
from robustbench_bio.search.executors import CandidateScores, Scorer
from robustbench_bio.search.fitness import clean_scores
from robustbench_bio.search.supernet.supernet import Supernet
from robustbench_bio.training.steps import precision_context


@dataclass(frozen=True)
class SupernetScorer(Scorer):
    """Scores weights of the edges on one batch, with batch norm by that batch's statistics.

    A job is a float32 tensor [2, edges, primitives]: weights for normal and reduction cells.
    """

    space: Space
    inputs: Inputs
    channels: int
    layers: int
    weights: dict[str, Tensor]
    batch: Labelled
    device: str
    precision: Precision

    def prepare(self) -> Supernet:
        with torch.random.fork_rng(devices=[]):  # initial weights, overwritten at once
            net = Supernet(self.inputs, space=self.space, channels=self.channels, layers=self.layers)
        net.load_state_dict(self.weights)
        return net.to(self.device).train()

    @torch.no_grad()
    def score(self, prepared: Supernet, job: Tensor) -> CandidateScores:
        x, y = self.batch.to(self.device)
        with prepared.mixing(*job.to(self.device)), precision_context(self.precision, self.device):
            return clean_scores(prepared(x.float() / 255), y)
