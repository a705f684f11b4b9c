"""Small chains of layers: quick to train, and open to rules that relax activities."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import NETS, Inputs, Net
from robustbench_bio.nets.checks import choice, odd, pooled, real, wholes
from robustbench_bio.nets.operations import named


class Triangle(nn.Module):
    """ReLU(z − mean over channels of z)^power, > 0, of SoftHebb (Journé et al. 2023): [N, C, H, W] → same shape.

    SoftHebb uses 0.7, 1.4 and 1 in its three layers.
    """

    def __init__(self, power: float = 0.7) -> None:
        super().__init__()
        self.power = power

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z - z.mean(1, keepdim=True)) ** self.power


class Chain(Net):
    """A network whose every stage ends in its one weight layer; `stages.<i>` holds stage i, from 0."""

    stages: nn.ModuleList

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def chain(self) -> list[nn.Module]:
        first, *later = self.stages
        return [nn.Sequential(self.normalise, first), *later]


@NETS.register("mlp")
class Mlp(Chain):
    """Flatten → (linear → activation) for each hidden width → linear; layers are `stages.<i>.linear`.

    No hidden widths make a linear classifier.
    """

    def __init__(
        self, inputs: Inputs, *, hidden: Sequence[int] = (256, 128), activation: Literal["relu", "tanh"] = "relu"
    ) -> None:
        super().__init__(inputs)
        choice("activation", activation, ("relu", "tanh"))
        sizes = [math.prod(inputs.shape), *wholes("hidden", hidden), inputs.classes]
        self.stages = nn.ModuleList([named(flatten=nn.Flatten(), linear=nn.Linear(sizes[0], sizes[1]))])
        for before, after in itertools.pairwise(sizes[1:]):
            act = nn.ReLU() if activation == "relu" else nn.Tanh()
            self.stages.append(named(activation=act, linear=nn.Linear(before, after)))


CnnNorm = Literal["batch", "none", "whiten"]


@NETS.register("cnn")
class Cnn(Chain):
    """Blocks of convolution, norm, activation and 2×2 max pool, then one linear layer.

    Layers are `stages.<i>.conv` and the last stage's `linear`. Convolutions keep the size (odd kernels, zero
    padding) and have a bias only without a norm.

    Args:
        widths: channels of each block, no more than the images can be halved.
        kernel: side of every kernel, odd.
        norm: "batch" after each convolution; "whiten" batch norm without scale and shift before each
            convolution, as in SoftHebb; or "none".
        activation: "relu", or "triangle" as in SoftHebb.
        power: exponent of the triangle activation.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        widths: Sequence[int] = (16, 32),
        kernel: int = 3,
        norm: CnnNorm = "batch",
        activation: Literal["relu", "triangle"] = "relu",
        power: float = 0.7,
    ) -> None:
        super().__init__(inputs)
        choice("norm", norm, get_args(CnnNorm))
        choice("activation", activation, ("relu", "triangle"))
        odd("kernel", kernel)
        if real("power", power, 0, 10) == 0:
            raise UserError("expected power > 0, got 0: SoftHebb uses 0.7, 1.4 and 1")
        self.norm = norm
        channels = [inputs.shape[0], *wholes("widths", widths, at_least=1)]
        height, width = pooled(inputs.shape[1:], len(channels) - 1)
        # What stands between two weight layers opens the later one's stage.
        opening: dict[str, nn.Module] = {}
        self.stages = nn.ModuleList()
        for before, after in itertools.pairwise(channels):
            if norm == "whiten":
                opening["whiten"] = nn.BatchNorm2d(before, affine=False)
            conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=norm == "none")
            self.stages.append(named(**opening, conv=conv))
            opening = {"norm": nn.BatchNorm2d(after)} if norm == "batch" else {}
            opening["activation"] = nn.ReLU() if activation == "relu" else Triangle(power)
            opening["pool"] = nn.MaxPool2d(2)
        head = nn.Linear(channels[-1] * height * width, inputs.classes)
        self.stages.append(named(**opening, flatten=nn.Flatten(), linear=head))

    def chain(self) -> list[nn.Module]:
        if self.norm != "none":
            raise UserError(
                f"a rule that relaxes activities expects a cnn without norm, got norm={self.norm!r}, whose "
                'running statistics would move at each inference step: set norm = "none"'
            )
        return super().chain()
