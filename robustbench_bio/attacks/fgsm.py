"""The fast gradient sign method."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal
from robustbench_bio.attacks.pgd import ascend
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat


@final
@ATTACKS.register("fgsm")
@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of length eps from x along the steepest direction (Goodfellow et al. 2015, arXiv:1412.6572).

    For l2 the step follows the normalised gradient (the fast gradient method).
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        del rng
        return ascend(model, x, y, threat, x, steps=1, step_size=threat.eps)
