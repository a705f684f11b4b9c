"""What a recipe lets a step minimise: cross-entropy, on attacked images if it has an adversary."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.pgd import PGD
from robustbench_bio.attacks.tpgd import TPGD, divergence
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.nets.base import Net
from robustbench_bio.records.card import Adversary, Recipe
from robustbench_bio.records.threat import Threat
from robustbench_bio.rules import RuleSet
from robustbench_bio.training.steps import precision_context


class StepOutput(NamedTuple):
    """What a network said to its batch: logits [n, classes], of the attacked images if there are any, losses [n]."""

    logits: Tensor
    losses: Tensor


class Objective:
    """Fills the gradients of a network in train mode, through its rules, for one batch after the other."""

    def __init__(self, net: Net, rules: RuleSet, recipe: Recipe, seed: int, device: str) -> None:
        self.net, self.rules, self.recipe, self.seed, self.device = net, rules, recipe, seed, device

    def backward(self, x: Tensor, y: Tensor, rows: Tensor, step: int) -> StepOutput:
        """Fill the gradients for a batch x [n, C, H, W] in [0, 1] with labels y [n].

        The images' places among all, `rows` [n] on the CPU, and `step` seed the adversary.
        """
        if self.recipe.adversary is None:
            return self._standard(x, y)
        x_adv = self._attacked(x, y, rows, step, self.recipe.adversary)
        if self.recipe.adversary.attack == "tpgd":
            return self._trades(x, x_adv, y, self.recipe.adversary.beta)
        return self._standard(x_adv, y)

    def _standard(self, x: Tensor, y: Tensor) -> StepOutput:
        losses: list[Tensor] = []

        def loss(logits: Tensor) -> Tensor:
            per_example = self._cross_entropy(logits, y)
            if auxiliary:
                per_example = per_example + self.recipe.auxiliary_weight * self._cross_entropy(auxiliary[-1], y)
            losses.append(per_example.detach())
            return per_example

        with self._auxiliary_logits() as auxiliary, precision_context(self.recipe.precision, self.device):
            logits = self.rules.backward(self.net, x, loss)
        return StepOutput(logits, losses[-1])

    def _trades(self, x: Tensor, x_adv: Tensor, y: Tensor, beta: float) -> StepOutput:
        """Minimise CE(f(x), y) + β·KL(f(x) ‖ f(x_adv)) (Zhang et al. 2019, eq. 5).

        Both halves go through one pass, so that batch norm sees them as one batch.
        """
        losses: list[Tensor] = []

        def loss(logits: Tensor) -> Tensor:
            clean, attacked = logits.float().chunk(2)
            kl = divergence(attacked, clean.softmax(1))
            per_example = self._cross_entropy(clean, y) + beta * kl
            losses.append(per_example.detach())
            return torch.cat([per_example, per_example])  # the caller's mean is over 2n rows

        with precision_context(self.recipe.precision, self.device):
            logits = self.rules.backward(self.net, torch.cat([x, x_adv]), loss)
        return StepOutput(logits[-len(y) :], losses[-1])

    def _attacked(self, x: Tensor, y: Tensor, rows: Tensor, step: int, adversary: Adversary) -> Tensor:
        kind = PGD if adversary.attack == "pgd" else TPGD
        # early_exit saves steps on images that are fooled already; training wants the strongest images instead.
        attack = kind(steps=adversary.steps, step_size=adversary.step_size, early_exit=False)
        rng = ExampleRng(self.seed, rows, f"adversary {step}")
        # In eval mode: passes of the attack must not move batch norm's statistics, nor draw dropped paths.
        self.net.eval()
        with precision_context(self.recipe.precision, self.device):
            proposal = attack.perturb(WhiteBoxModel(self.net, traced=False), x, y, Threat("linf", adversary.eps), rng)
        self.net.train()
        return proposal.x_adv

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), y, reduction="none", label_smoothing=self.recipe.label_smoothing)

    @contextlib.contextmanager
    def _auxiliary_logits(self) -> Iterator[list[Tensor]]:
        """Collect the auxiliary head's logits during the block; none without a head, a weight or with an adversary."""
        logits: list[Tensor] = []
        head = self.net.auxiliary_head
        if head is None or self.recipe.auxiliary_weight == 0 or self.recipe.adversary is not None:
            yield logits
            return
        hook = head.register_forward_hook(lambda _module, _args, out: logits.append(out))
        try:
            yield logits
        finally:
            hook.remove()
