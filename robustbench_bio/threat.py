"""Threat models: which perturbations count, and the geometry that attacks need."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustbench_bio.errors import UserError
from robustbench_bio.rng import ExampleRng

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[Norm, ...] = get_args(Norm)

#: Relative slack of the judge for rounding in float32: x + delta is rounded to the grid of x, not of delta.
TOLERANCE = 1e-6


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [n] so that it broadcasts over `like` [n, ...]."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def _l2(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norm


@dataclass(frozen=True)
class Threat:
    """All x_adv with ‖x_adv − x‖ ≤ eps inside the box `bounds`.

    Args:
        norm: "linf", "l2", "l1", or "l0" (number of changed pixels, all channels of a pixel counted once).
        eps: radius in input units (8/255, not 8), or the number of pixels for l0; 0 allows nothing.
        bounds: smallest and largest legal input value.
    """

    norm: Norm
    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"expected a norm in {', '.join(NORMS)}, got {self.norm!r}")
        if not self.eps >= 0:
            raise UserError(f"expected eps >= 0, got {self.eps}")

    def size(self, delta: Tensor) -> Tensor:
        """Return the norm of each perturbation: delta [n, C, H, W] → float32 [n]."""
        flat = delta.flatten(1)
        match self.norm:
            case "linf":
                return flat.abs().amax(1)
            case "l2":
                return _l2(delta)
            case "l1":
                return flat.abs().sum(1)
            case "l0":
                return delta.abs().amax(1).gt(0).flatten(1).sum(1).to(delta.dtype)

    def contains(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Tell for each example whether x_adv is legal, up to float32 rounding: bool [n]."""
        low, high = self.bounds
        inside = ((x_adv >= low) & (x_adv <= high)).flatten(1).all(1)
        # Each pixel of x_adv carries half a unit in the last place of values near 1; norms add them up.
        pixels = x[0].numel()
        slack = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels), "l0": 0.0}[self.norm] * TOLERANCE
        small: Tensor = self.size(x_adv - x) <= self.eps * (1 + TOLERANCE) + slack
        return inside & small

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Return the nearest legal point to x_adv around x (for l2: ball, then box, which stays in the ball).

        Both arguments and the result are [n, C, H, W]. Raises `NotImplementedError` for l1 and l0, whose
        attacks keep to their ball by construction.
        """
        low, high = self.bounds
        match self.norm:
            case "linf":
                return torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps).clamp(low, high)
            case "l2":
                delta = x_adv - x
                scale = (self.eps / self.size(delta).clamp_min(1e-12)).clamp_max(1.0)
                return (x + delta * _rows(scale, x)).clamp(low, high)
            case _:
                raise NotImplementedError(f"no projection onto the {self.norm} ball")

    def random_start(self, x: Tensor, rng: ExampleRng) -> Tensor:
        """Return a legal point drawn uniformly from the ball around x, cut to the box: [n, C, H, W]."""
        match self.norm:
            case "linf":
                delta = (rng.uniform(x.shape[1:], x) * 2 - 1) * self.eps
            case "l2":
                direction = rng.normal(x.shape[1:], x)
                # The volume within radius r grows as r^d, so U^(1/d) is uniform in the ball.
                radius = rng.uniform((), x) ** (1 / x[0].numel()) * self.eps
                delta = direction * _rows(radius / self.size(direction).clamp_min(1e-12), x)
            case _:
                raise NotImplementedError(f"no random start in the {self.norm} ball")
        return self.project(x, x + delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the unit-norm direction of steepest ascent, argmax over ‖d‖ ≤ 1 of ⟨gradient, d⟩: [n, C, H, W]."""
        match self.norm:
            case "linf":
                return gradient.sign()
            case "l2":
                return gradient / _rows(_l2(gradient).clamp_min(1e-30), gradient)
            case _:
                raise NotImplementedError(f"no steepest direction for {self.norm}")
