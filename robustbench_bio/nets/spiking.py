"""Spiking layers over time, and the networks made of them.

The layer is a loop of our own: forward and backward of a small convolutional network take 0.84 of the time of
spikingjelly's and 0.57 of snntorch's (`benchmarks/spiking.py`), with equal spikes and gradients (the tests), and the
core does without tensorboard, h5py and a matching torchaudio, which the faster of the two brings with it.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import NETS, Inputs, Net
from robustbench_bio.nets.checks import choice, odd, pooled, real, whole, wholes
from robustbench_bio.nets.operations import named
from robustbench_bio.nets.surrogates import surrogate as derivative_of
from robustbench_bio.records.motifs import Coding


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons with hard reset: current [T, N, ...] → spikes {0, 1} of the same shape.

    m ← m + (I − m)/τ; spike = 1[m − θ > 0]; m ← 0 where it fired. The membrane is 0 at the start of every call:
    no state outlives a batch. The backward pass takes a surrogate for the step's derivative and none for the
    reset's, as the reset is no path that the gradient follows.

    Args:
        tau: τ ≥ 1, in time steps; 1 forgets at once.
        threshold: θ > 0.
        surrogate: name of the step's stand-in, as in gradients `surrogate:NAME`.
    """

    def __init__(self, tau: float = 2.0, threshold: float = 0.5, surrogate: str = "triangle") -> None:
        super().__init__()
        self.tau = real("tau", tau, 1, 1e6)
        self.threshold = real("threshold", threshold, 1e-6, 1e6)
        self.surrogate = surrogate
        self._derivative = derivative_of(surrogate)

    def forward(self, current: Tensor) -> Tensor:
        spikes: Tensor = _Fire.apply(current, self.tau, self.threshold, self._derivative)
        return spikes

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}, threshold={self.threshold:g}, surrogate={self.surrogate}"


