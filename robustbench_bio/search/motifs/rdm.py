"""Representational dissimilarity of a network that has learnt nothing: a fitness without training or labels.

How differently do the neurons of a layer answer to different stimuli? For each layer of neurons a matrix [B, B]
holds how unlike the answers to two stimuli are (RDM, Kriegeskorte et al. 2008); the score is the mean of what is off
its diagonal, over the layers. A layer that answers the same to everything, as one that never fires, counts with 0.
A network whose last layer does that represents nothing, whatever goes on before, and scores 0.

Different on purpose from the released code of MSE-NAS: counts are divided by the number of neurons, so that no
layer outweighs the others; Jaccard is Jaccard; the kernel of SAHD is that of its authors. `released` is the old
arithmetic for the record.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType

import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.nets.base import eval_mode
from robustbench_bio.nets.spiking import LIF

#: log-determinant of a kernel that is singular; stands for minus infinity, which JSON cannot say.
SINGULAR = -1e6


def _trains(spikes: Tensor) -> Tensor:
    """Return one row for each stimulus with the steps side by side: [T, B, …] → [B, T·n]."""
    return spikes.transpose(0, 1).flatten(1).float()


def _rates(spikes: Tensor) -> Tensor:
    """Return mean rates over time in float64: [T, B, …] → [B, n]."""
    return spikes.double().mean(0).flatten(1)


def _counts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many entries of two rows [..., B, n] are (1, 1), (1, 0) and (0, 1); whole numbers, exact up to 2²⁴."""
    both = x @ x.mT
    ones = x.sum(-1)
    return both, ones[..., :, None] - both, ones[..., None, :] - both


def _hamming(spikes: Tensor) -> Tensor:
    x = _trains(spikes)
    _, k10, k01 = _counts(x)
    return (k10 + k01).double() / x.shape[1]


def _jaccard(spikes: Tensor) -> Tensor:
    both, k10, k01 = (count.double() for count in _counts(_trains(spikes)))
    return (k10 + k01) / (both + k10 + k01).clamp_min(1)  # two silent answers are the same


def _angle(x: Tensor) -> Tensor:
    """Return 1 − cosine of rows; two rows of zeros are the same, one of them alone is like nothing else."""
    # A row of zeros has no direction. Centred rates are zero up to rounding only, hence a bound that grows like it.
    norms = x.norm(dim=1)
    empty = norms <= 1e-12 * max(1.0, x.shape[1] ** 0.5)
    unit = x / norms.masked_fill(empty, 1)[:, None]
    unit = unit.masked_fill(empty[:, None], 0)
    distance: Tensor = (1 - unit @ unit.T).clamp(0, 2)
    silent: Tensor = empty[:, None] & empty[None, :]
    return distance.masked_fill(silent, 0)


def _pearson(spikes: Tensor) -> Tensor:
    rates = _rates(spikes)
    return _angle(rates - rates.mean(1, keepdim=True))


def _manhattan(spikes: Tensor) -> Tensor:
    rates = _rates(spikes)
    return torch.cdist(rates, rates, p=1) / rates.shape[1]


#: Name → dissimilarities [B, B] of spikes [T, B, …]. Hamming and Jaccard compare spike by spike, the others rates.
METRICS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({
    "hamming": _hamming,
    "jaccard": _jaccard,
    "cosine": lambda spikes: _angle(_rates(spikes)),
    "pearson": _pearson,
    "manhattan": _manhattan,
})  # fmt: skip

#: All that `rdm:` may be followed by.
KNOWN = (*METRICS, "released")


def dissimilarity(spikes: Tensor, metric: str) -> Tensor:
    """Return how unlike the answers {0, 1} [T, B, …] of one layer to each pair of stimuli are, [B, B] in float64.

    Metrics: fraction of spikes and silences that differ (hamming), 1 − intersection over union (jaccard), 1 − cosine or
    1 − correlation of the rates, or their mean absolute difference (manhattan). The diagonal is zero. Raises
    `UserError` for an unknown metric, fewer than two stimuli, or no time step.
    """
    check_metric(metric)
    if spikes.ndim < 3 or spikes.shape[0] < 1 or spikes.shape[1] < 2:
        raise UserError(f"expected spikes [steps >= 1, stimuli >= 2, neurons], got {list(spikes.shape)}")
    matrix = METRICS[metric](spikes)
    # Products of matrices are symmetric up to rounding only.
    return ((matrix + matrix.T) / 2).fill_diagonal_(0)


def check_metric(metric: str) -> str:
    """Return the name of a metric; raises `UserError` for an unknown one."""
    if metric not in KNOWN:
        raise UserError(unknown("metric of rdm", metric, list(KNOWN)))
    return metric


def mean_off_diagonal(matrix: Tensor) -> float:
    """Return the mean of a square matrix without its diagonal."""
    n = len(matrix)
    return ((matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))).item()


