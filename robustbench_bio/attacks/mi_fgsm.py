"""Iterative FGSM with momentum."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal
from robustbench_bio.attacks.pgd import ascend
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat


@final
@ATTACKS.register("mi-fgsm")
@dataclass(frozen=True, kw_only=True)
class MIFGSM(Attack):
    """Steps from x along the sum of decayed gradients, each of unit l1 norm (Dong et al. 2018, arXiv:1710.06081).

    For l2 the step follows the normalised sum (eq. 7). On purpose different from the published loop, as in `PGD`:
    an example is left alone once a point that fools the network is found.

    Args:
        steps: gradient steps.
        step_size: in input units; None is the paper's eps/steps.
        decay: of the momentum, per step.
        early_exit: False is the published loop, which returns the last point.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})

    steps: int = 10
    step_size: float | None = None
    decay: float = 1.0
    early_exit: bool = True

    def __post_init__(self) -> None:
        at_least(steps=(self.steps, 1), step_size=(self.step_size, 0), decay=(self.decay, 0))

    def step_at(self, eps: float) -> float:
        """Return the step size at a radius, both in input units."""
        return eps / self.steps if self.step_size is None else self.step_size

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        del rng
        momentum = torch.zeros_like(x)

        def direction(gradient: Tensor, rows: Tensor) -> Tensor:
            # Unit length first: gradients grow by orders of magnitude near the boundary, and would drown the sum.
            length = gradient.abs().sum((1, 2, 3), keepdim=True).clamp_min(1e-30)
            momentum[rows] = self.decay * momentum[rows] + gradient / length
            return threat.steepest(momentum[rows])

        return ascend(
            model,
            x,
            y,
            threat,
            start=x,
            steps=self.steps,
            step_size=self.step_at(threat.eps),
            early_exit=self.early_exit,
            direction=direction,
        )
