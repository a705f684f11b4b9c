"""Rules of single layers at work together: one for each layer, within backpropagation's order of things."""

import contextlib
import functools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import eval_mode
from robustbench_bio.rules.base import RULES, Draw, InputGradient, Layer, Loss, OutputError, Rule, RuleSet
from robustbench_bio.rules.options import own_options


class LayerRules(RuleSet):
    """One rule per layer, each within backpropagation's order of things; `attach` has checked what it is given."""

    def __init__(
        self, model: nn.Module, assignment: Mapping[str, str], values: Mapping[str, object], seed: int, classes: int
    ) -> None:
        super().__init__(assignment, values)
        self.by_layer = nn.ModuleDict()
        for name, rule in assignment.items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101  (`attach` checked the user's names)
            kind = layer_rule(rule)
            draw = Draw(seed, name, own_options(kind.takes, values), classes)
            self.by_layer[name.replace(".", "/")] = kind(layer, draw)

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


def layer_rule(name: str) -> type[Rule]:
    """Return a rule of single layers, or raise `UserError`."""
    kind = RULES.get(name)
    if not issubclass(kind, Rule):
        raise UserError(f"expected a rule of single layers, got {name}, which rules whole networks: assign it to all")
    return kind


def _restore_forward(layer: Layer, own: object | None) -> None:
    """Give back the `forward` that the instance had of its own, such as an outer block's, or none."""
    if own is None:
        layer.__dict__.pop("forward", None)
    else:
        layer.__dict__["forward"] = own
