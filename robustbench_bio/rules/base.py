"""What a learning rule is: the owner of the backward pass."""

import contextlib
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from robustbench_bio.core.registry import Registry
from robustbench_bio.core.rng import torch_generator

Layer = nn.Conv2d | nn.Linear

#: Logits [N, K] → loss per example [N].
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RuleOptions:
    """Switches shared by the rules; the defaults are the clean behaviour, the rest reproduces released code.

    Args:
        init: law of the feedback matrices, and of the weights when they are drawn with them: "xavier"
            U(±√(6/(fan_in+fan_out))), "kaiming" U(±1/√fan_in) (PyTorch's own default for conv and linear).
        fan: "grouped" counts the weights that really meet one unit; "reference" takes the tensor shape, as
            BioTorch does, which makes depthwise feedback weaker.
        brsf_redraw: "step" redraws |M| once per optimiser step from a private stream; "forward" in every
            training or rule-gradient forward, evaluation included, as BioTorch does.
        dfa_pass: what a dfa layer hands down: "input" a projection of the error, so that layers of other
            rules below still learn; "stop" nothing, which only a chain of dfa layers can use.
        local_pass: what a Hebbian or stdp layer hands down: "exact" gradient through its weights, or "stop".
        local_lr: learning rate of the Hebbian and stdp layers.
        softhebb_inverse_temperature: t in p = softmax(t·u).
        stdp_tau_pre: time constant of the traces of incoming spikes, in steps, at least 1.
        stdp_tau_post: the same for outgoing spikes.
        stdp_low, stdp_high: bounds of the weights under stdp.
        stdp_depression: strength of depression over that of potentiation.
        stdp_power: μ of the soft bounds: potentiation ∝ (high − w)^μ, depression ∝ (w − low)^μ.
        stdp_rivals: at each position, only the neuron that fires first learns; off, all learn that fire.
        stdp_reward: "none", or "label": changes are multiplied by 2·p − 1, p the label's probability.
        pc_beta: precision of the output over that of the hidden layers.
        pc_steps: inference steps T.
        pc_gamma: inference step size γ.
        pc_fixed_prediction: keep predictions and derivatives at their feed-forward values during inference.
    """

    init: Literal["xavier", "kaiming"] = "xavier"
    fan: Literal["grouped", "reference"] = "grouped"
    brsf_redraw: Literal["step", "forward"] = "step"
    dfa_pass: Literal["input", "stop"] = "input"
    local_pass: Literal["exact", "stop"] = "exact"
    local_lr: float = 0.01
    softhebb_inverse_temperature: float = 1.0
    stdp_tau_pre: float = 2.0
    stdp_tau_post: float = 2.0
    stdp_low: float = -1.0
    stdp_high: float = 1.0
    stdp_depression: float = 1.0
    stdp_power: float = 1.0
    stdp_rivals: bool = True
    stdp_reward: Literal["none", "label"] = "none"
    pc_beta: float = 1.0
    pc_steps: int = 20
    pc_gamma: float = 0.1
    pc_fixed_prediction: bool = False


@dataclass(frozen=True)
class Draw:
    """Reproducible source of the random state of one layer: keyed by (seed, layer name, purpose).

    Args:
        seed: of the whole network's rules.
        layer: name of the layer.
        options: the rules' switches.
        classes: number of logits, for rules that project the output error.
    """

    seed: int
    layer: str
    options: RuleOptions
    classes: int = 0

    def uniform(self, shape: Sequence[int], bound: float, purpose: str) -> Tensor:
        """Draw float32 from U(±bound); always on the CPU, so that every device sees the same numbers."""
        generator = torch_generator(self.seed, self.layer, purpose)
        return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)

    def like_weight(self, layer: Layer, purpose: str) -> Tensor:
        """Draw a tensor of the shape of the layer's weight from the weight's initial law."""
        return self.uniform(layer.weight.shape, init_bound(layer, self.options), purpose).to(layer.weight)


def fans(layer: Layer, options: RuleOptions) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a layer."""
    weight = layer.weight
    window = weight[0, 0].numel() if weight.ndim > 2 else 1
    groups = layer.groups if isinstance(layer, nn.Conv2d) and options.fan == "grouped" else 1
    return weight.shape[1] * window, weight.shape[0] // groups * window


def init_bound(layer: Layer, options: RuleOptions) -> float:
    """Return the half-width of the uniform law of the layer's initial weights."""
    fan_in, fan_out = fans(layer, options)
    return math.sqrt(6 / (fan_in + fan_out)) if options.init == "xavier" else 1 / math.sqrt(fan_in)


