"""What finds most on networks with thresholds: surrogates of many shapes and widths, and searches by forward passes.

Each method starts afresh at the images that a spiking network answers rightly. The surrogates drive PGD on the margin
of the logits (30 steps, four restarts); the last row of a network counts what any of them found. Searches begin with
one such run through arctan.

python benchmarks/thresholds.py [--models bp-spiking-resnet,…] [--n 100] [--eps 8] [--markdown] [--quick]
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import common
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustbench_bio.attacks import WhiteBoxModel, make
from robustbench_bio.attacks.access.white_box import margin
from robustbench_bio.attacks.pgd import ascend
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.evaluation.plan import Slice
from robustbench_bio.nets import surrogates
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.threat import Threat
from robustbench_bio.zoo.loading import DataSource

MODELS = "bp-spiking-resnet,mse-nas-rdm,stdp-spiking-cnn"

#: Derivative of a step at distances u [n, ...] from the threshold.
Derivative = Callable[[Tensor], Tensor]

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SHAPES = ("sigmoid", "arctan", "fast-sigmoid", "triangle", "rectangle")
KNOWN = dict(surrogates.SURROGATES)


def wide(shape: str, width: float | Tensor) -> Derivative:
    """Return a surrogate stretched over `width`, of equal area."""
    return lambda u: KNOWN[shape](u / width) / width


def mean(parts: list[Derivative]) -> Derivative:
    return lambda u: torch.stack([part(u) for part in parts]).mean(0)


def redrawn(u: Tensor) -> Tensor:
    """Of another shape, and a width between 1/4 and 4, in each layer and step."""
    shape = SHAPES[int(torch.randint(len(SHAPES), ()))]
    return wide(shape, 4 ** float(2 * torch.rand(()) - 1))(u)


def adaptive(share: float) -> Derivative:
    """As wide as a share of the layer's mean distance from the threshold, image by image (arXiv:2512.22522)."""

    def derivative(u: Tensor) -> Tensor:
        width = (share * u.detach().abs().flatten(1).mean(1)).clamp_min(1e-3)
        return wide("arctan", width.view(-1, *[1] * (u.ndim - 1)))(u)

    return derivative


def adaptive_each(u: Tensor) -> Tensor:
    """As wide as each neuron's own distance from the threshold, between 0.1 and 4."""
    return wide("arctan", u.detach().abs().clamp(0.1, 4))(u)


#: Those of the package, and those tried beside them.
TRIED: dict[str, Derivative] = {
    **KNOWN,
    **{f"arctan, width {width:g}": wide("arctan", width) for width in WIDTHS if width != 1},
    "arctan, mean of five widths": mean([wide("arctan", width) for width in WIDTHS]),
    "mean of five shapes": mean([KNOWN[shape] for shape in SHAPES]),
    "shape and width drawn anew": redrawn,
    **{f"arctan, adaptive × {share:g}": adaptive(share) for share in (0.5, 1, 2)},
    "arctan, adaptive to each neuron": adaptive_each,
}


class Found(NamedTuple):
    """What a method found: bool [n], and its forward passes [n]."""

    fooled: Tensor
    queries: Tensor


def through_surrogate(net: nn.Module, name: str, x: Tensor, y: Tensor, threat: Threat) -> Found:
    """Run PGD on the margin from four starts, each for those that are left."""
    torch.manual_seed(0)
    model = WhiteBoxModel(net, Gradient("surrogate", name))
    fooled, queries = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y)
    for restart in range(4):
        rows = (~fooled).nonzero().flatten()
        start = threat.random_start(x[rows], ExampleRng(0, rows, str(restart)))
        size = 2.5 * threat.eps / 30
        run = ascend(model, x[rows], y[rows], threat, start, steps=30, step_size=size, loss=margin)
        fooled[rows] = model.fooled(run.x_adv, y[rows])
        queries[rows] += run.queries + 1
    return Found(fooled, queries)


def by_search(net: nn.Module, heat: float, x: Tensor, y: Tensor, threat: Threat) -> Found:
    """Run the coordinate search once, 1,300 forward passes."""
    model = WhiteBoxModel(net, "surrogate:arctan")
    search = make("coordinate", "linf", {"queries": 1300, "restarts": 1, "heat": heat})
    run = search.perturb(model, x, y, threat, ExampleRng(0, range(len(y))))
    return Found(model.fooled(run.x_adv, y), run.queries)


def methods(net: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Iterator[tuple[str, Callable[[], Found]]]:
    """Yield each method's name and how it is run."""
    for name in TRIED:
        yield f"PGD, {name}", lambda name=name: through_surrogate(net, name, x, y, threat)
    for heat in (0.0, 0.02, 0.05, 0.1):
        yield f"coordinate, heat {heat:g}", lambda heat=heat: by_search(net, heat, x, y, threat)


def rows_of(name: str, n: int, threat: Threat, *, quick: bool) -> Iterator[list[str]]:
    """Yield a row for each method on one network, and one for all surrogates together."""
    source = DataSource("digits")
    net, examples = source.network(name, "cpu"), Slice.load(source, n)
    right = ~WhiteBoxModel(net).fooled(examples.x, examples.y)
    x, y = examples.x[right], examples.y[right]
    together = torch.zeros_like(y, dtype=torch.bool)
    every = list(methods(net, x, y, threat))
    for method, run in common.steps(every[-1:] if quick else every, lambda item: f"{name}: {item[0]}"):
        started = time.perf_counter()
        fooled, queries = run()
        seconds = time.perf_counter() - started
        if method.startswith("PGD"):
            together |= fooled
        left, passes = int((~fooled).sum()) / n, queries.float().sum().item()
        found = 1000 * int(fooled.sum()) / passes
        yield [name, method, f"{left:.0%}", f"{passes / len(y):,.0f}", f"{found:.2f}", f"{seconds:.0f}"]
    if not quick:
        yield [name, "all surrogates together", f"{int((~together).sum()) / n:.0%}", "", "", ""]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--n", type=int, default=100, help="images")
    parser.add_argument("--eps", type=float, default=8, help="linf radius in 255ths")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    surrogates.SURROGATES = TRIED
    n = 8 if options.quick else options.n
    headings = ["network", "method", "robust", "forward passes an image", "found per 1,000 passes", "seconds"]
    rows = []
    for name in options.models.split(",")[: 1 if options.quick else None]:
        rows += rows_of(name, n, Threat("linf", options.eps / 255), quick=options.quick)
    if options.markdown:
        print("\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)))
        return
    table = Table(*headings, title=f"linf {options.eps:g}/255, {n} digits, {common.machine(torch.get_num_threads())}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    common.command_line(main)
