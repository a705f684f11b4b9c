"""Residual networks for CIFAR (He et al. 2016, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import NETS, Inputs, Net
from robustbench_bio.nets.checks import whole

DEPTHS = (20, 32, 44, 56, 110)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut without weights ("option A").

    Where the resolution halves, the shortcut takes every second pixel and pads the new channels with zeros,
    half of them before and half behind.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride = stride
        self.before = (c_out - c_in) // 2
        self.behind = c_out - c_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x
        if self.stride > 1:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))
        return F.relu(y + shortcut)


@NETS.register("resnet")
class ResNet(Net):
    """ResNet-20 to ResNet-110 for small images: three stages of (depth − 2)/6 blocks, pool, linear.

    Modules are called `conv1`, `bn1`, `layer1.0.conv1`, …, `linear`, as usual, so weights that others trained
    load strictly. Initial weights follow PyTorch's own law, not He's normal law, so that sign feedback of the
    law "kaiming" has the right scale. `width` is the channels of the first stage; each later stage doubles them.
    """

    def __init__(self, inputs: Inputs, *, depth: int = 20, width: int = 16) -> None:
        super().__init__(inputs)
        if depth not in DEPTHS:
            known = ", ".join(map(str, DEPTHS))
            raise UserError(f"expected depth to be one of {known}, got {depth!r}: choose one of these")
        whole("width", width)
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(inputs.shape[0], width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks)
        self.layer2 = _stage(width, 2 * width, blocks)
        self.layer3 = _stage(2 * width, 4 * width, blocks)
        self.linear = nn.Linear(4 * width, inputs.classes)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(self.normalise(x))))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(y.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(c_in: int, c_out: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(c_in, c_out, 1 if c_in == c_out else 2)
    return nn.Sequential(first, *(BasicBlock(c_out, c_out, 1) for _ in range(blocks - 1)))
