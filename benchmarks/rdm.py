"""How much faster matrices of dissimilarity are than a loop over pairs: `python benchmarks/rdm.py [--batch 128]`.

The layer is that of a network searched on digits: --neurons neurons, --steps time steps, both ways on the same spikes.
The loop takes two rows at a time and asks for each number by itself, as code in the manner of the released one does:
distance by `nn.PairwiseDistance`, cosine by `nn.CosineSimilarity`, correlation by `torch.corrcoef`, counts by sums.
"""

import math
import statistics
import time
from collections.abc import Callable

import common
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustbench_bio.core.rng import torch_generator
from robustbench_bio.search.motifs import rdm

#: Name → dissimilarity of two rows.
PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hamming": lambda a, b: (a * (1 - b) + (1 - a) * b).sum() / a.numel(),
    "jaccard": lambda a, b: 1 - (a * b).sum() / (a * b + a * (1 - b) + (1 - a) * b).sum(),
    "cosine": lambda a, b: 1 - nn.CosineSimilarity(0)(a, b),
    "pearson": lambda a, b: 1 - torch.corrcoef(torch.stack([a, b]))[0, 1],
    "manhattan": lambda a, b: nn.PairwiseDistance(1, eps=0)(a, b) / a.numel(),
    "released": nn.PairwiseDistance(1),
}


def loop(spikes: Tensor, metric: str) -> Tensor:
    """Return what `rdm` returns, pair by pair."""
    if metric == "released":
        rows = list(spikes.flatten(2).double())
    elif metric in {"hamming", "jaccard"}:
        rows = [spikes.transpose(0, 1).flatten(1)]
    else:
        rows = [spikes.double().mean(0).flatten(1)]
    pair = PAIRS[metric]
    total = torch.zeros(len(rows[0]), len(rows[0]), dtype=torch.float64)
    for x in rows:
        for i in range(len(x)):
            for j in range(len(x)):
                if i != j or metric == "released":
                    total[i, j] += pair(x[i], x[j])
    return total


def at_once(spikes: Tensor, metric: str) -> Tensor:
    return rdm.released_sum(spikes) if metric == "released" else rdm.dissimilarity(spikes, metric)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median of the times that `work` takes."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--neurons", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5, help="of the fast form; the loop runs once")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.quick:
        options.batch, options.neurons, options.repeats = 16, 64, 1
    torch.set_num_threads(options.threads)
    shape = (options.steps, options.batch, options.neurons)
    spikes = (torch.rand(shape, generator=torch_generator("benchmark", "rdm")) < 0.3).float()
    table = Table(title=f"RDM of one layer, {options.batch} stimuli, {options.neurons} neurons, {options.steps} steps",
                  caption=common.machine(options.threads))  # fmt: skip
    for name in ("metric", "loop (ms)", "at once (ms)", "times faster", "largest difference"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    ratios = []
    for metric in common.steps(rdm.KNOWN):
        at_once(spikes, metric)
        fast = seconds(lambda m=metric: at_once(spikes, m), options.repeats)  # type: ignore[misc]
        slow = seconds(lambda m=metric: loop(spikes, m), 1)  # type: ignore[misc]
        error = (loop(spikes[:, :8], metric) - at_once(spikes[:, :8], metric)).abs().max().item()
        ratios.append(slow / fast)
        table.add_row(metric, f"{1e3 * slow:.0f}", f"{1e3 * fast:.2f}", f"{ratios[-1]:.0f}", f"{error:.1e}")
    console = Console()
    console.print(table)
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    console.print(f"geometric mean {mean:.0f} times, least {min(ratios):.0f}: "
                  f"{'at least 20' if min(ratios) >= 20 else 'fewer than the 20 that we ask for'}")  # fmt: skip


if __name__ == "__main__":
    common.command_line(main)