def released_sum(spikes: Tensor) -> Tensor:
    """Return Σ over time steps of the L1 distances [B, B] as the released code has them, in float64.

    A count, not a fraction, with the 1e-6 that `PairwiseDistance` adds to every difference of one neuron.
    """
    x = spikes.flatten(2).float()
    _, k10, k01 = (count.double() for count in _counts(x))
    eps = 1e-6
    return (k10 * (1 + eps) + k01 * (1 - eps) + (x.shape[2] - k10 - k01) * eps).sum(0)


def sahd_kernel(spikes: Tensor) -> Tensor:
    """Return n − (K01 + K10)/2η of one layer, float64 [B, B]; η is the distance to expect at the rows' rates.

    Kim et al. 2022 (arXiv:2201.10355), sparsity-aware Hamming distance: n neurons and steps, s the rates of two
    rows, η = s(1 − s')+ (1 − s)s' + 1e-3, per neuron. The released code of MSE-NAS has n·η instead, which leaves
    nearly the same number everywhere.
    """
    x = _trains(spikes)
    _, k10, k01 = (count.double() for count in _counts(x))
    rates = x.double().mean(1)
    eta = rates[:, None] * (1 - rates[None, :]) + (1 - rates[:, None]) * rates[None, :] + 1e-3
    return x.shape[1] - 0.5 * (k10 + k01) / eta


class _Sums:
    """What the layers of neurons did in one pass."""

    def __init__(self, metrics: Sequence[str], *, sahd: bool) -> None:
        self.metrics, self.sahd = metrics, sahd
        self.scores: dict[str, list[float]] = {metric: [] for metric in metrics if metric != "released"}
        self.old: list[Tensor] = []
        self.kernels: list[Tensor] = []
        self.alive: list[bool] = []
        self.spikes = 0.0
        self.steps = 0

    def __call__(self, _layer: nn.Module, _args: object, spikes: Tensor) -> None:
        self.spikes += spikes.sum().item() / spikes.shape[1]
        # A layer that answers the same to all stimuli tells none apart. Pearson's and the sum in float64 would give it
        # rounding noise, `released` its 1e-6.
        alive = bool((spikes != spikes[:, :1]).any())
        self.alive.append(alive)
        for metric, values in self.scores.items():
            values.append(mean_off_diagonal(dissimilarity(spikes, metric)) if alive else 0.0)
        if "released" in self.metrics:
            self.old.append(released_sum(spikes))
            self.steps += len(spikes)
        if self.sahd:
            self.kernels.append(sahd_kernel(spikes))

    def totals(self) -> dict[str, float]:
        answers = bool(self.alive) and self.alive[-1]
        totals = {
            f"rdm:{metric}": sum(values) / len(values) if answers else 0.0 for metric, values in self.scores.items()
        }
        if self.old:
            totals["rdm:released"] = (torch.stack(self.old).sum() / self.steps).item()
        if self.kernels:
            sign, log = torch.linalg.slogdet(torch.stack(self.kernels).mean(0))
            totals["sahd"] = log.item() if sign > 0 and bool(log.isfinite()) else SINGULAR
        return totals | {"spikes": self.spikes, "dead": 1 - sum(self.alive) / max(1, len(self.alive))}


@torch.no_grad()
def spike_scores(
    net: nn.Module, stimuli: Sequence[Tensor], metrics: Sequence[str] = ("hamming",), *, sahd: bool = False
) -> dict[str, float]:
    """Return what a spiking network's layers do with stimuli, without training; the network stays as it is.

    Batch norm uses the statistics of the batch, as in train mode: what it would use in eval mode it has not
    learnt yet.

    The `LIF` layer that runs last decides what the network can tell apart. Scores are means over the stimuli's batches
    x [B, C, H, W] in [0, 1]; of the metrics, see `dissimilarity`, "released" is the old arithmetic; `sahd` takes the
    log-determinant of the mean kernel as well.

    Returns:
        "rdm:METRIC" and "sahd" as asked, "spikes" (of the whole network, per stimulus), "dead" (fraction of layers
        that answer the same to every stimulus).

    Raises `UserError` for an unknown metric, or a network without spiking layers.
    """
    for metric in metrics:
        check_metric(metric)
    layers = [module for module in net.modules() if isinstance(module, LIF)]
    if not layers:
        raise UserError(f"expected a network with LIF layers for a fitness of spikes, got a {type(net).__name__}")
    batches: list[dict[str, float]] = []
    with eval_mode(net), ExitStack() as undo:
        for buffer in net.buffers():
            undo.callback(buffer.copy_, buffer.clone())
        net.train()  # the end of the block gives every module its own mode back
        for x in stimuli:
            sums = _Sums(metrics, sahd=sahd)
            with ExitStack() as hooks:
                for layer in layers:
                    hooks.callback(layer.register_forward_hook(sums).remove)
                net(x)
            batches.append(sums.totals())
    return {name: sum(row[name] for row in batches) / len(batches) for name in batches[0]}
