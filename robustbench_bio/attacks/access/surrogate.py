"""Traced forward passes as attacks differentiate them: through surrogates, and up to a final softmax."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustbench_bio.attacks.access.record import Untraceable
from robustbench_bio.attacks.access.stand_ins import StandIns
from robustbench_bio.attacks.access.trace import trace
from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.surrogates import surrogate
from robustbench_bio.records.gradient import Gradient

_aten = torch.ops.aten

#: What may lie behind a final softmax and changes no order of the classes, if its number is positive or added.
_SCALING = {_aten.mul.Tensor, _aten.div.Tensor}
_SHIFTING = {_aten.add.Tensor, _aten.sub.Tensor}
_RISING = {_aten.log.default, _aten.clamp_min.default}


def with_surrogate(graph: fx.GraphModule, name: str) -> fx.GraphModule:
    """Return a copy of a traced forward pass with equal outputs, whose steps hand down a surrogate's gradient.

    A step is a comparison whose answer becomes a number, a sign, or a Heaviside function: it gets the surrogate's
    derivative at its distance from the threshold. Stairs (rounding, casts to whole numbers, buckets) get the slope that
    they have on average whatever the surrogate. The choice of the largest (argmax, topk) gets that of a softmax at the
    temperature of the scores' spread, a clamp the surrogate's tails outside of its interval. Selections such as
    maximum, ReLU and `where` keep their exact gradient.

    Raises:
        UserError: no such surrogate, or a forward pass without anything to stand in for.
    """
    surrogate(name)
    module = copy.deepcopy(graph)
    made = StandIns(module.graph, name)
    if not made.steps + made.saturations:
        raise UserError(f"expected a network with thresholds or roundings for surrogate:{name}, got none: use exact")
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def has_steps(graph: fx.GraphModule) -> bool:
    """Tell whether a traced forward pass holds a step, stair or choice that `with_surrogate` would replace."""
    return StandIns(copy.deepcopy(graph.graph), "arctan").steps > 0


def stepped(model: nn.Module, x: Tensor) -> bool:
    """Tell whether a network holds steps or stairs, by its trace at x [n, C, H, W]; no if it cannot be traced."""
    try:
        return has_steps(trace(model, x))
    except Untraceable:
        return False


def without_final_softmax(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a traced forward pass up to its final softmax, itself if it has none.

    A softmax, and what may scale, shift or take the logarithm of it, changes no order of the classes, but where it
    saturates its gradient is zero in float32. The network is fooled at the same points, and losses on logits work.
    """
    (output,) = graph.graph.find_nodes(op="output")
    node: Any = output.args[0]
    while isinstance(node, fx.Node) and _keeps_order(node):
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.target != _aten._softmax.default or node.args[1] not in (1, -1):
        return graph
    module = copy.deepcopy(graph)
    (softmax,) = (one for one in module.graph.nodes if one.name == node.name)
    (output,) = module.graph.find_nodes(op="output")
    output.args = (softmax.args[0],)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _keeps_order(node: Any) -> bool:
    number = node.args[1] if len(node.args) > 1 else None
    if node.target in _RISING:
        return True
    if not isinstance(number, int | float) or node.kwargs:
        return False
    return node.target in _SHIFTING or (node.target in _SCALING and number > 0)


#: Gradients that stand in for the exact one of a spiking network, robust being what withstands all of them: the one
#: that it usually learns by, and one that is nowhere flat.
ATTACKED_BY = (Gradient("surrogate", "triangle"), Gradient("surrogate", "arctan"))
