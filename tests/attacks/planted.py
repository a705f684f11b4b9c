"""Networks of the zoo that hide their gradient in one way each, and are no more robust for it."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustbench_bio as rb


@cache
def honest() -> nn.Module:
    """A network of the zoo without any of this."""
    return rb.load_model("pc-cnn")


class Around(nn.Module):
    """An honest network with something before it and behind it; each keeps its shape."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] = lambda x: x, behind: Callable[[Tensor], Tensor] = lambda z: z
    ) -> None:
        super().__init__()
        self.net, self.before, self.behind = honest(), before, behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.net(self.before(x)))


class HardVote(nn.Module):
    """The share of three networks that vote for a class."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(rb.load_model(name) for name in ("bp-resnet20", "usf-resnet20", "pc-cnn"))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.one_hot(net(x).argmax(1), 10).float() for net in self.nets]).mean(0)


#: Of three honest networks: the weights of their logits whose sum an attack on a vote may follow.
WEIGHTS = ((1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1))


class Mean(nn.Module):
    """The weighted sum of some networks' logits."""

    def __init__(self, nets: nn.ModuleList, weights: tuple[int, ...]) -> None:
        super().__init__()
        self.nets, self.weights = nets, weights

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([weight * net(x) for net, weight in zip(self.nets, self.weights, strict=True)]).sum(0)


def rounded_cosines(x: Tensor) -> Tensor:
    """Round the coefficients of a cosine transform of the image, as JPEG does."""
    side = x.shape[-1]
    place = torch.arange(side, dtype=x.dtype)
    basis = torch.cos(math.pi * (place[None] + 0.5) * place[:, None] / side) * (2 / side) ** 0.5
    basis[0] /= 2**0.5
    coefficients = (basis @ x @ basis.T * 4).round() / 4
    return basis.T @ coefficients @ basis


class _Purified(torch.autograd.Function):
    """Gradient steps towards the nearest of 30 grey levels, with the gradient of doing nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        for _ in range(4):
            x = x - torch.sin(2 * math.pi * 29 * x) / (2 * math.pi * 29)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


EDGES, LEVELS = torch.linspace(0, 1, 12)[1:-1], torch.linspace(0, 1, 11)

#: Name → network.
PLANTED: dict[str, Callable[[], nn.Module]] = {
    "hard vote": HardVote,
    "softmax × 100": lambda: Around(behind=lambda z: 100 * z.softmax(1)),
    "softmax of logits × 100": lambda: Around(behind=lambda z: (100 * z).softmax(1)),
    "rounded logits": lambda: Around(behind=torch.round),
    "rounded pixels": lambda: Around(before=lambda x: (255 * x).round() / 255),
    "rounded cosines": lambda: Around(before=rounded_cosines),
    "purification": lambda: Around(before=_Purified.apply),
    "integer pixels": lambda: Around(before=lambda x: (16 * x).int().float() / 16),
    "bytes": lambda: Around(before=lambda x: ((255 * x).to(torch.uint8) >> 4 << 4).float() / 255),
    "buckets": lambda: Around(before=lambda x: LEVELS[torch.bucketize(x, EDGES)]),
    "thermometer": lambda: Around(before=lambda x: (x[..., None] > EDGES).float().mean(-1)),
    "saturation": lambda: Around(before=lambda x: (4 * x - 1.5).clamp(0, 1)),
}
