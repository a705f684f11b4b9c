"""The inner attack of TRADES: away from the clean prediction, whatever the label."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch.nn.functional as F
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal
from robustbench_bio.attacks.pgd import ascend
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat


def divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(clean ‖ softmax(logits)) per example: [n, K], probabilities [n, K] → [n]."""
    return F.kl_div(logits.log_softmax(1), clean, reduction="none").sum(1)


@final
@ATTACKS.register("tpgd")
@dataclass(frozen=True, kw_only=True)
class TPGD(Attack):
    """PGD on the divergence from the clean prediction (Zhang et al. 2019, TRADES, arXiv:1901.08573, alg. 1).

    Args:
        steps: gradient steps.
        step_size: in input units; None is eps/4, which is the paper's 2/255 at 8/255.
        start_sigma: standard deviation of the Gaussian start around x.
        early_exit: leave an example alone once it is misclassified; False is the published loop.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})

    steps: int = 7
    step_size: float | None = None
    start_sigma: float = 0.001
    early_exit: bool = True

    def __post_init__(self) -> None:
        at_least(steps=(self.steps, 1), step_size=(self.step_size, 0), start_sigma=(self.start_sigma, 0))

    def step_at(self, eps: float) -> float:
        """Return the step size at a radius, both in input units."""
        return eps / 4 if self.step_size is None else self.step_size

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        # At x itself the divergence from the clean prediction is 0, its minimum, and has no gradient to follow.
        start = threat.project(x, x + self.start_sigma * rng.normal(x.shape[1:], x))
        clean = model.logits(x).softmax(1)
        proposal = ascend(
            model,
            x,
            y,
            threat,
            start,
            steps=self.steps,
            step_size=self.step_at(threat.eps),
            loss=divergence,
            against=clean,
            early_exit=self.early_exit,
        )
        return proposal._replace(queries=proposal.queries + model.answer_cost)
