"""Which operations of the supernet can be evaluated together, and what of them is needed for it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from robustbench_bio.rules.feedback import FeedbackRule
from robustbench_bio.search.supernet.fast.folded import Norms


class Separable(NamedTuple):
    """One separable convolution of an operation, and the batch norm that follows."""

    depthwise: nn.Conv2d
    pointwise: nn.Conv2d
    norm: nn.BatchNorm2d


def foldable(ops: Sequence[nn.Module]) -> bool:
    """Return whether operations are separable convolutions that can be evaluated together.

    They are if each convolution learns by a rule that is fully described by its feedback matrix, nothing else
    watches or owns a layer's passes, and the batch norms agree in their settings.
    """
    stages = [separables(op) for op in ops]
    if not stages or not all(stages) or any(watched(op) for op in ops):
        return False
    layers = [layer for op in stages for stage in op for layer in (stage.depthwise, stage.pointwise)]
    if not all(_described(layer) for layer in layers):
        return False
    return all(Norms([stage.norm for stage in level]).agree() for level in zip(*stages, strict=True))


def separables(op: nn.Module) -> list[Separable]:
    """Return the separable convolutions that an operation is made of; none if it is made of anything else."""
    parts: list[Any] = [op.first, op.second] if hasattr(op, "first") else [op]
    if not all(hasattr(part, "depthwise") for part in parts):
        return []
    return [Separable(part.depthwise, part.pointwise, part.norm) for part in parts]


def watched(op: nn.Module) -> bool:
    """Return whether a hook waits for a pass of some module."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in op.modules()
    )


def _described(layer: nn.Conv2d) -> bool:
    forward = layer.__dict__.get("forward")
    return forward is None or isinstance(getattr(forward, "func", None), FeedbackRule)


def matrix(layer: nn.Conv2d) -> Tensor:
    """Return B as the layer's rule has it now; W if it has none."""
    forward = layer.__dict__.get("forward")
    matrix: Tensor = layer.weight if forward is None else forward.func.matrix(layer)
    return matrix.detach()
