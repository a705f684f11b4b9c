"""What a learning rule is: the owner of the backward pass."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from robustbench_bio.core.registry import Registry
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.records.genotype import declare_suffix
from robustbench_bio.rules.options import RuleOptions, own_options

Layer = nn.Conv2d | nn.Linear

K = TypeVar("K", bound="type[Rule] | type[NetworkRule]")

#: Logits [N, K] → loss per example [N].
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Draw:
    """Reproducible source of the random state of one layer: keyed by (seed, layer name, purpose)."""

    seed: int
    layer: str
    options: RuleOptions
    classes: int = 0
    """Number of logits, for rules that project the output error."""

    def uniform(self, shape: Sequence[int], bound: float, purpose: str) -> Tensor:
        """Draw float32 from U(±bound); always on the CPU, so that every device sees the same numbers."""
        generator = torch_generator(self.seed, self.layer, purpose)
        return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)

    def like_weight(self, layer: Layer, purpose: str) -> Tensor:
        """Draw a tensor of the shape of the layer's weight from the weight's initial law."""
        return self.uniform(layer.weight.shape, init_bound(layer, self.options), purpose).to(layer.weight)


def fans(layer: Layer) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a layer: how many weights really meet one unit.

    On purpose different from BioTorch, which takes all output channels of a grouped convolution for its fan_out, and
    so makes the feedback of depthwise ones far too weak.
    """
    weight = layer.weight
    window = weight[0, 0].numel() if weight.ndim > 2 else 1
    return weight.shape[1] * window, weight.shape[0] // groups(layer) * window


def groups(layer: Layer) -> int:
    """Return how many parts of a layer learn apart."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def init_bound(layer: Layer, options: RuleOptions) -> float:
    """Return the half-width of the uniform law of the layer's initial weights."""
    fan_in, fan_out = fans(layer)
    return math.sqrt(6 / (fan_in + fan_out)) if options.init == "xavier" else 1 / math.sqrt(fan_in)


class OutputError:
    """e = ∂L/∂logits of one backward pass, seen before any layer's own backward runs."""

    def __init__(self) -> None:
        self.value: Tensor | None = None  # [N, K], once the backward pass has reached the logits

    def watch(self, module: nn.Module, args: object, logits: Tensor) -> Tensor:
        """Forward hook of the network: let the logits' gradient be recorded on its way down."""
        del module, args
        if logits.requires_grad:
            logits.register_hook(self._record)  # type: ignore[no-untyped-call]
        return logits

    def _record(self, gradient: Tensor) -> None:
        self.value = gradient


class LearningRule:
    """What every rule declares, be it a `Rule` of single layers or a `NetworkRule` that owns the whole network.

    Class attributes:
        takes: its options, `RuleOptions` or an extension of them beside the rule.
        suffix: how genotypes write it behind an operation, "soft" in conv_7x1_1x7_soft; "" if they cannot.
        sees_labels: whether it can train the layer that yields the logits; an assignment leaves it to bp if not.
    """

    takes: ClassVar[type[RuleOptions]] = RuleOptions
    suffix: ClassVar[str] = ""
    sees_labels: ClassVar[bool] = True


class Rule(nn.Module, LearningRule, ABC):
    """How one layer learns. Holds buffers only, never parameters, and never the layer itself.

    A concrete rule is registered under its name and takes (layer, draw).
    """

    #: True if the rule changes the layer's weight itself: the optimiser must leave that weight alone.
    local: ClassVar[bool] = False

    options: RuleOptions

    def __init__(self, layer: Layer, draw: Draw) -> None:
        del layer
        super().__init__()
        self.options = draw.options
        self.error = OutputError()

    @abstractmethod
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return the layer's ordinary output for x, whose backward pass is the rule's.

        Must change nothing unless `layer.training`.
        """

    def step(self, layer: Layer) -> None:
        """Do what happens once per optimiser step, after it: a redraw, a local update."""


class InputGradient(NamedTuple):
    """Gradient of the summed loss at the input, and the logits of the same forward pass."""

    gradient: Tensor
    logits: Tensor


class RuleSet(nn.Module, ABC):
    """The learning rules of one network; `model.rules` remembers it, plain forward passes ignore it.

    `assignment` is layer name → rule name, for the layers that are not plain bp; `values` what was set of the rules'
    options: name → checked value.
    """

    def __init__(self, assignment: Mapping[str, str], values: Mapping[str, object]) -> None:
        super().__init__()
        self.assignment = dict(assignment)
        self.option_values = dict(values)

    @abstractmethod
    def backward(self, model: nn.Module, x: Tensor, loss: Loss) -> Tensor:
        """Add the rule's gradient of the mean loss to every parameter's `.grad`; return the logits, detached."""

    @abstractmethod
    def input_gradient(self, model: nn.Module, x: Tensor, loss: Loss) -> InputGradient:
        """Return what the rule takes for the gradient of the summed loss at x; changes no parameter or buffer.

        The forward pass is that of eval mode whatever the mode of the model, which is left as it was: asking
        for a gradient is no training.
        """

    def step(self, model: nn.Module) -> None:
        """Do what the rules do once per optimiser step, after it."""

    def local_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the weights that the rules change themselves and the optimiser must not touch."""
        del model
        return []


class NetworkRule(RuleSet, LearningRule):
    """A rule that owns the backward pass of a whole network. Holds buffers only.

    A concrete rule is registered under its name and refuses in `__init__` the networks that it cannot own.

    `assignment` names each weight layer of the model → the rule's own name; the rule takes its own of the options'
    values, which `attach` has checked.
    """

    def __init__(self, model: nn.Module, assignment: Mapping[str, str], values: Mapping[str, object]) -> None:
        del model
        super().__init__(assignment, values)
        self.options = own_options(self.takes, values)


class _Rules(Registry[type[Rule] | type[NetworkRule]]):
    def register(self, name: str) -> Callable[[K], K]:
        """Add a rule, and its suffix to those that genotypes may write."""
        add = super().register(name)

        def declare(kind: K) -> K:
            add(kind)
            if kind.suffix:
                declare_suffix(name, kind.suffix)
            return kind

        return declare


RULES = _Rules("rule", "robustbench_bio.rules")
