"""Derivatives that stand in for that of a step, where the true one is zero almost everywhere."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown

#: Name → derivative of the step 1[u > 0] at u, with its source. All but the last have area one.
SURROGATES: Mapping[str, Callable[[Tensor], Tensor]] = {
    # Shrestha & Orchard 2018 and many after: derivative of a logistic function, slope 4.
    "sigmoid": lambda u: 4 * torch.sigmoid(4 * u) * torch.sigmoid(-4 * u),
    # Fang et al. 2021, arXiv:2007.05785: derivative of arctan, α = 2.
    "arctan": lambda u: 1 / (1 + (torch.pi * u).square()),
    # Zenke & Ganguli 2018, arXiv:1705.11146 (SuperSpike), slope 2 and scaled to area one.
    "fast-sigmoid": lambda u: 1 / (1 + 2 * u.abs()).square(),
    # Bellec et al. 2018, arXiv:1803.09574: a triangle of half-width 1/2; MSE-NAS knows it as BrainCog's QGate, α = 2.
    "triangle": lambda u: (2 - 4 * u.abs()).clamp_min(0),
    # Wu et al. 2018, arXiv:1706.02609 (STBP): a window of width 1.
    "rectangle": lambda u: (u.abs() < 0.5).to(u),
    # Bengio, Léonard & Courville 2013, arXiv:1308.3432: one everywhere.
    "straight-through": torch.ones_like,
}


def surrogate(name: str) -> Callable[[Tensor], Tensor]:
    """Return the derivative of a surrogate; raises `UserError` for an unknown name."""
    if name not in SURROGATES:
        raise UserError(unknown("surrogate", name, list(SURROGATES)))
    return SURROGATES[name]
