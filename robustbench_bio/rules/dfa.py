"""Direct feedback alignment: each layer learns from a random projection of the output error.

Source: Nøkland 2016, arXiv:1609.01596. On purpose different from BioTorch: the projection replaces the
gradient at the layer's *output*, so a layer's update depends on its own signal; grouped convolutions work.
On purpose different from Nøkland: the projection is the gradient at the pre-activation itself, without the
derivative of what follows, which a layer cannot know.
"""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from robustbench_bio.rules.base import RULES, Draw, Layer, OutputError, Rule
from robustbench_bio.rules.geometry import Geometry, autocast, unfolded
from robustbench_bio.rules.options import RuleOptions


class _Direct(torch.autograd.Function):
    """Z = W x + b; backward: the gradient that arrives is dropped for e·B_out, and e·B_in is handed down."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        padded: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        to_output: Tensor,
        to_input: Tensor | None,
        geometry: Geometry,
        error: OutputError,
    ) -> Tensor:
        ctx.save_for_backward(x, padded, weight, to_output, to_input)
        ctx.geometry, ctx.error = geometry, error
        return geometry.output(padded, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, padded, weight, to_output, to_input = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        if ctx.error.value is None:
            raise RuntimeError("dfa needs a loss on the network's logits: no gradient has reached them")
        e = ctx.error.value.to(x.dtype)
        wants_x, _, wants_weight, wants_bias = ctx.needs_input_grad[:4]
        signal = geometry.spread(e @ to_output, g)
        below = None
        if wants_x:
            below = torch.zeros_like(x) if to_input is None else geometry.spread(e @ to_input, x)
        return (
            below,
            None,
            geometry.to_weight(signal, padded, weight) if wants_weight else None,
            geometry.to_bias(signal) if wants_bias else None,
            *[None] * 4,
        )


@dataclass(frozen=True)
class DfaOptions(RuleOptions):
    """Options of dfa.

    Args:
        dfa_pass: what a layer hands down: "input" a projection of the error, so that layers of other rules below still
            learn; "stop" nothing, which only a chain of dfa layers can use.
    """

    dfa_pass: Literal["input", "stop"] = "input"


@final
@RULES.register("dfa")
class DirectFeedbackAlignment(Rule):
    """The gradient at the layer's output becomes e·B, e = ∂L/∂logits, the same at every position of a map.

    State: `to_output` [K, units out] and, with `dfa_pass="input"`, `to_input` [K, units in]. The layer that
    yields the logits keeps its exact gradient (B = identity): the assignment leaves it to bp.
    """

    takes = DfaOptions
    suffix = "dfa"
    sees_labels = False

    options: DfaOptions
    to_output: Tensor
    to_input: Tensor | None

    def __init__(self, layer: Layer, draw: Draw) -> None:
        super().__init__(layer, draw)
        units_in = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        self.register_buffer("to_output", _projection(draw, layer.weight.shape[0], "dfa output").to(layer.weight))
        below = _projection(draw, units_in, "dfa input").to(layer.weight)
        self.register_buffer("to_input", below if self.options.dfa_pass == "input" else None)

    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        geometry, padded = unfolded(layer, x)
        # What comes down lands on x itself: padding that repeats pixels would add it up at the border.
        tensors = autocast(x, padded.detach(), layer.weight, layer.bias, self.to_output, self.to_input)
        out: Tensor = _Direct.apply(*tensors, geometry, self.error)
        return out


def _projection(draw: Draw, units: int, purpose: str) -> Tensor:
    """Draw [K, units] from Xavier's uniform law."""
    return draw.uniform((draw.classes, units), (6 / (draw.classes + units)) ** 0.5, purpose)
