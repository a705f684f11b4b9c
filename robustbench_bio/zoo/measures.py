"""What papers on learning rules measure of a network: alignment of the feedback, angle and variance of gradients.

Every function works on a copy: weights, gradients, buffers, the state of the rules, the mode of the network and
all random states stay as they were. The network runs in eval mode, so batch norm uses its running statistics. The
loss is the cross-entropy, averaged over the batch. Layers are the Conv2d and Linear layers in registration order,
gradients are those of their weights, without biases.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets.base import Net, eval_mode, weight_layers
from robustbench_bio.rules.base import Layer, Rule, RuleSet
from robustbench_bio.rules.feedback import FeedbackRule
from robustbench_bio.rules.layers import LayerRules

#: Fewer batches leave the variance itself too uncertain to compare networks.
LEAST_BATCHES = 16


@dataclass(frozen=True)
class LayerAlignment:
    """How a layer's feedback matrix B lies to its weight W.

    Attributes:
        rule: its learning rule; bp, where B is W, for layers without a rule of their own.
        angle: between B and W as vectors, degrees in [0, 180]; None where it is not defined.
        ratio: ‖B‖ / ‖W‖ (Frobenius); None where it is not defined.
        reason: why there is no angle or ratio, else "".
    """

    layer: str
    rule: str
    angle: float | None
    ratio: float | None
    reason: str = ""


@dataclass(frozen=True)
class GradientAngle:
    """How the gradient that a layer learns from lies to the exact one.

    Attributes:
        layer, rule: as in `LayerAlignment`.
        angle: between the two gradients of the weight as vectors, degrees in [0, 180]; None where not defined.
        reason: why there is no angle, else "".
    """

    layer: str
    rule: str
    angle: float | None
    reason: str = ""


@dataclass(frozen=True)
class Variance:
    """Spread of K gradients g_k about their mean ḡ, at fixed weights.

    Attributes:
        per_weight: mean_k ‖g_k − ḡ‖² / d, d the number of weights; the mean has 1/K, not 1/(K − 1).
        relative: mean_k ‖g_k − ḡ‖² / ‖ḡ‖², noise over signal: free of scale and of d. None for ḡ = 0. Pure
            noise reads about K − 1, so that values near it only say that K batches show no signal.
    """

    per_weight: float
    relative: float | None


@dataclass(frozen=True)
class LayerVariance:
    """Variance of one layer's gradients.

    Attributes:
        layer, rule: as in `LayerAlignment`.
        by_rule: of the gradient that the layer learns from; None if it has none.
        exact: of the exact gradient; None if the layer has none in eval mode.
    """

    layer: str
    rule: str
    by_rule: Variance | None
    exact: Variance | None


@dataclass(frozen=True)
class GradientVariance:
    """Variance of a network's gradients over the same batches.

    Attributes:
        by_rule: of the rules' gradients of all layers that have both gradients, taken as one vector.
        exact: of the exact gradients of the same layers, taken as one vector.
        weights: how many weights these layers have.
    """

    layers: list[LayerVariance]
    by_rule: Variance | None
    exact: Variance | None
    weights: int


def angle(a: Tensor, b: Tensor) -> float | None:
    """Return the degrees between two tensors taken as vectors, in [0, 180]; None if one is zero or not finite."""
    u, v = (t.detach().double().flatten() for t in (a, b))
    lengths = u.norm(), v.norm()
    if not all(length.isfinite() and length > 0 for length in lengths):
        return None
    u, v = u / lengths[0], v / lengths[1]
    # The arc cosine of ⟨u, v⟩, without its loss of digits near 0° and 180° (Kahan).
    return math.degrees(2 * math.atan2((u - v).norm().item(), (u + v).norm().item()))


def alignment(net: Net) -> list[LayerAlignment]:
    """Compare each layer's feedback matrix, as a backward pass uses it now, with its weight.

    For frsf and brsf B is |M|∘sign(W), not |M|. Rules without a matrix of the weight's shape (dfa, Hebbian rules,
    pc) are listed with the reason.

    Source: Lillicrap et al. 2016 (alignment angle); weight ratio as in BioTorch, which compares |M| with W for frsf.

    Raises:
        UserError: the network has no rules attached.
    """
    net = copy.deepcopy(net)
    owners = _owners(net)
    return [_aligned(name, rule, layer, owners.get(name)) for name, rule, layer in _layers(net)]


def _aligned(name: str, rule: str, layer: Layer, owner: Rule | None) -> LayerAlignment:
    weight = layer.weight.detach()
    if isinstance(owner, FeedbackRule):
        matrix = owner.matrix(layer).detach()
    elif rule == "bp":
        matrix = weight
    else:
        return LayerAlignment(name, rule, None, None, f"{rule} has no feedback matrix of the weight's shape")
    norm = weight.double().norm().item()
    if not norm:
        return LayerAlignment(name, rule, None, None, "the weight is zero")
    degrees = angle(matrix, weight)
    reason = "" if degrees is not None else "the feedback matrix is zero or not finite"
    return LayerAlignment(name, rule, degrees, matrix.double().norm().item() / norm, reason)


def gradient_angles(net: Net, x: Tensor, y: Tensor) -> list[GradientAngle]:
    """Compare the gradient that each layer learns from with the exact one, on one batch.

    Layers under bp are compared too: below a layer with false feedback their gradient is false as well. brsf uses
    the magnitudes that it holds now.

    x is [N, C, H, W] in [0, 1], y int64 [N].

    Raises:
        UserError: the network has no rules attached, or x and y do not belong together.
    """
    net = copy.deepcopy(net)
    owners = _owners(net)
    _check(x, y)
    learned, exact = (_gradients(net, x, y, by_rule=by_rule) for by_rule in (True, False))
    angles = []
    for name, rule, _ in _layers(net):
        mine, true = learned[name], exact[name]
        degrees = None if mine is None or true is None else angle(mine, true)
        reason = "" if degrees is not None else _no_angle(rule, owners.get(name), mine, true)
        angles.append(GradientAngle(name, rule, degrees, reason))
    return angles


def _no_angle(rule: str, owner: Rule | None, mine: Tensor | None, true: Tensor | None) -> str:
    if true is None:
        return "no gradient in eval mode"
    if mine is None:
        local = owner is not None and owner.local
        return f"{rule} follows no gradient" if local else f"{rule} gives it no gradient"
    which = "exact" if angle(mine, mine) is not None else rule
    return f"its {which} gradient is zero or not finite"


def gradient_variance(
    net: Net,
    x: Tensor,
    y: Tensor,
    *,
    batches: int = LEAST_BATCHES,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> GradientVariance:
    """Measure how much gradients differ from batch to batch at fixed weights, the rules' and the exact ones.

    V_l = mean_k ‖g_{l,k} − ḡ_l‖² / d_l over K batches, and the same sum over ‖ḡ_l‖² (see `Variance`). Our
    definition: the paper (BioNAS, arXiv:2507.13485) gives none. The raw V_l of a smaller gradient is smaller
    without further merit, so that only the relative one compares rules. Each batch is drawn from x without
    replacement and independently of the others; both gradients see the same batches. brsf redraws its magnitudes
    after each batch, as it does in training, and its variance contains that.

    Args:
        net: a network with rules.
        x: [N, C, H, W] in [0, 1].
        y: int64 [N].
        batches: K, at least 16.
        batch_size: below N.
        seed: of the batches.
        progress: called with batches done, their total and a text.

    Raises:
        UserError: the network has no rules attached, x and y do not belong together, or a number out of range.
    """
    net = copy.deepcopy(net)
    owners = _owners(net)
    _check(x, y)
    if batches < LEAST_BATCHES:
        raise UserError(f"expected batches >= {LEAST_BATCHES}, got {batches}: fewer say little about a variance")
    if not 1 <= batch_size < len(x):
        raise UserError(f"expected batch_size in 1..{len(x) - 1} (fewer than the examples), got {batch_size}")
    sums = {name: (_Moments(), _Moments()) for name, _, _ in _layers(net)}
    for k in range(batches):
        draws = torch.randperm(len(x), generator=torch_generator(seed, "gradient variance", k))
        rows = draws[:batch_size].to(x.device)
        for side, by_rule in enumerate((True, False)):
            for name, gradient in _gradients(net, x[rows], y[rows], by_rule=by_rule).items():
                sums[name][side].add(gradient)
        for name, owner in owners.items():
            if not owner.local:  # a local rule would change the weight
                owner.step(net.get_submodule(name))  # type: ignore[arg-type]
        if progress:
            progress(k + 1, batches, "gradient variance")
    layers = [LayerVariance(name, rule, *(_variance([side]) for side in sums[name])) for name, rule, _ in _layers(net)]
    both = [(mine, true) for mine, true in sums.values() if mine.weights and true.weights]
    return GradientVariance(
        layers,
        _variance(mine for mine, _ in both),
        _variance(true for _, true in both),
        sum(mine.weights for mine, _ in both),
    )


class _Moments:
    """Mean and scatter Σ_k ‖g_k − ḡ‖² of gradients that come one at a time (Welford 1962), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.weights = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.scatter = 0.0

    def add(self, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        gradient = gradient.double()
        self.count += 1
        self.weights = gradient.numel()
        away = gradient - self.mean
        self.mean = self.mean + away / self.count
        self.scatter += (away * (gradient - self.mean)).sum().item()


def _variance(parts: Iterable[_Moments]) -> Variance | None:
    """Return the variance of the vector that the parts make up together; None without a gradient, or a finite one."""
    seen = [part for part in parts if part.weights]
    spread = sum(part.scatter / part.count for part in seen)
    signal = sum(part.mean.square().sum().item() for part in seen)
    if not seen or not math.isfinite(spread + signal):
        return None
    return Variance(spread / sum(part.weights for part in seen), spread / signal if signal else None)


def _gradients(net: Net, x: Tensor, y: Tensor, *, by_rule: bool) -> dict[str, Tensor | None]:
    """Return layer → gradient of its weight, or None; overwrites the gradients of `net`."""
    net.zero_grad(set_to_none=True)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none")

    with eval_mode(net), torch.enable_grad():
        if by_rule:
            _rules(net).backward(net, x, loss)
        else:
            loss(net(x)).mean().backward()  # type: ignore[no-untyped-call]
    return {name: layer.weight.grad for name, layer in weight_layers(net).items()}


def _layers(net: Net) -> Iterator[tuple[str, str, Layer]]:
    """Yield (name, rule, layer) of each weight layer."""
    assignment = _rules(net).assignment
    for name, layer in weight_layers(net).items():
        yield name, assignment.get(name, "bp"), layer


def _owners(net: Net) -> dict[str, Rule]:
    """Return layer → rule object, for rules that own one layer each."""
    rules = _rules(net)
    if not isinstance(rules, LayerRules):
        return {}
    names = {layer: name for name, layer in weight_layers(net).items()}
    return {names[layer]: rule for layer, rule in rules.pairs(net)}


def _rules(net: Net) -> RuleSet:
    rules = getattr(net, "rules", None)
    if not isinstance(rules, RuleSet):
        raise UserError(f"expected a network with learning rules, got a bare {type(net).__name__}: use rules.attach")
    return rules


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 4 or not len(x) or y.shape != x.shape[:1]:
        got = f"{list(x.shape)} and {list(y.shape)}"
        raise UserError(f"expected x [N, C, H, W] and y [N] with N >= 1, got {got}: pass images and their labels")
