"""Random noise: what any attack must beat."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Attempts, Proposal
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat


@final
@ATTACKS.register("noise")
@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Points drawn uniformly from the ball, until one fools the network.

    Args:
        queries: points tried at most.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    white_box: ClassVar[bool] = False

    queries: int = 10

    def __post_init__(self) -> None:
        at_least(queries=(self.queries, 1))

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        attempts = Attempts(model, x, y, self.queries)
        for _, rows in attempts:
            x_adv = threat.random_start(x[rows], rng.take(rows))
            fooled = model.fooled(x_adv, y[rows])
            attempts.add(Proposal(x_adv, torch.full_like(rows, model.answer_cost), torch.zeros_like(rows), fooled))
        return attempts.best
