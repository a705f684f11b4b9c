"""Rules that keep the forward pass and the weight gradient, and replace W by B on the way down.

Sources: Lillicrap et al. 2016 (fa); Liao, Leibo & Poggio 2016, arXiv:1510.05067 (sign-symmetric feedback);
Xiao et al. 2019, arXiv:1811.03567 (its scale). The absolute value of the random magnitudes follows BioTorch.

On purpose different from BioTorch: B is a buffer, never a parameter; a fresh draw for brsf comes once per
optimiser step from a private stream; fans of grouped convolutions count the group only.
"""

from abc import abstractmethod
from typing import Any, final

import torch
from torch import Tensor

from robustbench_bio.rules.base import RULES, Draw, Layer, Rule, init_bound
from robustbench_bio.rules.geometry import Geometry, autocast, unfolded


class _Feedback(torch.autograd.Function):
    """Z = W x + b; backward: dW and db exact for the gradient that arrives, δX through `matrix`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight, matrix)
        ctx.geometry = geometry
        return geometry.output(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, matrix = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        return (
            geometry.to_input(g, x, matrix) if wants_x else None,
            geometry.to_weight(g, x, weight) if wants_weight else None,
            geometry.to_bias(g) if wants_bias else None,
            None,
            None,
        )


class FeedbackRule(Rule):
    """A rule that is fully described by its feedback matrix."""

    @abstractmethod
    def matrix(self, layer: Layer) -> Tensor:
        """Return B as this forward pass will use it, of the shape of the layer's weight."""

    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        geometry, x = unfolded(layer, x)
        tensors = autocast(x, layer.weight, layer.bias, self.matrix(layer))
        out: Tensor = _Feedback.apply(*tensors, geometry)
        return out


@final
@RULES.register("bp")
class Backpropagation(FeedbackRule):
    """B = W: ordinary backpropagation."""

    suffix = "bp"

    def matrix(self, layer: Layer) -> Tensor:
        return layer.weight


@final
@RULES.register("fa")
class FeedbackAlignment(FeedbackRule):
    """B = R, drawn once from the weights' initial law, independent of W. State: `feedback`."""

    suffix = "fa"

    feedback: Tensor

    def __init__(self, layer: Layer, draw: Draw) -> None:
        super().__init__(layer, draw)
        self.register_buffer("feedback", draw.like_weight(layer, "fa"))

    def matrix(self, layer: Layer) -> Tensor:
        del layer
        return self.feedback


@final
@RULES.register("usf")
class UniformSignFeedback(FeedbackRule):
    """B = c·sign(W), c the standard deviation of the weights' initial law. No state."""

    suffix = "u"

    def __init__(self, layer: Layer, draw: Draw) -> None:
        super().__init__(layer, draw)
        # The standard deviation of U(±a) is a/√3: B is as long as W when training starts, at an angle of 30°.
        self.scale = init_bound(layer, draw.options) / 3**0.5

    def matrix(self, layer: Layer) -> Tensor:
        return self.scale * layer.weight.sign()


@final
@RULES.register("frsf")
class FixedRandomMagnitudeFeedback(FeedbackRule):
    """B = |M|∘sign(W), M drawn once from the weights' initial law. State: `magnitude`."""

    suffix = "fr"

    magnitude: Tensor

    def __init__(self, layer: Layer, draw: Draw) -> None:
        super().__init__(layer, draw)
        self.register_buffer("magnitude", draw.like_weight(layer, "frsf").abs())

    def matrix(self, layer: Layer) -> Tensor:
        return self.magnitude * layer.weight.sign()


@final
@RULES.register("brsf")
class BatchRandomMagnitudeFeedback(FeedbackRule):
    """B = |M_t|∘sign(W), M_t drawn afresh once per optimiser step. State: `stream` = (seed, steps so far).

    M_t is a function of the stream's state, so a restored state dict goes on with the same draws.
    """

    suffix = "br"

    stream: Tensor
    magnitude: Tensor

    def __init__(self, layer: Layer, draw: Draw) -> None:
        super().__init__(layer, draw)
        self._layer_name = draw.layer
        self._bound = init_bound(layer, draw.options)
        self.register_buffer("stream", torch.tensor([draw.seed, 0]))
        self.register_buffer("magnitude", torch.empty_like(layer.weight, requires_grad=False), persistent=False)
        self.restart()
        self.register_load_state_dict_post_hook(_follow)  # type: ignore[no-untyped-call]

    def matrix(self, layer: Layer) -> Tensor:
        return self.magnitude * layer.weight.sign()

    def step(self, layer: Layer) -> None:
        del layer
        self._count += 1
        self.stream[1] = self._count
        self._redraw()

    def restart(self) -> None:
        """Make the magnitudes those that the stream prescribes right after a step."""
        # Read here alone: where the stream lies on a GPU, reading it waits for all that the GPU has to do.
        self._seed, self._count = self.stream.tolist()
        self._redraw()

    def _redraw(self) -> None:
        draw = Draw(self._seed, self._layer_name, self.options)
        # The closing 0 is part of the key that trained weights were drawn under.
        magnitude = draw.uniform(self.magnitude.shape, self._bound, f"brsf {self._count} 0").abs()
        if self.magnitude.is_cuda:  # from pinned memory a copy waits for nothing, from other memory each takes its turn
            magnitude = magnitude.pin_memory()
        self.magnitude.copy_(magnitude, non_blocking=True)


def _follow(module: BatchRandomMagnitudeFeedback, keys: object) -> None:
    """Make the magnitudes follow a restored stream."""
    del keys
    module.restart()
