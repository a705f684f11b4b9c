"""The operations of cell networks, as in DARTS (Liu et al. 2019), with plain layers that know no rule.

A new one registers itself by `builds`, here or in a module of its own beside this one.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.core.registry import unknown
from robustbench_bio.records.genotype import OPERATIONS

#: Takes channels, stride and whether batch norm has scale and shift.
Builder = Callable[[int, int, bool], nn.Module]

_BUILDERS: dict[str, Builder] = {}


def named(**parts: nn.Module) -> nn.Sequential:
    """Return the modules in sequence under their keywords."""
    return nn.Sequential(OrderedDict(parts))


def norm(channels: int, affine: bool) -> nn.BatchNorm2d:
    """Return batch norm; searches use it without scale and shift (`affine` False)."""
    return nn.BatchNorm2d(channels, affine=affine)


def pointwise(c_in: int, c_out: int, affine: bool = True) -> nn.Sequential:
    """ReLU → 1×1 convolution → batch norm: [N, c_in, H, W] → [N, c_out, H, W]."""
    return named(relu=nn.ReLU(), conv=nn.Conv2d(c_in, c_out, 1, bias=False), norm=norm(c_out, affine))


def separable(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> nn.Sequential:
    """ReLU → depthwise k×k → pointwise 1×1 → batch norm; the size changes by the stride only."""
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation=dilation, groups=channels, bias=False)
    mix = nn.Conv2d(channels, channels, 1, bias=False)
    return named(relu=nn.ReLU(), depthwise=depthwise, pointwise=mix, norm=norm(channels, affine))


def twice_separable(channels: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """Two separable convolutions in a row, the first one with the stride."""
    first = separable(channels, kernel, stride, 1, affine)
    return named(first=first, second=separable(channels, kernel, 1, 1, affine))


class EverySecond(nn.Conv2d):
    """A 1×1 convolution of stride 2 without bias, which leaves the pixels out before it multiplies.

    With the stride, oneDNN writes past its buffer for the weights' gradient where c_in < 8 and the processor has AVX2
    but no AVX-512. The function is the same, and so is what it prints, which fingerprints of networks rest on.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1, 2, bias=False)

    def _get_name(self) -> str:
        return "Conv2d"

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :, ::2, ::2], self.weight)


class AveragePool(nn.AvgPool2d):
    """A 3×3 average pool that counts no padding; it prints as torch's own, as fingerprints of networks rest on that."""

    def __init__(self, stride: int) -> None:
        super().__init__(3, stride, 1, count_include_pad=False)

    def _get_name(self) -> str:
        return "AvgPool2d"

    def forward(self, x: Tensor) -> Tensor:
        # On CUDA, torch before 2.13 passes wrong gradients through a padded pool in channels-last order (issue 188344).
        return super().forward(x.contiguous() if x.is_cuda else x)


class FactorizedReduce(nn.Module):
    """Half the resolution by two 1×1 convolutions of stride 2 that see different pixels.

    ReLU → concat[conv0(x), conv1(x shifted by one pixel)] → batch norm:
    [N, c_in, H, W] → [N, c_out, ⌈H/2⌉, ⌈W/2⌉].
    Sides of odd length, where the released code fails, are padded with zeros at the far edge for conv1.
    """

    def __init__(self, c_in: int, c_out: int, affine: bool = True) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv0 = EverySecond(c_in, c_out // 2)
        self.conv1 = EverySecond(c_in, c_out - c_out // 2)
        self.norm = norm(c_out, affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        height, width = x.shape[2:]
        shifted = F.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.conv0(x), self.conv1(shifted)], 1))  # type: ignore[no-any-return]


class Zero(nn.Module):
    """No connection: zeros of the size that a layer of that stride would give."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0


def builds(name: str, *, ruled: bool) -> Callable[[Builder], Builder]:
    """Return a decorator that adds an operation of cells, built from (channels, stride, affine).

    Its name is written without a rule's suffix; `ruled` says whether it holds convolutions that a rule may own. Raises
    `ValueError` where genotypes know another operation of that name.
    """
    OPERATIONS.register(name)(ruled)

    def add(builder: Builder) -> Builder:
        _BUILDERS[name] = builder
        return builder

    return add


builds("none", ruled=False)(lambda _, stride, __: Zero(stride))
builds("max_pool_3x3", ruled=False)(lambda _, stride, __: nn.MaxPool2d(3, stride, 1))
builds("avg_pool_3x3", ruled=False)(lambda _, stride, __: AveragePool(stride))
builds("sep_conv_3x3", ruled=True)(lambda channels, *rest: twice_separable(channels, 3, *rest))
builds("sep_conv_5x5", ruled=True)(lambda channels, *rest: twice_separable(channels, 5, *rest))
builds("sep_conv_7x7", ruled=True)(lambda channels, *rest: twice_separable(channels, 7, *rest))
builds("dil_conv_3x3", ruled=True)(lambda channels, stride, affine: separable(channels, 3, stride, 2, affine))
builds("dil_conv_5x5", ruled=True)(lambda channels, stride, affine: separable(channels, 5, stride, 2, affine))


@builds("skip_connect", ruled=True)
def skip(channels: int, stride: int, affine: bool) -> nn.Module:
    """Identity, or half the resolution."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


@builds("conv_7x1_1x7", ruled=True)
def row_then_column(channels: int, stride: int, affine: bool) -> nn.Sequential:
    """ReLU → 1×7 convolution → 7×1 convolution → batch norm, each with the stride along its own axis."""
    row = nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False)
    column = nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False)
    return named(relu=nn.ReLU(), row=row, column=column, norm=norm(channels, affine))


def operation(name: str, channels: int, stride: int, affine: bool = True) -> nn.Module:
    """Build an operation, named without a rule's suffix: [N, C, H, W] → [N, C, ⌈H/stride⌉, ⌈W/stride⌉], stride 1 or 2.

    "skip_connect" of stride 1 is `nn.Identity`. `affine` says whether batch norm has a scale and shift; pools have
    none, a supernet adds its own. Raises `KeyError` for another name; those of a checked `Genotype` always exist.
    """
    if name not in OPERATIONS or name not in _BUILDERS:  # asked first: another module may still have to be imported
        raise KeyError(unknown("operation", name, _BUILDERS))
    return _BUILDERS[name](channels, stride, affine)


def drop_path(x: Tensor, probability: float) -> Tensor:
    """Zero whole examples of x [N, ...] with a probability in [0, 1), and scale the others by 1/(1 − it).

    Draws from torch's default generator; who trains forks and seeds it.
    """
    keep = 1 - probability
    mask = torch.empty((len(x), *([1] * (x.ndim - 1))), dtype=x.dtype, device=x.device).bernoulli_(keep)
    return x * mask / keep
