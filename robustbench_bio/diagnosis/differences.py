"""The exact gradient held against central differences in float64."""

import copy

import torch
from torch import Tensor, fx, nn

from robustbench_bio.attacks.access.mean_prediction import seeded_by_input
from robustbench_bio.attacks.access.record import Untraceable
from robustbench_bio.attacks.access.trace import laid_out, trace
from robustbench_bio.attacks.access.white_box import slope
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.core.rng import torch_generator


def finite_difference_error(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0, directions: int = 8) -> float:
    """Return how far the exact gradient is from central differences in float64 along random directions.

    The gradient is that of the traced forward pass (of the network itself where it cannot be traced), both
    sides in float64, so that only rounding inside the network, thresholds or randomness can part them. Random
    networks draw the same on both sides.

    x is [n, C, H, W], a few examples; y int64 [n]. `directions` are drawn for each example.

    Returns:
        Median over examples and directions of |difference| / (|differential| + |central difference|).
    """
    try:
        recorded: nn.Module = trace(model, x)
    except Untraceable:
        recorded = model
    forward = _doubled(recorded)
    generator = torch_generator(seed, "directions")
    # Flat image regions put max pools and ReLUs exactly on their kinks, where no derivative exists: step off them.
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    start = laid_out(forward, (x.double() + 0.01 * (noise - 0.5)).clamp(0, 1))
    step = 1e-6

    def loss(point: Tensor) -> Tensor:
        with seeded_by_input("differences", seed, x=x):
            return cross_entropy(forward(point), y)

    with torch.enable_grad():
        point = start.clone().requires_grad_(True)
        gradient = slope(loss(point).sum(), point)
    gradient = torch.zeros_like(start) if gradient is None else gradient
    # Where there is no finite slope nothing can be compared; an image without any other pixel is a disagreement.
    known = gradient.isfinite()
    gradient, blind = torch.where(known, gradient, 0), ~known.flatten(1).any(1)
    errors = []
    for _ in range(directions):
        d = torch.randn(x.shape, generator=generator, dtype=start.dtype).to(x.device) * known
        with torch.no_grad():
            up, down = (loss(start + side * step * d) for side in (1, -1))
        measured, predicted = (up - down) / (2 * step), (gradient * d).flatten(1).sum(1)
        error = (measured - predicted).abs() / (measured.abs() + predicted.abs() + 1e-9)
        errors.append(torch.where(blind, 1.0, error).nan_to_num(1.0))
    return float(torch.stack(errors).median())


def _doubled(forward: nn.Module) -> nn.Module:
    """Return a copy in float64, also where a trace names float32 outright, as in `(u > 0).float()`."""
    forward = copy.deepcopy(forward).double()
    if isinstance(forward, fx.GraphModule):
        for node in forward.graph.nodes:
            node.args, node.kwargs = fx.node.map_aggregate(
                (node.args, node.kwargs), lambda part: torch.float64 if part is torch.float32 else part
            )
        forward.recompile()
    return forward
