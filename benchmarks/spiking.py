"""A spiking layer as a plain loop against those of snntorch and spikingjelly, and what tracing a network costs.

python benchmarks/spiking.py [--steps 10] [--batch 32] [--repeats 5] [--quick]
snntorch comes with the extra `snn`, spikingjelly with `pip install --no-deps spikingjelly loguru SciencePlots h5py`;
one that is absent is skipped.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable

import common
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustbench_bio import nets
from robustbench_bio.attacks.access.surrogate import with_surrogate
from robustbench_bio.attacks.access.trace import trace
from robustbench_bio.nets.base import Inputs
from robustbench_bio.nets.spiking import LIF, over_time


class Ours(nn.Module):
    """Our layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lif = LIF(2.0, 0.5, "arctan")

    def forward(self, current: Tensor) -> Tensor:
        return self.lif(current)  # type: ignore[no-any-return]


class Snntorch(nn.Module):
    """snntorch's, told to leak and to reset as ours does."""

    def __init__(self) -> None:
        super().__init__()
        from snntorch import Leaky, surrogate

        self.lif = Leaky(0.5, 0.5, spike_grad=surrogate.atan(), reset_mechanism="zero")

    def forward(self, current: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(current[0]), []
        for arriving in current / 2:
            spike, membrane = self.lif(arriving, membrane)
            spikes.append(spike)
        return torch.stack(spikes)


class Spikingjelly(nn.Module):
    """spikingjelly's, fused over all steps."""

    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import functional, neuron

        self.reset = functional.reset_net
        self.lif = neuron.LIFNode(2.0, v_threshold=0.5, detach_reset=True, step_mode="m")

    def forward(self, current: Tensor) -> Tensor:
        self.reset(self.lif)
        return self.lif(current)  # type: ignore[no-any-return]


class Small(nn.Module):
    """Two convolutions with batch norm and spikes, then linear: 16×16 images, 16 and 32 channels."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32))
        self.lif1, self.lif2, self.linear = layer(), layer(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif1(over_time(self.conv1, x))
        spikes = self.lif2(over_time(self.conv2, spikes))
        return self.linear(spikes.mean((0, 3, 4)))  # type: ignore[no-any-return]


def median(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.batch, options.repeats = 2, 4, 1
    torch.set_num_threads(1)
    x = torch.rand(options.steps, options.batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    table = Table("layer", title=common.machine(1))
    for column in ("layer ms", "network ms"):
        table.add_column(column, justify="right")
    layers = ((Ours, "torch"), (Snntorch, "snntorch"), (Spikingjelly, "spikingjelly"))
    for kind, module in common.steps(layers, lambda layer: layer[0].__name__.lower()):
        if importlib.util.find_spec(module) is None:
            common.note(f"skipped {module}: it is not installed")
            continue
        torch.manual_seed(0)
        layer, net = kind(), Small(kind)
        current = torch.randn(options.steps, options.batch, 16, 16, 16).requires_grad_(True)
        alone = median(lambda layer=layer, current=current: layer(current).sum().backward(), options.repeats)
        whole = median(lambda net=net: net(x).square().sum().backward(), options.repeats)
        table.add_row(kind.__name__.lower(), f"{alone:.1f}", f"{whole:.1f}")
    console = Console(width=100)
    console.print(f"forward and backward, {options.steps} steps of {options.batch} examples", table)
    net = nets.build("spiking-resnet", Inputs((1, 8, 8), 10, (0.3,), (0.4,)), seed=0, blocks=1, width=8).eval()
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    soft = with_surrogate(trace(net, images[:2]), "triangle")
    traced = time.perf_counter() - started

    def gradient(module: nn.Module) -> Tensor:
        point = images.clone().requires_grad_(True)
        return torch.autograd.grad(module(point).square().sum(), point)[0]

    own, through = (median(lambda m=m: gradient(m), options.repeats) for m in (net, soft))
    console.print(f"spiking-resnet of the zoo, 64 digits: traced once in {traced:.1f} s; input gradient of the modules")
    console.print(f"{own:.1f} ms, of the trace {through:.1f} ms")


if __name__ == "__main__":
    common.command_line(main)
