"""What stands in where a traced forward pass has no slope, so that a gradient gets through.

Whole numbers and truth values carry no gradient. Each of their nodes that depends on the input gets a twin: a float of
the same value with a gradient. Where such numbers become floats again, the twin takes their place.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from robustbench_bio.attacks.access.record import sized
from robustbench_bio.nets.surrogates import surrogate

_aten = torch.ops.aten

#: Comparisons, and whether their answer rises or falls with their first argument.
_COMPARISONS = dict.fromkeys((_aten.gt.Scalar, _aten.gt.Tensor, _aten.ge.Scalar, _aten.ge.Tensor), 1) | dict.fromkeys(
    (_aten.lt.Scalar, _aten.lt.Tensor, _aten.le.Scalar, _aten.le.Tensor), -1
)
#: Are two numbers equal, as in `z == z.amax(1)`? A step at a distance of zero, up or down.
_EQUALITIES = {_aten.eq.Scalar: 1, _aten.eq.Tensor: 1, _aten.ne.Scalar: -1, _aten.ne.Tensor: -1}

#: Signs, and the height of their step.
_SIGNS = {_aten.sign.default: 2.0}
_STAIRS = {_aten.round.default, _aten.round.decimals, _aten.floor.default, _aten.ceil.default, _aten.trunc.default}

#: What turns truth values and whole numbers into floats, and back.
_CASTS = {_aten._to_copy.default, torch.ops.prims.convert_element_type.default}

#: Places among sorted edges: the operation → which argument holds the values, and which the edges.
_BUCKETS = {_aten.bucketize.Tensor: (0, 1), _aten.searchsorted.Tensor: (1, 0)}

#: Operations on whole numbers or truth values, and what they do to floats that need not be either.
_SMOOTH: dict[Any, Callable[..., Any]] = {
    _aten.div.Tensor_mode: lambda a, b, **_: a / b,
    _aten.__rshift__.Scalar: lambda a, bits: a / 2**bits,
    _aten.__lshift__.Scalar: lambda a, bits: a * 2**bits,
    _aten.bitwise_and.Scalar: lambda a, _: a,
    _aten.bitwise_not.default: lambda a: 1 - a,
    _aten.logical_not.default: lambda a: 1 - a,
    **dict.fromkeys((_aten.logical_and.default, _aten.bitwise_and.Tensor), lambda a, b: a * b),
    **dict.fromkeys((_aten.logical_or.default, _aten.bitwise_or.Tensor), lambda a, b: a + b - a * b),
}
#: Operations that take floats as well.
_PLAIN = frozenset([
    "reshape", "view", "_unsafe_view", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "clone", "slice",
    "select", "cat", "stack", "alias", "add", "sub", "rsub", "mul", "neg", "div", "clamp", "sum", "mean", "amax",
    "amin", "maximum", "minimum",
])  # fmt: skip
#: Choices of the largest, and which of their results is the index.
_CHOICES = {_aten.argmax.default: None, _aten.max.dim: 1, _aten.topk.default: 1}
_MOVED = frozenset({"reshape", "view", "unsqueeze", "squeeze", "_to_copy", "clone"})
_LOOKUPS = {_aten.index.Tensor, _aten.embedding.default}
_SATURATING = {_aten.clamp.default, _aten.hardtanh.default}


class StandIns:
    """Rewrites a graph in place, once: its outputs stay equal, its steps get a gradient.

    Args:
        graph: of a traced forward pass.
        name: of the surrogate, whose derivative a step gets.

    Attributes:
        steps: operations without a slope that got one, and on which a float depends.
        saturations: clamps to an interval that got a slope outside of it.
    """

    def __init__(self, graph: fx.Graph, name: str) -> None:
        self.steps = self.saturations = 0
        self._graph, self._surrogate = graph, name
        self._twins: dict[Any, fx.Node] = {}
        self._choices: dict[Any, tuple[Any, int, int]] = {}  # index → scores, their dimension, how many
        self._live: set[Any] = set()
        self._added: set[fx.Node] = set()
        for node in list(graph.nodes):
            if node.op == "placeholder":
                self._live.add(node)
            elif node.op == "call_function" and node.target is not sized and self._live & set(node.all_input_nodes):
                self._live.add(node)
                self._cursor = node
                self._visit(node)

    def _visit(self, node: Any) -> None:
        """Give a node that depends on the input its stand-in, where it needs one."""
        target, args = node.target, node.args
        if target in _STAIRS and _is_float(node):
            self._replace(node, self._call(hold, args[0], node))
        elif target in _SIGNS:
            self._replace(node, self._call(_sign, args[0], node, _SIGNS[target], self._surrogate))
        elif target in _SATURATING and _is_float(node):
            self._saturate(node)
        elif target in _CHOICES or target is operator.getitem:
            self._choose(node)
        elif target in _BUCKETS:
            values, edges = (args[place] for place in _BUCKETS[target])
            self._twins[node] = self._call(_bucket, values, edges, node)
        elif target in _CASTS and not _is_float(node) and _is_float(args[0]):
            self._twins[node] = self._call(hold, args[0], node)
        else:
            self._visit_whole(node)

    def _visit_whole(self, node: Any) -> None:
        """Give a node its stand-in that works with truth values or whole numbers."""
        target, args = node.target, node.args
        if any(one in self._choices for one in node.all_input_nodes):
            self._weigh(node, next(one for one in node.all_input_nodes if one in self._choices))
        elif target in _COMPARISONS or target in _EQUALITIES:
            self._compare(node)
        elif target == _aten.where.self and args[0] in self._twins and not self._live & set(args[1:]):
            self._replace(node, self._call(_where, self._twins[args[0]], *args[1:], node))
        elif target in _LOOKUPS and _only_index(node) in self._twins and args[0] not in self._live:
            index = _only_index(node)
            self._replace(node, self._call(_read, args[0], index, self._twins[index], node))
        else:
            self._carry(node)

    def _saturate(self, node: Any) -> None:
        x, *interval = node.args
        low, high = interval or (-1, 1)  # those of hardtanh
        if len(interval) != 1 and isinstance(low, int | float) and isinstance(high, int | float) and low < high:
            self._replace(node, self._call(_saturate, x, low, high, node, self._surrogate), steps=0)
            self.saturations += 1

    def _compare(self, node: Any) -> None:
        sides = [self._twins.get(one, one) for one in node.args[:2]]
        # Whole numbers of which no gradient is known, such as places.
        if any(one in self._live and not _is_float(one) for one in sides):
            return
        step, heights = (_equal, _EQUALITIES) if node.target in _EQUALITIES else (_step, _COMPARISONS)
        self._twins[node] = self._call(step, *sides, node, heights[node.target], self._surrogate)

    def _carry(self, node: Any) -> None:
        """Hand the twins of a node's arguments on: to the node where it is a float, to a twin of its own elsewhere."""
        smooth = _SMOOTH.get(node.target) if node.kwargs.get("rounding_mode", "") is not None else None
        twinned = [one for one in node.all_input_nodes if one in self._twins]
        args = fx.map_arg(node.args, lambda one: self._twins.get(one, one))
        plain = _name(node) in _PLAIN or node.target in _CASTS
        if _is_float(node) and smooth is not None:
            self._replace(node, self._call(hold, self._call(smooth, *args), node))
        elif _is_float(node) and twinned and plain:
            node.args = args
            self.steps += 1
        elif not _is_float(node) and twinned and node.target in _CASTS:
            self._twins[node] = self._call(hold, args[0], node)
        elif not _is_float(node) and twinned and (smooth or plain):
            kwargs = {} if smooth else {name: value for name, value in node.kwargs.items() if name != "dtype"}
            self._twins[node] = self._call(hold, self._call(smooth or node.target, *args, **kwargs), node)

    def _choose(self, node: Any) -> None:
        """Remember what an index chooses from."""
        source, place = node.args[:2] if node.target is operator.getitem else (node, None)
        if _CHOICES.get(source.target, -1) != place:
            return
        scores, *rest = source.args
        top = source.target == _aten.topk.default
        k = rest.pop(0) if top else 1
        dim = rest[0] if rest else -1 if top else None
        smallest = top and rest[1:2] == [False]
        if dim is not None and not smallest:
            self._choices[node] = (self._twins.get(scores, scores), dim, k)

    def _weigh(self, node: Any, index: Any) -> None:
        """Replace what an index of the largest selects by what a softmax weighs."""
        scores, dim, k = self._choices[index]
        if _name(node) in _MOVED and not _is_float(node):
            self._choices[node] = self._choices[index]
        elif node.target == _aten.eq.Tensor and k == 1:
            self._twins[node] = self._call(_chosen, scores, dim, k, 1.0, node)
        elif node.target == _aten.scatter.value and node.args[0] not in self._live:
            self._replace(node, self._call(_chosen, scores, dim, k, node.args[3], node))
        elif node.target in _LOOKUPS and k == 1 and node.args[0] not in self._live and _only_index(node) is index:
            self._replace(node, self._call(_weighted, node.args[0], scores, dim, node))

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call behind the node that is visited and what was added for it."""
        with self._graph.inserting_after(self._cursor):
            node = self._graph.call_function(function, args, kwargs)
        self._cursor = node
        self._added.add(node)
        self._live.add(node)
        return node

    def _replace(self, node: Any, new: Any, steps: int = 1) -> None:
        """Let every user of `node` see `new` instead, but for what stands in for it."""
        for use in list(node.users):
            if use not in self._added:
                use.replace_input_with(node, new)
        self.steps += steps


def _name(node: Any) -> str:
    return str(getattr(node.target, "_opname", ""))


def _is_float(node: Any) -> bool:
    return bool(node.meta.get("dtype", torch.float32).is_floating_point)


def _only_index(node: Any) -> Any:
    index = node.args[1]
    return (index[0] if len(index) == 1 else None) if isinstance(index, list | tuple) else index


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


def _apply(u: Tensor, hard: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
    value: Tensor = _Step.apply(u, hard.detach().to(u), derivative)
    return value


def hold(soft: Tensor, hard: Tensor) -> Tensor:
    """Return the value of `hard` with the gradient of `soft`: the slope that stairs have on average."""
    return _apply(soft, hard, torch.ones_like)


def _step(u: Tensor, threshold: Any, hard: Tensor, side: int, name: str) -> Tensor:
    # Only u - threshold decides the answer, so that a threshold that is learnt or adapts has a slope as well.
    derivative = surrogate(name)
    return _apply(u - threshold, hard, lambda v: side * derivative(v))


def _equal(u: Tensor, other: Any, hard: Tensor, side: int, name: str) -> Tensor:
    derivative = surrogate(name)
    return _apply(-(u - other).abs(), hard, lambda v: side * derivative(v))


def _sign(u: Tensor, hard: Tensor, height: float, name: str) -> Tensor:
    derivative = surrogate(name)
    return _apply(u, hard, lambda v: height * derivative(v))


def _saturate(u: Tensor, low: float, high: float, hard: Tensor, name: str) -> Tensor:
    derivative = surrogate(name)

    def slope(v: Tensor) -> Tensor:
        outside = ((low - v).clamp_min(0) + (v - high).clamp_min(0)) / (high - low)
        return derivative(outside) / derivative(torch.zeros_like(v))

    return _apply(u, hard, slope)


def _where(condition: Tensor, yes: Tensor, no: Tensor, hard: Tensor) -> Tensor:
    return hold(no + condition * (yes - no), hard)


def _bucket(u: Tensor, edges: Tensor, hard: Tensor) -> Tensor:
    return hold(u * (edges.numel() - 1) / (edges.max() - edges.min()).clamp_min(1e-12), hard)


def _read(table: Tensor, index: Tensor, place: Tensor, hard: Tensor) -> Tensor:
    """Return what a table holds at an index [...], its slope that between the rows before and behind."""
    before, behind = (index - 1).clamp_min(0), (index + 1).clamp_max(len(table) - 1)
    rise = (table[behind] - table[before]).reshape(*index.shape, -1) / (behind - before).clamp_min(1)[..., None]
    return hold((rise * place[..., None]).reshape(hard.shape), hard)


def _membership(scores: Tensor, dim: int, k: int) -> Tensor:
    """Return how much each score is among the k largest, in [0, 1], at a temperature fitted to the scores' spread."""
    # Of 0.1 to 4 times the spread, this fooled most networks that vote.
    temperature = 0.2 * scores.detach().std(dim, keepdim=True, correction=0) + 1e-12
    if k == 1:
        return torch.softmax(scores / temperature, dim)
    border = scores.detach().topk(min(k + 1, scores.shape[dim]), dim).values.narrow(dim, -2, 2).mean(dim, keepdim=True)
    return torch.sigmoid((scores - border) / temperature)


def _chosen(scores: Tensor, dim: int, k: int, value: float, hard: Tensor) -> Tensor:
    """Return the places of the k largest, as a one-hot of classes last or where the scores have them."""
    member = value * _membership(scores, dim, k)
    for soft in (member.movedim(dim, -1), member):
        if soft.shape == hard.shape:
            return hold(soft, hard)
    return hard.to(scores)


def _weighted(table: Tensor, scores: Tensor, dim: int, hard: Tensor) -> Tensor:
    """Return the table's row of the largest score, with the gradient of their weighted mean."""
    soft = _membership(scores, dim, 1).movedim(dim, -1) @ table.flatten(1).to(scores)
    return hold(soft.reshape(hard.shape), hard)
