"""Differentiable search: gradient steps on the alphas between gradient steps on the weights."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.progress import Progress
from robustbench_bio.search.base import ENGINES, SearchResult, SearchTask
from robustbench_bio.search.supernet.frozen import frozen
from robustbench_bio.search.supernet.learning import SupernetEngine, SupernetSearch
from robustbench_bio.training.steps import precision_context

#: From tensors to the gradients of one loss at the present weights, zeros where it does not depend on them.
LossGradient = Callable[[Sequence[Tensor]], list[Tensor]]


@final
@ENGINES.register("darts")
@dataclass(frozen=True, kw_only=True)
class Darts(SupernetEngine):
    """DARTS (Liu et al. 2019, arXiv:1806.09055), and with a space of rules BioNAS-DARTS (arXiv:2507.13485).

    Each step moves the alphas by Adam on a batch of the validation half, then the weights by SGD on a batch of
    the other half, through the learning rules. Under rules the alphas receive pseudo-gradients too: what comes
    down to an edge has passed the rules of all layers above it. `alpha_grad="exact"` differentiates the alphas
    truly, while the weights keep learning by their rules.

    Second order: w' = w − ξ(μ·m + ∇_w L_fit + λw) with ξ the present lr and m the momentum, v = ∇_w' L_val(w'),
    R = 0.01/‖v‖, and ∇_α = ∇_α L_val(w') − ξ[∇_α L_fit(w + Rv) − ∇_α L_fit(w − Rv)]/(2R) (their eqs. 7, 8). Under
    rules this is a definition: a pseudo-gradient has no Hessian. w' is always the step that the rules would
    make; all other passes follow `alpha_grad`, and all see the same draw of brsf.

    On purpose different from released code: passes for the alphas leave batch norm's running statistics alone;
    the validation batch is not augmented; the learning rate changes after an epoch, not before the first.

    Args:
        order: "first" takes w' = w; "second" costs about three times as much.
        alpha_lr, alpha_weight_decay: of Adam (betas 0.5 and 0.999).
        alpha_grad: through the rules ("rule"), as in the released BioNAS code, or of the forward pass ("exact").
    """

    fitness: ClassVar[str] = "loss"
    terms: ClassVar[frozenset[str]] = frozenset({"loss"})
    scores_candidates: ClassVar[bool] = False
    # 77 steps at 0.08 let the alphas move as far as the published 19,500 steps at 3e-4; at 3e-3 they hardly moved.
    small: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 7, "lr": 0.05, "alpha_lr": 0.08, "channels": 4, "layers": 3}
    )

    order: Literal["first", "second"] = "first"
    alpha_lr: float = 3e-4
    alpha_weight_decay: float = 1e-3
    alpha_grad: Literal["rule", "exact"] = "rule"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(alpha_lr=(self.alpha_lr, 0), alpha_weight_decay=(self.alpha_weight_decay, 0))

    def search(self, task: SearchTask, progress: Progress | None = None) -> SearchResult:
        if task.precision != "float32" and self.order == "second":
            raise UserError(
                f"expected precision float32 for order second, got {task.precision}: its difference of two "
                "gradients would be rounding noise"
            )
        return _DartsSearch(task, self).run(progress)


class _DartsSearch(SupernetSearch[Darts]):
    def __init__(self, task: SearchTask, engine: Darts) -> None:
        super().__init__(task, engine)
        self.adam = torch.optim.Adam(
            self.net.alphas, lr=engine.alpha_lr, betas=(0.5, 0.999), weight_decay=engine.alpha_weight_decay
        )

    def alpha_optimiser(self) -> torch.optim.Optimizer:
        return self.adam

    def move_alphas(self, line: Callable[[str], None]) -> bool:
        del line
        exact = self.engine.alpha_grad == "exact"
        held_out = self._gradient(self.validation_batch(), exact)
        with self.frozen_statistics(), precision_context(self.task.precision, self.task.device):
            if self.engine.order == "first":
                gradients = held_out(self.net.alphas)
            else:
                batch = self.fit_batch()
                gradients = unrolled_gradient(
                    self._gradient(batch, exact),
                    held_out,
                    self._gradient(batch, exact=False),
                    self.learned,
                    self.net.alphas,
                    [self.optimiser.state[p].get("momentum_buffer") for p in self.learned],
                    xi=self.engine.learning_rate(self.step // self.epoch_steps),
                    momentum=self.engine.momentum,
                    weight_decay=self.engine.weight_decay,
                )
        for alpha, gradient in zip(self.net.alphas, gradients, strict=True):
            alpha.grad = gradient
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return True

    def _gradient(self, batch: tuple[Tensor, Tensor], exact: bool) -> LossGradient:
        x, y = batch

        def gradient(wanted: Sequence[Tensor]) -> list[Tensor]:
            chosen = {id(tensor) for tensor in wanted}
            others = [t for t in (*self.net.parameters(), *self.net.alphas) if id(t) not in chosen]
            rules = contextlib.nullcontext() if exact else self.rules.attached(self.net)
            with frozen(others), rules:
                loss = F.cross_entropy(self.net(x).float(), y)
                gradients = torch.autograd.grad(loss, list(wanted), allow_unused=True)
            return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, gradients, strict=True)]

        return gradient


@torch.no_grad()
def unrolled_gradient(
    fit: LossGradient,
    held_out: LossGradient,
    look_ahead: LossGradient,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    momenta: Sequence[Tensor | None],
    *,
    xi: float,
    momentum: float,
    weight_decay: float,
) -> list[Tensor]:
    """Return the second-order gradient of the validation loss in the alphas (see `Darts`); weights stay as they were.

    `fit` and `look_ahead` are gradients on the batch that weights learn from, the latter those by which they really
    learn, `held_out` on the validation batch. `xi`, `momentum` and `weight_decay` are of the step that is looked ahead,
    `momenta` those of each weight, None before the first step.
    """

    def with_grad(gradient: LossGradient, wanted: Sequence[Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            return gradient(wanted)

    # Weights move in place, as a functional copy of a supernet would double its memory; `finally` restores every bit.
    before = [weight.clone() for weight in weights]
    try:
        # w' is what SGD would make of w, written out: an optimiser's own step would change its momentum.
        steps = with_grad(look_ahead, weights)
        for weight, step, inertia in zip(weights, steps, momenta, strict=True):
            step.add_(weight, alpha=weight_decay)
            if inertia is not None:
                step.add_(inertia, alpha=momentum)
            weight.sub_(step, alpha=xi)
        both = with_grad(held_out, [*weights, *alphas])
        direction, direct = both[: len(weights)], both[len(weights) :]
        # The step of the difference is as long as DARTS has it, whatever the gradient: R·‖v‖ = 0.01. With v = 0 the
        # second term vanishes with it.
        length = torch.stack([v.norm() for v in direction]).norm().item()
        if length == 0:
            return direct
        radius = 0.01 / length
        sides = []
        for sign in (1, -1):
            for weight, origin, v in zip(weights, before, direction, strict=True):
                weight.copy_(origin).add_(v, alpha=sign * radius)
            sides.append(with_grad(fit, alphas))
    finally:
        for weight, origin in zip(weights, before, strict=True):
            weight.copy_(origin)
    return [d - xi * (up - down) / (2 * radius) for d, up, down in zip(direct, *sides, strict=True)]
