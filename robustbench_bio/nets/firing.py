"""What spikes cost: how often neurons fire, and the operations that their spikes set off, layer by layer."""

from dataclasses import dataclass
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
    """A layer of neurons.

    Attributes:
        layer: its name.
        size: number of neurons.
        spikes: of all of them for one example, mean.
        rate: share of neurons × time steps that spike.
    """

    layer: str
    size: int
    spikes: float
    rate: float


class Synapses(NamedTuple):
    """The operations of a Conv2d or Linear layer for one example, means.

    Attributes:
        layer: its name.
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
    """What happens in a spiking network, on average over examples.

    Attributes:
        steps: T.
        examples: that were looked at.
        neurons: layer by layer, in the order in which they fire.
        synapses: layer by layer, in registration order.
    """

    steps: int
    examples: int
    neurons: list[Neurons]
    synapses: list[Synapses]

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
    def accumulates(self) -> float:
        """Synaptic operations for one example: spikes × fan-out."""
        return sum(layer.accumulates for layer in self.synapses)

    @property
    def macs(self) -> float:
        """Multiply-accumulates for one example, of the layers that are given other numbers than spikes."""
        return sum(layer.macs for layer in self.synapses)

    @property
    def repeated(self) -> float:
        """Those of `macs` that a network spares that keeps the first layers' currents of a still image."""
        return sum(layer.repeated for layer in self.synapses)

    @property
    def relu_macs(self) -> float:
        """Multiply-accumulates for one example of the same network with ReLU instead of spikes."""
        return sum(layer.relu_macs for layer in self.synapses)

    @property
    def picojoules(self) -> float:
        """Estimated energy for one example, see `measure.spiking_picojoules`."""
        return measure.spiking_picojoules(self.accumulates, self.macs)


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
    steps = getattr(model, "steps", 1)
    still = getattr(model, "coding", "direct") == "direct"
    layers = weight_layers(model)
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in layers}
    spikes: dict[str, float] = {}
    counts: dict[str, int] = {}
    fired, examples = False, 0

    def synapses(name: str) -> measure.Hook:
        def count(layer: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
            assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101  (hooked on these only)
            (given,) = args
            macs = out.numel() * layer.weight[0].numel()
            passes = len(given) // examples
            relu = macs / passes if still else macs
            if fired and passes == steps and bool(((given == 0) | (given == 1)).all()):
                found = [reached(layer, given), 0, 0, relu]
            else:
                again = macs * (steps - 1) if still and not fired and passes == 1 else 0
                found = [0, macs + again, again, relu]
            sums[name] += torch.tensor(found, dtype=torch.float64)

        return count

    def neurons(name: str) -> measure.Hook:
        def count(_layer: nn.Module, _args: object, out: Tensor) -> None:
            nonlocal fired
            fired = True
            spikes[name] = spikes.get(name, 0.0) + out.sum(dtype=torch.float64).item()
            counts[name] = out[0, 0].numel()

        return count

    hooks: dict[nn.Module, measure.Hook] = {layer: synapses(name) for name, layer in layers.items()}
    hooks |= {module: neurons(name) for name, module in model.named_modules() if isinstance(module, LIF)}
    with measure.observed(model, hooks):
        for batch in torch.split(x, BATCH):
            fired, examples = False, len(batch)
            model(batch)
    return Firing(
        steps, len(x),
        [Neurons(name, counts[name], n / len(x), n / (len(x) * steps * counts[name])) for name, n in spikes.items()],
        [Synapses(name, *(found / len(x)).tolist()) for name, found in sums.items()],
    )  # fmt: skip


def reached(layer: nn.Conv2d | nn.Linear, spikes: Tensor) -> float:
    """Return how many outputs a layer's input spikes reach, all together: Σ spikes × fan-out.

    Args:
        layer: with zeros for padding, if it pads.
        spikes: {0, 1} [B, …], as the layer is given them.
    """
    # The layer is linear and every weight one: the examples can be added up first.
    total = spikes.sum(0, keepdim=True, dtype=torch.float64)
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        return F.linear(total, ones).sum().item()
    return F.conv2d(total, ones, None, layer.stride, layer.padding, layer.dilation, layer.groups).sum().item()