class OutputError:
    """e = ∂L/∂logits of one backward pass, seen before any layer's own backward runs.

    Attributes:
        value: [N, K], or None until the backward pass reaches the logits.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def watch(self, module: nn.Module, args: object, logits: Tensor) -> Tensor:
        """Forward hook of the network: let the logits' gradient be recorded on its way down."""
        del module, args
        if logits.requires_grad:
            logits.register_hook(self._record)  # type: ignore[no-untyped-call]
        return logits

    def _record(self, gradient: Tensor) -> None:
        self.value = gradient


class Rule(nn.Module, ABC):
    """How one layer learns. Holds buffers only, never parameters, and never the layer itself.

    A concrete rule is registered under its name and takes (layer, draw).
    """

    #: True if the rule changes the layer's weight itself: the optimiser must leave that weight alone.
    local: ClassVar[bool] = False

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


RULES: Registry[type[Rule]] = Registry("rule", "robustbench_bio.rules")


class InputGradient(NamedTuple):
    """Gradient of the summed loss at the input, and the logits of the same forward pass."""

    gradient: Tensor
    logits: Tensor


class RuleSet(nn.Module, ABC):
    """The learning rules of one network; `model.rules` remembers it, plain forward passes ignore it.

    Args:
        assignment: layer name → rule name, for the layers that are not plain bp.
    """

    def __init__(self, assignment: Mapping[str, str], options: RuleOptions) -> None:
        super().__init__()
        self.assignment = dict(assignment)
        self.options = options

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


@contextlib.contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put the models into eval mode for the duration of the block; each of their modules gets its mode back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _restore_forward(layer: Layer, own: object | None) -> None:
    """Give back the `forward` that the instance had of its own, such as an outer block's, or none."""
    if own is None:
        layer.__dict__.pop("forward", None)
    else:
        layer.__dict__["forward"] = own


class LayerRules(RuleSet):
    """One rule per layer, each within backpropagation's order of things.

    Args:
        model: the network, for the shapes of its layers.
        assignment: layer name → rule name, as `attach` has checked it.
        options: switches for all rules.
        seed: of every feedback matrix.
        classes: number of logits.
    """

    def __init__(
        self, model: nn.Module, assignment: Mapping[str, str], options: RuleOptions, seed: int, classes: int
    ) -> None:
        super().__init__(assignment, options)
        self.by_layer = nn.ModuleDict()
        for name, rule in assignment.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101  (`attach` checked the user's names)
            self.by_layer[name.replace(".", "/")] = RULES.get(rule)(layer, Draw(seed, name, options, classes))

    def pairs(self, model: nn.Module) -> Iterator[tuple[Layer, Rule]]:
        """Yield each ruled layer of `model` with its rule."""
        for key, rule in self.by_layer.items():
            yield model.get_submodule(key.replace("/", ".")), rule  # type: ignore[misc]

    @contextlib.contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Give the layers of `model` their rules' backward passes for the duration of the block; blocks may nest."""
        error = OutputError()
        with contextlib.ExitStack() as undo:
            undo.callback(model.register_forward_hook(error.watch).remove)
            for layer, rule in self.pairs(model):
                undo.callback(setattr, rule, "error", rule.error)
                undo.callback(_restore_forward, layer, layer.__dict__.get("forward"))
                rule.error = error
                # The instance's own `forward` hides the class's; deleting it restores the plain layer.
                layer.forward = functools.partial(rule, layer)  # type: ignore[method-assign]
            yield

    def backward(self, model: nn.Module, x: Tensor, loss: Loss) -> Tensor:
        with self.attached(model):
            logits: Tensor = model(x)
            loss(logits).mean().backward()  # type: ignore[no-untyped-call]
        return logits.detach()

    def input_gradient(self, model: nn.Module, x: Tensor, loss: Loss) -> InputGradient:
        with self.attached(model), eval_mode(model), torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits: Tensor = model(x)
            (gradient,) = torch.autograd.grad(loss(logits).sum(), x)
        return InputGradient(gradient, logits.detach())

    def step(self, model: nn.Module) -> None:
        for layer, rule in self.pairs(model):
            rule.step(layer)

    def local_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return [p for layer, rule in self.pairs(model) if rule.local for p in layer.parameters(recurse=False)]
