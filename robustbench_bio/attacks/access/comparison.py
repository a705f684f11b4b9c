"""Gradients of one network beside each other: which of them an attack has to follow."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.attacks.access.mean_prediction import is_random
from robustbench_bio.attacks.access.record import Untraceable
from robustbench_bio.attacks.access.surrogate import ATTACKED_BY, stepped, with_surrogate
from robustbench_bio.attacks.access.trace import laid_out, trace
from robustbench_bio.attacks.access.white_box import ZERO_SHARE, WhiteBoxModel, slope
from robustbench_bio.core.errors import UserError
from robustbench_bio.records.gradient import EXACT, Gradient

#: Mean cosine below which two gradients are two.
SAME = 0.99


def followed(model: nn.Module, x: Tensor) -> tuple[Gradient, ...]:
    """Return the gradients that an attack has to follow, by what the network has at x [n, C, H, W].

    Exact; every one of `ATTACKED_BY` where there are steps; both where steps leave most inputs an exact gradient, or
    saturation takes it from some.
    """
    exact = _input_gradient(WhiteBoxModel(model), x)
    zero = 1 - _nonzero(exact).float().mean().item() if exact is not None else 0.0
    if stepped(model, x[:2]):
        return (EXACT, *ATTACKED_BY) if zero < 0.5 else ATTACKED_BY
    if zero > ZERO_SHARE and _input_gradient(WhiteBoxModel(model, ATTACKED_BY[-1]), x) is not None:
        return (EXACT, *ATTACKED_BY)
    return (EXACT,)


def own_differs(model: nn.Module, x: Tensor) -> bool:
    """Tell whether a network's own backward pass leads elsewhere than that of its trace, at inputs x [n, C, H, W].

    Where there are steps, elsewhere than every surrogate. No where it is zero, cannot be traced or is random.
    """
    try:
        graph = trace(model, x[:2])
    except Untraceable:
        return False
    if is_random(model, x):
        return False
    true = [with_surrogate(graph, one.surrogate) for one in ATTACKED_BY] if stepped(model, x[:2]) else [graph]
    own, *others = (_module_gradient(module, x) for module in (model, *true))
    if own is None or not _nonzero(own).any():
        return False
    return all(other is not None and cosines(own, other)[_nonzero(own)].mean().item() < SAME for other in others)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosines of two gradients [n, C, H, W]: [n]."""
    # In float64 and without a floor: the gradients of a network that is sure of itself are short, not false.
    return F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1, eps=1e-300)


def _nonzero(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).abs().amax(1) > 0


def _input_gradient(white_box: WhiteBoxModel, x: Tensor) -> Tensor | None:
    """Return the gradient of the cross-entropy for the network's own answers, None where there is none to ask for."""
    try:
        labels = white_box.logits(x).argmax(1)
        return white_box.gradient(x, labels, lambda z, y: F.cross_entropy(z, y, reduction="none")).gradient
    except UserError:
        return None


def _module_gradient(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return the same by autograd of a module, None where its backward pass fails."""
    try:
        with torch.enable_grad():
            point = laid_out(module, x.detach()).requires_grad_(True)
            logits = module(point).float()
            return slope(F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum"), point)
    except (RuntimeError, TypeError, ValueError):  # whatever a network's own backward pass raises
        return None
