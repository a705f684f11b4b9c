"""Hebbian rules: a layer changes its weights by what it sees and what it answers; no error reaches it."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import DivergedError
from robustbench_bio.rules.base import RULES, Draw, Layer, Rule, groups
from robustbench_bio.rules.geometry import Geometry, unfolded
from robustbench_bio.rules.options import RuleOptions

#: Keeps SoftHebb's learning rate above zero at unit norm: √1e-10 = 1e-5 of `local_lr`.
NORM_FLOOR = 1e-10


class Response(NamedTuple):
    """How the units of a layer answer at each position: both [n, groups, units, ...]."""

    activity: Tensor
    """y, what the input is correlated with."""
    decay: Tensor
    """What the unit's own weights are shrunk by."""


class Seen(NamedTuple):
    """Sums over all examples and positions since the last step."""

    correlation: Tensor
    """Σ y x, in the shape of the weight."""
    decay: Tensor
    """Σ decay per unit, broadcast over the weight: [units, 1, ...]."""
    positions: int
    """Terms in each sum."""


@dataclass(frozen=True)
class LocalOptions(RuleOptions):
    """Options of all rules that change the weight themselves.

    Args:
        local_pass: what a layer hands down: the "exact" gradient through its weights, or "stop".
        local_lr: learning rate η.
    """

    local_pass: Literal["exact", "stop"] = "exact"
    local_lr: float = 0.01


class LocalRule(Rule):
    """A layer that learns from its own input and output, when `step` asks for it.

    Only forward passes in training mode with gradients enabled are remembered; every other one changes nothing.

    No parameter of the layer receives a gradient. That includes the bias, which stays as it is: learning
    would no longer be local if a part of the layer followed the loss. Initial weights are the network's.
    """

    local: ClassVar[bool] = True
    sees_labels = False
    takes = LocalOptions

    options: LocalOptions

    @abstractmethod
    def remember(self, layer: Layer, geometry: Geometry, x: Tensor, output: Tensor) -> None:
        """Keep what `step` will need of one forward pass: the input that the layer really saw, and its output."""

    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return the layer's ordinary output; hand down the exact gradient through W, or zeros."""
        geometry, x = unfolded(layer, x)
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        output: Tensor
        if self.options.local_pass == "exact":
            output = geometry.output(x, weight, bias)
        else:
            output = _Stopped.apply(x, weight, bias, geometry)
        if layer.training and torch.is_grad_enabled():
            self.remember(layer, geometry, x.detach(), output.detach())
        return output


class Hebbian(LocalRule):
    """A layer that learns from its own input and pre-activation u = W x, taken without the bias.

    A remembered forward pass adds to the sums that `step` turns into one update, so that several passes before a
    step count as one larger batch. Groups of a convolution learn apart, as separate layers would.
    """

    def __init__(self, layer: Layer, draw: Draw) -> None:
        super().__init__(layer, draw)
        self._seen: Seen | None = None

    @abstractmethod
    def respond(self, u: Tensor) -> Response:
        """Return the response to pre-activations u [n, groups, units, ...]; units compete over dim 2."""

    def change(self, layer: Layer, seen: Seen) -> Tensor:
        """Return ΔW = η/P·(Σ y x − Σ decay·W) over the P positions that were seen."""
        return self.options.local_lr / seen.positions * (seen.correlation - seen.decay * layer.weight)

    @torch.no_grad()
    def step(self, layer: Layer) -> None:
        """Change the weight by what was seen since the last step, and forget it; raises `DivergedError`."""
        if self._seen is None:
            return
        change, self._seen = self.change(layer, self._seen), None
        if not change.isfinite().all():
            rate = self.options.local_lr
            raise DivergedError(f"expected a finite Hebbian update, got inf or nan: set local_lr below {rate}")
        layer.weight.add_(change)

    @torch.no_grad()
    def remember(self, layer: Layer, geometry: Geometry, x: Tensor, output: Tensor) -> None:
        weight = layer.weight
        # Sums over many positions need the precision of the weight, whatever the forward pass ran in.
        with torch.autocast(x.device.type, enabled=False):
            u = output.to(weight.dtype)
            if isinstance(layer, nn.Linear):
                u = u.flatten(0, -2)
            if layer.bias is not None:
                # The papers' u is W x: a bias would decide who wins without having seen the input.
                u = u - layer.bias.view(-1, *[1] * (u.ndim - 2))
            grouped = u.view(len(u), groups(layer), -1, *u.shape[2:])
            activity, decay = (part.flatten(1, 2) for part in self.respond(grouped))
            correlation = geometry.to_weight(activity, x.to(weight.dtype), weight)
            shrink = decay.transpose(0, 1).flatten(1).sum(1).view(-1, *[1] * (weight.ndim - 1))
        positions = u[:, 0].numel()
        if self._seen is not None:
            correlation += self._seen.correlation
            shrink += self._seen.decay
            positions += self._seen.positions
        self._seen = Seen(correlation, shrink, positions)