class _Fire(torch.autograd.Function):
    """All steps of a layer at once, so that its backward pass is one loop too: half the time of a graph of steps."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, tau: float, threshold: float, derivative: Callable[[Tensor], Tensor]
    ) -> Tensor:
        membrane, membranes, spikes = torch.zeros_like(current[0]), [], []
        for arriving in current.unbind():
            # One kernel for m + (I − m)/τ, where the sum would take three.
            membrane = torch.lerp(membrane, arriving, 1 / tau)
            fired = membrane > threshold
            membranes.append(membrane)
            spikes.append(fired.to(membrane))
            membrane = membrane.masked_fill(fired, 0)
        ctx.save_for_backward(*membranes)
        ctx.constants = tau, threshold, derivative
        return torch.cat(spikes).view(current.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        tau, threshold, derivative = ctx.constants
        # With v = m − θ and no path through the reset: ∂L/∂m_t = g_t·σ'(v_t) + [not fired]·(1 − 1/τ)·∂L/∂m_{t+1}, and
        # ∂L/∂I_t = ∂L/∂m_t / τ. `later` is the second term; (τ − 1)·∂L/∂I_t is the same as (1 − 1/τ)·∂L/∂m_t.
        down, later = [], torch.zeros_like(g[0])
        for above, membrane in zip(g.flip(0).unbind(), reversed(ctx.saved_tensors), strict=True):
            away = membrane - threshold
            later = torch.addcmul(later.masked_fill(away > 0, 0), above, derivative(away)) / tau
            down.append(later)
            later = later * (tau - 1)
        return torch.stack(down[::-1]), None, None, None


def over_time(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer without state to every time step of x [T, N, ...], folding T into N.

    Batch norm in train mode thus takes its statistics over time as well.
    """
    y: Tensor = layer(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


def normed(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch norm: [N, c_in, H, W] → [N, c_out, ⌈H/stride⌉, ⌈W/stride⌉], odd kernel."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return named(conv=conv, norm=nn.BatchNorm2d(c_out))


class TimedNet(Net):
    """A network over T time steps, whose `stem` turns images into currents.

    With coding "direct" the image is shown at each step, with "frames" the channels of x are T frames in order.
    """

    stem: nn.Module

    def take_time(self, steps: int, coding: Coding) -> int:
        """Take T and coding; return the channels of a frame, or raise `UserError` where those of x are not T frames."""
        choice("coding", coding, get_args(Coding))
        self.steps, self.coding = whole("steps", steps), coding
        channels = self.inputs.shape[0]
        if coding == "direct":
            return channels
        if channels % steps:
            raise UserError(f"expected channels that are {steps} frames, got {channels}: set steps to a divisor")
        return channels // steps

    def currents(self, x: Tensor) -> Tensor:
        """Return the stem's output at each step, [T, N, C, H, W], for x [N, C, H, W] in [0, 1]."""
        x = self.normalise(x)
        if self.coding == "direct":
            return self.stem(x).expand(self.steps, -1, -1, -1, -1)  # type: ignore[no-any-return]
        return over_time(self.stem, x.reshape(len(x), self.steps, -1, *x.shape[2:]).transpose(0, 1))


class FiringConv2d(nn.Conv2d):
    """A convolution whose output is the current of neurons of its own: what a rule of spike times can train.

    The call is the plain convolution, spikes [T·N, Ci, H, W] → current, with an odd kernel that keeps the size of the
    map; `neurons` then fire for the current over time.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, steps: int, neurons: LIF) -> None:
        super().__init__(c_in, c_out, kernel, padding=kernel // 2, bias=False)
        self.steps = steps
        self.neurons = neurons


class SpikingBlock(nn.Module):
    """Two times LIF → 3×3 convolution → batch norm, beside a shortcut of currents: [T, N, C, H, W].

    The shortcut adds currents, not spikes, so that blocks pass on what no neuron has to fire for (Hu et al. 2024,
    arXiv:2112.08954). Where the resolution halves, it takes every second pixel and pads the new channels with zeros.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, neurons: Callable[[], LIF]) -> None:
        super().__init__()
        self.lif1, self.lif2 = neurons(), neurons()
        self.synapses1 = normed(c_in, c_out, stride=stride)
        self.synapses2 = normed(c_out, c_out)
        self.stride, self.new = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        y = over_time(self.synapses1, self.lif1(x))
        y = over_time(self.synapses2, self.lif2(y))
        if self.stride > 1:
            x = F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return x + y


@NETS.register("spiking-resnet")
class SpikingResNet(TimedNet):
    """Residual network of LIF neurons over T time steps: stem, three stages of blocks, LIF, pool, linear.

    Logits are the mean over time. A head that is linear and a mean change places, so the classifier sees mean rates.
    The gradient of training is that of the surrogate (Neftci et al. 2019, arXiv:1901.09948), the exact one is zero.

    Args:
        blocks: in each stage; 3 is the depth of ResNet-20.
        width: channels of the first stage; each later stage doubles them and halves the resolution.
        steps, coding: T, and what is shown at each step, see `TimedNet`.
        tau, threshold, surrogate: of all neurons, see `LIF`.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        blocks: int = 3,
        width: int = 16,
        steps: int = 4,
        coding: Coding = "direct",
        tau: float = 2.0,
        threshold: float = 0.5,
        surrogate: str = "triangle",
    ) -> None:
        super().__init__(inputs)
        whole("blocks", blocks)
        whole("width", width)
        channels = self.take_time(steps, coding)

        def neurons() -> LIF:
            return LIF(tau, threshold, surrogate)

        self.stem = normed(channels, width)
        widths = [width, width, 2 * width, 4 * width]
        self.stages = nn.ModuleList()
        for c_in, c_out in itertools.pairwise(widths):
            first = SpikingBlock(c_in, c_out, 1 if c_in == c_out else 2, neurons)
            rest = (SpikingBlock(c_out, c_out, 1, neurons) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
        self.lif = neurons()
        self.linear = nn.Linear(widths[-1], inputs.classes)

    def forward(self, x: Tensor) -> Tensor:
        current = self.currents(x)
        for stage in self.stages:
            current = stage(current)
        return self.linear(self.lif(current).mean((0, 3, 4)))  # type: ignore[no-any-return]


@NETS.register("spiking-cnn")
class SpikingCnn(Net):
    """Input neurons, then blocks of convolution, LIF and 2×2 max pool, then linear on mean rates; no norm.

    Every pixel and channel drives two input neurons, one by what lies above the mean and one by what lies below, so
    that the first convolution already sees spikes: the further from the mean, the earlier and the more often.
    Convolutions are called `convs.<i>`, without bias; rules of spike times train them.

    Args:
        widths: channels of each block, no more than the images can be halved.
        kernel: side of every kernel, odd.
        steps: T.
        tau, threshold, surrogate: of all neurons, see `LIF`.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        widths: Sequence[int] = (32,),
        kernel: int = 5,
        steps: int = 4,
        tau: float = 2.0,
        threshold: float = 0.5,
        surrogate: str = "triangle",
    ) -> None:
        super().__init__(inputs)
        channels = [2 * inputs.shape[0], *wholes("widths", widths, at_least=1)]
        odd("kernel", kernel)
        height, width = pooled(inputs.shape[1:], len(channels) - 1)
        self.steps = whole("steps", steps)
        self.lif = LIF(tau, threshold, surrogate)
        self.convs = nn.ModuleList(
            FiringConv2d(c_in, c_out, kernel, steps, LIF(tau, threshold, surrogate))
            for c_in, c_out in itertools.pairwise(channels)
        )
        self.pool = nn.MaxPool2d(2)
        self.linear = nn.Linear(channels[-1] * height * width, inputs.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        driving = torch.cat([x, -x], 1).relu()
        spikes = self.lif(driving.expand(self.steps, -1, -1, -1, -1))
        for conv in self.convs:
            assert isinstance(conv, FiringConv2d)  # noqa: S101  (nn.ModuleList forgets the type)
            spikes = conv.neurons(over_time(conv, spikes))
            spikes = over_time(self.pool, spikes)
        return self.linear(spikes.mean(0).flatten(1))  # type: ignore[no-any-return]
