"""How much faster a search step is when the operations of a cell share work, than operation by operation.

python benchmarks/supernet.py [--repeats 5] [--threads 2] [--full] [--quick]

A step is one forward and one backward pass of a batch of 64 through the rules of the space of BioNAS-DARTS, C = 16:
the published supernet of 8 cells on 8×8 images, one normal cell on maps of 32×32; with --full also that
supernet on 32×32 images. The ways take turns. "plain" is the sum over operations as everybody writes it;
"plain, channels last" the same with the order of memory that CPU libraries prefer. Errors are those of the
gradients of each weight and of the alphas, against float64.
"""

import copy
import os
import resource
import statistics
import time
from collections.abc import Callable

import common
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustbench_bio import rules
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets import Inputs
from robustbench_bio.search.supernet.supernet import SearchCell, Supernet
from robustbench_bio.zoo import catalog

WAYS = ("fast", "plain", "plain, channels last")


class OneCell(Supernet):
    """One normal cell on maps of the size of the image, between the stem and the classifier."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs, space=catalog.space("bionas"), layers=1)
        stem, channels = 3 * self.space.channels, self.space.channels
        self.reductions = set()
        self.cells = nn.ModuleList([
            SearchCell(self.space, stem, stem, channels, reduction=False, reduction_prev=False)
        ])  # fmt: skip
        self.classifier = nn.Linear(self.space.nodes * channels, inputs.classes)


def network(side: int, layers: int) -> Supernet:
    inputs = Inputs((3, side, side), 10, (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    net = OneCell(inputs) if layers == 1 else Supernet(inputs, space=catalog.space("bionas"), layers=layers)
    rules.attach(net, "genotype")
    rules.initialise(net, rules.RuleOptions(), 0)
    net.draw_alphas(torch_generator(0, "alphas"))
    return net


def step(net: Supernet, x: Tensor, y: Tensor) -> Callable[[str], dict[str, Tensor]]:
    """Return what runs one step in one of the ways, and returns the gradients."""

    def run(way: str) -> dict[str, Tensor]:
        for tensor in (*net.parameters(), *net.alphas):
            tensor.grad = None
        net.fast = way == "fast"
        images = x.contiguous(memory_format=torch.channels_last) if "last" in way else x
        net.rules.backward(net, images, lambda z: F.cross_entropy(z, y, reduction="none"))
        alphas = {f"alphas {i}": a.grad for i, a in enumerate(net.alphas) if a.grad is not None}
        return alphas | {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    return run


def errors(net: Supernet, x: Tensor, y: Tensor) -> dict[str, tuple[float, float]]:
    """Return median and largest relative error of the gradients of each way, against float64."""
    exact = step(copy.deepcopy(net).double(), x.double(), y)("fast")
    scale = max(g.norm() for g in exact.values())
    found = {}
    for way in WAYS:
        gradients = step(net, x, y)(way)
        each = [float((gradients[n] - g).norm() / (g.norm() + 1e-6 * scale)) for n, g in exact.items()]
        found[way] = (statistics.median(each), max(each))
    return found


def measured(run: Callable[[str], object], repeats: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return seconds by the wall clock and of the processor for each way, taking turns after one run each."""
    found: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in WAYS}
    for i in range(repeats + 1):
        for way in WAYS:
            wall, cpu = time.perf_counter(), time.process_time()
            run(way)
            if i:
                found[way][0].append(time.perf_counter() - wall)
                found[way][1].append(time.process_time() - cpu)
    return found


def _cells(layers: int) -> str:
    return "1 cell" if layers == 1 else f"{layers} cells"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--full", action="store_true", help="also 8 cells on 32×32, minutes a step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("network", "way", title=common.machine(options.threads))
    for column in ("median s", "min s", "max s", "processor s", "of fast", "error median, max"):
        table.add_column(column, justify="right")
    networks = [(8, 8), (32, 1), *([(32, 8)] if options.full else [])]
    if options.quick:
        networks, options.repeats, options.batch, options.threads = [(8, 1)], 1, 2, 1
    for side, layers in common.steps(networks, lambda network: f"{network[0]}×{network[0]}, {_cells(network[1])}"):
        net = network(side, layers)
        x = torch.rand(options.batch, 3, side, side, generator=torch_generator(0, "x"))
        y = torch.randint(10, (options.batch,), generator=torch_generator(0, "y"))
        found = measured(step(net, x, y), options.repeats)
        wrong = errors(net, x, y)
        base = statistics.median(found["fast"][0])
        for way, (wall, cpu) in found.items():
            median = statistics.median(wall)
            numbers = (median, min(wall), max(wall), statistics.median(cpu), median / base)
            rounding = "{:.0e}, {:.0e}".format(*wrong[way])
            table.add_row(f"{side}×{side}, {_cells(layers)}", way, *(f"{n:.2f}" for n in numbers), rounding)
    console = Console(width=120)
    console.print(table)
    console.print(f"largest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    common.command_line(main)
