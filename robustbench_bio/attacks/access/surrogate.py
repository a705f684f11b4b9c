"""Traced forward passes whose thresholds and roundings hand down a surrogate's gradient."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustbench_bio.attacks.access.trace import Untraceable, trace
from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.surrogates import surrogate
from robustbench_bio.records.gradient import EXACT, Gradient

_aten = torch.ops.aten

#: Comparisons, and whether their answer rises or falls with their first argument.
_COMPARISONS = dict.fromkeys((_aten.gt.Scalar, _aten.gt.Tensor, _aten.ge.Scalar, _aten.ge.Tensor), 1) | dict.fromkeys(
    (_aten.lt.Scalar, _aten.lt.Tensor, _aten.le.Scalar, _aten.le.Tensor), -1
)
#: Signs and their like, and the height of their step.
_SIGNS = {_aten.sign.default: 2.0, _aten.heaviside.default: 1.0}
_STAIRS = {_aten.round.default, _aten.floor.default, _aten.ceil.default, _aten.trunc.default}

#: What turns the yes or no of a comparison into numbers.
_CASTS = {_aten._to_copy.default, torch.ops.prims.convert_element_type.default}


def with_surrogate(graph: fx.GraphModule, name: str) -> fx.GraphModule:
    """Return a copy of a traced forward pass with equal outputs, whose steps hand down a surrogate's gradient.

    A step is a comparison whose answer is turned into a number or multiplied, a sign, or a Heaviside function: it
    gets the surrogate's derivative at its distance from the threshold. Stairs (round, floor, ceil, trunc) get a
    derivative of one whatever the surrogate, the slope that they have on average. Selections such as maximum, ReLU
    and `where` keep their exact gradient.

    Raises:
        UserError: no such surrogate, or a forward pass without steps.
    """
    derivative = surrogate(name)
    module = copy.deepcopy(graph)
    replaced = [_with_surrogate(module, node, derivative) for node in list(module.graph.nodes)]
    if not any(replaced):
        raise UserError(f"expected a network with thresholds or roundings for surrogate:{name}, got none: use exact")
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def has_steps(graph: fx.GraphModule) -> bool:
    """Tell whether a traced forward pass holds a step or a stair that `with_surrogate` would replace."""
    return any(
        node.target in _SIGNS
        or node.target in _STAIRS
        or (node.target in _COMPARISONS and any(_numeric(use) for use in node.users))
        for node in graph.graph.nodes
    )


def stepped(model: nn.Module, x: Tensor) -> bool:
    """Tell whether a network holds steps or stairs, by its trace at x [n, C, H, W]; no if it cannot be traced."""
    try:
        return has_steps(trace(model, x))
    except Untraceable:
        return False


def followed(model: nn.Module, x: Tensor) -> tuple[Gradient, ...]:
    """Return the gradients that an attack has to follow: exact, or every one of `ATTACKED_BY` where there are steps."""
    return ATTACKED_BY if stepped(model, x) else (EXACT,)


def _with_surrogate(module: fx.GraphModule, node: fx.Node, derivative: Callable[[Tensor], Tensor]) -> bool:
    """Give one node its surrogate gradient; tell whether it was a step."""
    if node.target in _STAIRS:
        _replace(module, node, lambda u, hard: _Step.apply(u, hard.detach(), torch.ones_like))
        return True
    if node.target in _SIGNS:
        height = _SIGNS[node.target]
        _replace(module, node, lambda u, hard: _Step.apply(u, hard.detach(), lambda v: height * derivative(v)))
        return True
    if node.target not in _COMPARISONS:
        return False
    side = _COMPARISONS[node.target]

    def step(u: Tensor, threshold: Any, hard: Tensor) -> Any:
        # Only u - threshold decides the answer, so that a threshold that is learnt or adapts has a slope as well.
        away = u - threshold
        return _Step.apply(away, hard.to(away), lambda v: side * derivative(v))

    # Where the answer only selects, as in `where`, the exact gradient is right as it is, and is left alone.
    uses = [use for use in node.users if _numeric(use)]
    if not uses:
        return False
    with module.graph.inserting_after(node):
        replacement = module.graph.call_function(step, (*node.args[:2], node))
    for use in uses:
        if use.target in _CASTS:
            use.replace_input_with(node, replacement)
        else:
            use.args = tuple(replacement if argument is node else argument for argument in use.args)
    return True


def _numeric(use: fx.Node) -> bool:
    """Tell whether a use of a comparison takes its answer for a number."""
    if use.target in _CASTS:
        kinds = [a for a in (*use.args, *use.kwargs.values()) if isinstance(a, torch.dtype)]
        return any(kind.is_floating_point for kind in kinds)
    return bool(use.target == _aten.mul.Tensor)


def _replace(module: fx.GraphModule, node: fx.Node, surrogate_step: Callable[[Tensor, Tensor], Any]) -> None:
    """Let every user of `node` see surrogate_step(its first argument, its own value) instead."""
    users = list(node.users)
    with module.graph.inserting_after(node):
        new = module.graph.call_function(surrogate_step, (node.args[0], node))
    for use in users:
        use.replace_input_with(node, new)


class _Step(torch.autograd.Function):
    """Passes `hard` on, and hands down the gradient times derivative(u)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, hard: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.derivative = derivative
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None]:
        (u,) = ctx.saved_tensors
        slope: Tensor = ctx.derivative(u)
        return g * slope, None, None


#: Gradients that stand in for the exact one of a spiking network, robust being what withstands all of them: the one
#: that it usually learns by, and one that is nowhere flat.
ATTACKED_BY = (Gradient("surrogate", "triangle"), Gradient("surrogate", "arctan"))
