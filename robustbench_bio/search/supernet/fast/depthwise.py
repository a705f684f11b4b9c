"""Depthwise convolutions of several layers side by side, in channels-last order, where CPU libraries are fast."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustbench_bio.rules.geometry import Convolution


def rows(x: Tensor) -> Tensor:
    """Return [N, C, H, W] as [N·H·W, C]; a view if x is in channels-last order."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def image(rows: Tensor, size: Sequence[int]) -> Tensor:
    """Return rows as [N, C, H, W] in channels-last order; `size` is (N, H, W)."""
    return rows.view(*size, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Depthwise:
    """Geometry of a depthwise convolution with a square kernel of odd side and zero padding that keeps the size."""

    kernel: int
    stride: int
    dilation: int

    @property
    def padding(self) -> int:
        """Zeros on each side."""
        return self.dilation * (self.kernel // 2)

    def within(self, size: Sequence[int]) -> "Depthwise":
        """Return the geometry without taps that meet nothing but padding on maps of `size` (H, W)."""
        reach = min(self.kernel // 2, (max(size) - 1) // self.dilation)
        return Depthwise(2 * reach + 1, self.stride, self.dilation)

    def crop(self, weight: Tensor) -> Tensor:
        """Return the taps of a weight [C, 1, k, k] that this kernel has."""
        edge = (weight.shape[2] - self.kernel) // 2
        return weight[:, :, edge : edge + self.kernel, edge : edge + self.kernel].contiguous() if edge else weight

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return [N, C, ⌈H/stride⌉, ⌈W/stride⌉] for x [N, C, H, W] and weight [C, 1, k, k]."""
        return self._convolution(weight).output(x, weight, bias)

    def to_input(self, g: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
        """Return δX through `matrix`."""
        if self.stride == 1:  # a convolution with the turned kernel, which libraries do faster than its adjoint
            return self.output(g, matrix.flip(2, 3), None)
        return self._convolution(matrix).to_input(g, x, matrix)

    def to_weight(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return dW."""
        if (self.stride, self.dilation) == (1, 1):
            if self.kernel == 1:
                return (g * x).sum((0, 2, 3)).view(-1, 1, 1, 1)
            if self.kernel == 3:
                return _columns(g, x, 3)
            if self.kernel == 5 and x.shape[3] % 2 == 0:
                return _five_by_five(g, x)
        return self._convolution(weight).to_weight(g, x, weight)

    def _convolution(self, weight: Tensor) -> Convolution:
        return Convolution((self.stride,) * 2, (self.padding,) * 2, (self.dilation,) * 2, len(weight))


def _columns(g: Tensor, x: Tensor, height: int) -> Tensor:
    """Return dW [C, 1, height, 3] of a kernel of that size: CPU libraries have fast code for three columns.

    They have it if the padding is small beside the map; else the padding becomes part of the map.
    """
    padding = (height // 2, 1)
    if any(2 * p >= side for p, side in zip(padding, x.shape[2:], strict=True)):
        x, padding = F.pad(x, (1, 1, height // 2, height // 2)), (0, 0)
    weight = x.new_empty(x.shape[1], 1, height, 3)
    return Convolution((1, 1), padding, (1, 1), len(weight)).to_weight(g, x, weight)


def _five_by_five(g: Tensor, x: Tensor) -> Tensor:
    """Return dW [C, 1, 5, 5] of a convolution of stride 1, from two kernels of three columns.

    Columns 1, 2, 3 are those of the images as they are. With pairs of pixels taken for one pixel of 2C channels
    (a view, in channels-last order), a step is two pixels wide, and the columns are 0, 2, 4.
    """

    def paired(t: Tensor) -> Tensor:
        n, c, h, w = t.shape
        return t.permute(0, 2, 3, 1).reshape(n, h, w // 2, 2 * c).permute(0, 3, 1, 2)

    inner = _columns(g, x, 5)
    outer = _columns(paired(g), paired(x), 5).view(2, -1, 1, 5, 3).sum(0)
    return torch.stack([outer[..., 0], inner[..., 0], inner[..., 1], inner[..., 2], outer[..., 2]], -1)


class DepthwiseLayers(torch.autograd.Function):
    """Depthwise convolutions side by side: x [N, V·C, H, W], weight and B [V·C, 1, k, k], bias [V·C] → image.

    The weight's gradient is exact for the gradient that arrives; the input's goes through B. The bias is a
    constant: no gradient is made for it. Not twice differentiable.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, matrix: Tensor, bias: Tensor, geometry: Depthwise) -> Tensor:
        ctx.save_for_backward(x, weight, matrix)
        ctx.geometry = geometry
        return geometry.output(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, matrix = ctx.saved_tensors
        geometry: Depthwise = ctx.geometry
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        g = g.contiguous(memory_format=torch.channels_last)
        return (
            geometry.to_input(g, x, matrix) if wants_x else None,
            geometry.to_weight(g, x, weight) if wants_weight else None,
            None,
            None,
            None,
        )
