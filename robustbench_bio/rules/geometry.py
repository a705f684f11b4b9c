"""The linear maps inside a layer and their adjoints, for convolutions and dense layers alike."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.rules.base import Layer


@dataclass(frozen=True)
class Convolution:
    """Z = W x + b of a layer, and what flows back through it: x [N, Ci, H, W], weight [Co, Ci/groups, kh, kw]."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def to_input(self, g: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
        """Return δX for the gradient g at Z, sent through `matrix` (W for backpropagation)."""
        return self._adjoint(g, x, matrix, (True, False, False))[0]

    def to_weight(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return dW for the gradient g at Z."""
        if weight.shape[2:] == (1, 1) and not any(self.padding):
            # The pixels that it sees, and no stride: see `nets.operations.EverySecond`.
            x = x[:, :, :: self.stride[0], :: self.stride[1]]
            return Convolution((1, 1), (0, 0), (1, 1), self.groups)._adjoint(g, x, weight, (False, True, False))[1]
        return self._adjoint(g, x, weight, (False, True, False))[1]

    def to_bias(self, g: Tensor) -> Tensor:
        return g.sum((0, 2, 3))

    def spread(self, signal: Tensor, like: Tensor) -> Tensor:
        """Give each position of `like` the per-unit `signal` [N, units]; `like` has N rows, or N for each time step."""
        signal = signal.repeat(len(like) // len(signal), 1)
        return signal[:, :, None, None].expand_as(like).contiguous()

    def _adjoint(self, g: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
        # The kernel that autograd itself ends in: it takes any matrix of the weight's shape, and computes only what the
        # mask asks for.
        out: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            g, x, weight, None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups, mask
        )
        return out


@dataclass(frozen=True)
class Dense:
    """The same for x [..., I] and weight [O, I]."""

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def to_input(self, g: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
        del x
        return g @ matrix

    def to_weight(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        del weight
        return g.flatten(0, -2).T @ x.flatten(0, -2)

    def to_bias(self, g: Tensor) -> Tensor:
        return g.flatten(0, -2).sum(0)

    def spread(self, signal: Tensor, like: Tensor) -> Tensor:
        return signal.view(len(signal), *([1] * (like.ndim - 2)), -1).expand_as(like).contiguous()


Geometry = Convolution | Dense


def unfolded(layer: Layer, x: Tensor) -> tuple[Geometry, Tensor]:
    """Return the geometry of `layer` and the input it really sees, padded where symmetric zeros do not suffice."""
    if isinstance(layer, nn.Linear):
        return Dense(), x
    padding = layer.padding
    if layer.padding_mode != "zeros" or padding == "same":
        before_after = layer._reversed_padding_repeated_twice
        symmetric = before_after[0::2] == before_after[1::2]
        if layer.padding_mode != "zeros":
            x, padding = F.pad(x, before_after, mode=layer.padding_mode), (0, 0)
        elif symmetric:
            padding = (before_after[2], before_after[0])
        else:
            x, padding = F.pad(x, before_after), (0, 0)
    elif padding == "valid":
        padding = (0, 0)
    assert not isinstance(padding, str)  # noqa: S101  (narrowing for the type checker)
    return Convolution(layer.stride, padding, layer.dilation, layer.groups), x


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast tensors as autocast would for a matrix product, float64 not at all, so that both passes see one dtype."""
    if not torch.is_autocast_enabled(x.device.type):
        return (x, *others)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, *others))