@final
@RULES.register("oja")
class Oja(Hebbian):
    """Oja's rule: ΔW_o = η/P·(Σ_p y x − Σ_p y²·W_o) with y = u.

    Fixed point: ‖W_o‖ = 1 along the top principal direction of the (uncentred) input patches, the same for
    every unit. Stable for η·λ < 1, where λ is the largest eigenvalue of the patches' second moment.

    Source: Oja 1982, "A simplified neuron model as a principal component analyzer".
    """

    suffix = "oja"

    def respond(self, u: Tensor) -> Response:
        """Answer linearly; the decay y² holds the norm at 1."""
        return Response(u, u.square())


@final
@RULES.register("hard-wta")
class HardWta(Hebbian):
    """Winner-take-all with the instar update: ΔW_o = η/P·Σ_p y (x − W_o), y = 1 for the argmax of u, else 0.

    A unit that wins nowhere does not move; a winner moves towards the mean of the patches that it won, by its
    share of the positions.

    Source: Rumelhart & Zipser 1985, "Feature discovery by competitive learning".
    """

    suffix = "hwta"

    def respond(self, u: Tensor) -> Response:
        """Answer 1 for the winner of each position and 0 for all others."""
        winner = _one_hot_argmax(u)
        return Response(winner, winner)


@dataclass(frozen=True)
class SoftHebbOptions(LocalOptions):
    """Options of softhebb: `softhebb_inverse_temperature` is t in p = softmax(t·u)."""

    softhebb_inverse_temperature: float = 1.0


@final
@RULES.register("softhebb")
class SoftHebb(Hebbian):
    """Soft winner-take-all with anti-Hebbian losers.

    p = softmax(t·u) over the units of a position; y = +p for the argmax and −p for all others;
    Δ = Σ y x − (Σ y u)·W, divided by its largest entry; W_o ← W_o + η·√(|‖W_o‖₂ − 1| + 1e-10)·Δ_o.

    Source: Journé, Garcia Rodriguez, Guo & Moraitis 2023, "Hebbian deep learning without feedback". Their
    networks start from W ~ N(0, 1)·25/√fan_in, which is for the network to choose, not for the rule. Unlike
    the released code, groups are normalised one by one. Losers are driven below zero on average, so that a
    bare ReLU leaves about one unit per position alive: let a norm or the triangle activation follow.
    """

    takes = SoftHebbOptions
    suffix = "soft"

    options: SoftHebbOptions

    def respond(self, u: Tensor) -> Response:
        """Answer +p for the winner of each position and −p for all others."""
        p = (self.options.softhebb_inverse_temperature * u).softmax(2)
        y = p * (2 * _one_hot_argmax(u) - 1)
        return Response(y, y * u)

    def change(self, layer: Layer, seen: Seen) -> Tensor:
        """Return η·√(|‖W_o‖₂ − 1| + 1e-10)·Δ_o, Δ divided by its largest entry."""
        weight = layer.weight
        delta = (seen.correlation - seen.decay * weight).reshape(groups(layer), -1)
        # A group that saw zeros only stays as it is: without the floor it would become 0/0.
        delta = delta / delta.abs().amax(1, keepdim=True).clamp_min(torch.finfo(delta.dtype).tiny)
        norm = weight.flatten(1).norm(dim=1).view_as(seen.decay)
        rate: Tensor = self.options.local_lr * ((norm - 1).abs() + NORM_FLOOR).sqrt()
        return rate * delta.view_as(weight)


class _Stopped(torch.autograd.Function):
    """Z = W x + b with zeros for x: a stopped gradient is zero, not an input that the graph does not know."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.input_shape = x.shape
        return geometry.output(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return g.new_zeros(ctx.input_shape), None, None, None


def _one_hot_argmax(u: Tensor) -> Tensor:
    return torch.zeros_like(u).scatter_(2, u.argmax(2, keepdim=True), 1.0)
