"""What spikes cost: how often neurons fire, and the operations that their spikes set off, layer by layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.nets import cost as measure
from robustbench_bio.nets.base import weight_layers
from robustbench_bio.nets.spiking import LIF

#: Examples that pass through the network at once.
BATCH = 64


class Neurons(NamedTuple):
    """A layer of neurons."""

    layer: str
    size: int
    spikes: float
    """Of all of them for one example, mean."""
    rate: float
    """Share of neurons × time steps that spike."""


class Synapses(NamedTuple):
    """The operations of a Conv2d or Linear layer for one example, means.

    Attributes:
        accumulates: a weight is added for each spike and each output that the spike reaches.
        macs: multiply-accumulates, at every time step, of a layer that is given other numbers than spikes.
        repeated: those of `macs` that do nothing but the first time step's work on a still image once more.
        relu_macs: multiply-accumulates of the same layer between ReLUs.
    """

    layer: str
    accumulates: float
    macs: float
    repeated: float
    relu_macs: float


@dataclass(frozen=True)
class Firing:
    """What happens in a spiking network over T steps, on average over examples."""

    steps: int
    examples: int
    neurons: list[Neurons]
    """In the order in which they fire."""
    synapses: list[Synapses]
    """In registration order."""

    @property
    def rate(self) -> float:
        """Share of all neurons × time steps that spike."""
        slots = self.steps * sum(layer.size for layer in self.neurons)
        return self.spikes / slots if slots else 0.0

    @property
    def spikes(self) -> float:
        """Spikes for one example."""
        return sum(layer.spikes for layer in self.neurons)

    @property
    def total(self) -> Synapses:
        """The operations of all layers together."""
        return Synapses("", *(sum(layer[i] for layer in self.synapses) for i in range(1, 5)))  # type: ignore[misc]

    @property
    def picojoules(self) -> float:
        """Estimated energy for one example, see `measure.spiking_picojoules`."""
        return measure.spiking_picojoules(self.total.accumulates, self.total.macs)


def spiking(model: nn.Module) -> bool:
    """Tell whether there are LIF neurons in a network."""
    return any(isinstance(module, LIF) for module in model.modules())


def firing(model: nn.Module, x: Tensor) -> Firing:
    """Count spikes and the operations that they set off, in eval mode.

    Accumulates are exact for any stride, padding, dilation and groups: a spike counts once for each output that it
    reaches, fewer at a border than inside and none where a stride steps over it. Spikes that meet in a max pool
    arrive as one. A layer that is given nothing but zeros and ones at each time step is given spikes, unless no neuron
    has fired yet: the first layers see images, and other numbers cost a multiply-accumulate for each weight.

    With coding "direct" the first layers see the same image at every time step and are counted at every one,
    though our networks compute them once (`repeated` is the difference). A classifier on mean rates multiplies once.
    The same network with ReLU takes one pass, or one for each frame with coding "frames". Biases, norms, pools,
    shortcuts and the neurons' own leak and threshold are not counted on either side.

    Args:
        model: a network over `steps` time steps, with axes [T, N, …] before its neurons and T·N between; its mode,
            weights and buffers stay as they are.
        x: [N, C, H, W] in [0, 1], N >= 1.
    """
    layers = weight_layers(model)
    counts = _Counts(layers, getattr(model, "steps", 1), getattr(model, "coding", "direct") == "direct")
    hooks: dict[nn.Module, measure.Hook] = {layer: partial(counts.arrive, name) for name, layer in layers.items()}
    hooks |= {module: partial(counts.fire, name) for name, module in model.named_modules() if isinstance(module, LIF)}
    with measure.observed(model, hooks):
        for batch in torch.split(x, BATCH):
            counts.fired, counts.examples = False, len(batch)
            model(batch)
    return counts.mean(len(x))


class _Counts:
    """What is counted while batches pass through a network over T steps; `still` ones show each the same image.

    `examples` and `fired`, whether any neuron has, are of the batch that passes.
    """

    def __init__(self, layers: Iterable[str], steps: int, still: bool) -> None:
        self.steps, self.still = steps, still
        self.examples, self.fired = 0, False
        self._operations = {name: torch.zeros(4, dtype=torch.float64) for name in layers}
        self._spikes: dict[str, float] = {}
        self._sizes: dict[str, int] = {}

    def arrive(self, name: str, layer: nn.Conv2d | nn.Linear, args: tuple[Tensor], out: Tensor) -> None:
        """Count the operations of one call of a layer."""
        (given,) = args
        macs = out.numel() * layer.weight[0].numel()
        passes = len(given) // self.examples
        relu = macs / passes if self.still else macs
        # Zeros and ones before any neuron has fired are pixels that happen to be black and white.
        if self.fired and passes == self.steps and bool(((given == 0) | (given == 1)).all()):
            counted = [reached(layer, given), 0, 0, relu]
        else:
            repeated = macs * (self.steps - 1) if self.still and not self.fired and passes == 1 else 0
            counted = [0, macs + repeated, repeated, relu]
        self._operations[name] += torch.tensor(counted, dtype=torch.float64)

    def fire(self, name: str, layer: nn.Module, args: object, out: Tensor) -> None:
        """Count the spikes [T, N, ...] of one call of a layer of neurons."""
        del layer, args
        self.fired = True
        self._spikes[name] = self._spikes.get(name, 0.0) + out.sum(dtype=torch.float64).item()
        self._sizes[name] = out[0, 0].numel()

    def mean(self, examples: int) -> Firing:
        """Return what was counted, over so many examples in all."""
        neurons = [
            Neurons(name, self._sizes[name], n / examples, n / (examples * self.steps * self._sizes[name]))
            for name, n in self._spikes.items()
        ]
        synapses = [Synapses(name, *(sums / examples).tolist()) for name, sums in self._operations.items()]
        return Firing(self.steps, examples, neurons, synapses)


def reached(layer: nn.Conv2d | nn.Linear, spikes: Tensor) -> float:
    """Return how many outputs a layer's input spikes reach, all together: Σ spikes × fan-out.

    The layer pads with zeros, if at all; spikes are {0, 1} [B, …], as it is given them.
    """
    # The layer is linear and every weight one: the examples can be added up first.
    total = spikes.sum(0, keepdim=True, dtype=torch.float64)
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        return F.linear(total, ones).sum().item()
    return F.conv2d(total, ones, None, layer.stride, layer.padding, layer.dilation, layer.groups).sum().item()
