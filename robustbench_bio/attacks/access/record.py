"""A forward pass written down operation by operation while it runs, from what two batches of different sizes do."""

import contextlib
import copy
import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten

#: Rows of the batches that are recorded: neither is one, which broadcasts, nor a multiple of the other.
ROWS = (5, 8)

#: What hides a value from autograd, and what it does besides: nothing.
_CUTS = {
    _aten.detach.default: _aten.alias.default,
    _aten.detach_.default: _aten.alias.default,
    _aten.detach_copy.default: _aten.clone.default,
}


def _heaviside(u: Tensor, at_zero: Tensor) -> Tensor:
    # From here nothing is taken apart any more: `to` would be recorded as it is, and not be known for a cast.
    return torch.where(u == 0, at_zero, _aten._to_copy.default(u > 0, dtype=u.dtype))


#: Operations without a derivative in some version of torch, as others that have one.
_SPELT_OUT: dict[Any, Any] = {
    _aten.heaviside.default: _heaviside,
    _aten.floor_divide.default: lambda a, b: _aten.div.Tensor_mode(a, b, rounding_mode="floor"),
}

#: Recurrent layers in one operation, which takes no other precision or has a slope in training only.
_FUSED = {_aten.mkldnn_rnn_layer.default, _aten._cudnn_rnn.default}

#: Libraries whose operations have derivatives that torch answers for; another one's may be anything.
_HONEST = {"aten", "prims", "torchvision"}

#: Ways out of torch, where a value could not be followed.
_EXITS = {"numpy", "tolist", "__array__", "__dlpack__", "storage"}


class Untraceable(Exception):
    """The forward pass cannot be recorded; the message tells why."""


def record(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """Return what `model` does to inputs like x [n, C, H, W], as a graph of ATen operations for any batch size.

    Real tensors pass through the network, so that its hooks and whatever it keeps see nothing unusual. Afterwards its
    attributes and buffers are what they were. Constants of the graph are the network's own tensors.

    A number that differs between the two batches follows the batch size; anything else that does was read from values.

    Raises:
        Untraceable: control flow depends on values, or an operation brings a derivative of its own.
    """
    first, second = (_recorded(model, x, n) for n in ROWS)
    return _joined(first, second)


class _Record(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations of one pass.

    Attributes:
        constants: tensors that no recorded operation made, by name.
        fused: whether one of `_FUSED` was among them.
        refused: why the pass cannot be recorded; "" where it can. Raising is not enough: a network may catch it.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.refused = ""
        self.fused = False
        self._nodes: dict[object, fx.Node] = {}
        self._alive: list[Tensor] = []  # else another tensor could be laid where one was
        self._moving: set[int] = set()  # storages with what depends on the input or on chance
        self._know(x, self.graph.placeholder("x"), moving=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare the import of torch's compiler, seconds, which newer versions ask for only to leave this class out."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SPELT_OUT:
            with self:
                return _SPELT_OUT[func](*args, **kwargs)
        moving = any(map(self.moves, _tensors((args, kwargs)))) or torch.Tag.nondeterministic_seeded in func.tags
        self._admit(func, args, moving=moving)
        written = _written(func, args, kwargs)
        inputs, options = map_aggregate((args, kwargs), self._node)
        for tensor in written:
            self._keep(tensor)
        outputs = func(*args, **kwargs)
        if written or next(_tensors(outputs), None) is not None:
            self.fused |= func in _FUSED
            node = self.graph.call_function(_CUTS.get(func, func), inputs, options)
            self._answer(outputs, node, moving=moving)
            for tensor in written if moving else ():
                self._moving.add(_storage(tensor))
        return outputs

    def output(self, logits: object) -> None:
        """End the record with what the network answered."""
        if not isinstance(logits, Tensor):
            raise Untraceable(f"the network answers with a {type(logits).__name__}, not with one tensor")
        self.graph.output(self._node(logits))

    def moves(self, tensor: Tensor) -> bool:
        """Tell whether a tensor depends on the input or on chance."""
        return _storage(tensor) in self._moving

    def refuse(self, reason: str) -> None:
        self.refused = self.refused or reason
        raise Untraceable(self.refused)

    def _admit(self, func: Any, args: tuple[Any, ...], *, moving: bool) -> None:
        if func.namespace not in _HONEST:
            self.refuse(f"{func} is no operation of torch, and may have any derivative")
        if not moving:
            return
        if torch.Tag.data_dependent_output in func.tags:
            self.refuse("the forward pass reads a number from values, and may branch on it")
        masks = any(t.dtype in {torch.bool, torch.uint8} for t in _tensors(args[1:]))
        if torch.Tag.dynamic_output_shape in func.tags and (masks or func != _aten.index.Tensor):
            self.refuse("the size of a tensor depends on values")

    def _answer(self, value: object, node: fx.Node, *, moving: bool) -> None:
        if isinstance(value, Tensor):
            self._know(value, node, moving=moving)
        elif isinstance(value, list | tuple):
            for i, part in enumerate(value):
                self._answer(part, self.graph.call_function(operator.getitem, (node, i)), moving=moving)

    def _know(self, tensor: Tensor, node: fx.Node, *, moving: bool) -> None:
        node.meta["shape"], node.meta["dtype"] = tensor.shape, tensor.dtype
        self._alive.append(tensor)
        self._nodes[_place(tensor)] = node
        if moving:
            self._moving.add(_storage(tensor))

    def _node(self, value: Any) -> Any:
        """Return what stands for a value in the graph: itself, unless it is a tensor."""
        if isinstance(value, torch.Generator):
            self.refuse("random numbers come from a generator of the network's own")
        if not isinstance(value, Tensor):
            return value
        place = _place(value)
        if place not in self._nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = value
            self._know(value, self.graph.get_attr(name), moving=False)
        return self._nodes[place]

    def _keep(self, tensor: Tensor) -> None:
        """Remember what is in a constant before it is written to."""
        node = self._nodes[_place(tensor)]
        if node.op == "get_attr":
            self.before.setdefault(str(node.target), tensor.clone())


class _Exits(TorchFunctionMode):
    """Sees values leave torch, which no operation tells."""

    def __init__(self, seen: _Record) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, options = getattr(func, "__name__", ""), kwargs or {}
        if name in _EXITS and isinstance(args[0], Tensor) and self.seen.moves(args[0]):
            self.seen.refuse(f"values leave torch by {name}")
        if name == "one_hot" and "num_classes" not in options and len(args) == 2:
            options, args = {"num_classes": args[1]}, args[:1]
        if name == "one_hot" and options.get("num_classes", -1) > 0:
            # Torch looks at the values first, only to check them.
            return (args[0].unsqueeze(-1) == torch.arange(options["num_classes"], device=args[0].device)).long()
        return func(*args, **options)


def _recorded(model: nn.Module, x: Tensor, rows: int, *, libraries: bool = True) -> _Record:
    """Record one pass of `rows` random images, without oneDNN and cuDNN if they fuse what has to be seen into."""
    batch = torch.rand((rows, *x.shape[1:])).to(x)
    kept = _Record(batch)
    try:
        with _as_before(model), torch.no_grad(), _plain_kernels(libraries), _not_compiled(), _Exits(kept), kept:
            logits = model(batch)
        kept.output(logits)
    except Untraceable:
        raise
    except Exception as error:  # noqa: BLE001  (whatever the user's code raises inside a trace)
        raise Untraceable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None
    finally:
        with torch.no_grad():
            for name, value in kept.before.items():
                kept.constants[name].copy_(value)
    if kept.refused:
        raise Untraceable(kept.refused)
    return _recorded(model, x, rows, libraries=False) if kept.fused and libraries else kept


@contextlib.contextmanager
def _plain_kernels(libraries: bool) -> Iterator[None]:
    """Let attention, and without libraries recurrent layers too, run as what they consist of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # Its context manager would name a precision too, and warn of it.
    onednn, *_ = torch.backends.mkldnn.set_flags(None if libraries else False, None, None, None)  # type: ignore[no-untyped-call]
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            torch.backends.cudnn.flags(enabled=libraries and torch.backends.cudnn.enabled),
        ):
            yield
    finally:
        torch.backends.mkldnn.set_flags(onednn, None, None, None)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Give every module the attributes back that it had, and lists and dicts among them their content."""
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    # In place: the handle of a hook removes it from the very dict that it was put into.
    inner = [(v, copy.copy(v)) for _, kept in attributes for v in kept.values() if isinstance(v, dict | list | set)]
    try:
        yield
    finally:
        for container, kept in [*attributes, *inner]:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(kept)


@contextlib.contextmanager
def _not_compiled() -> Iterator[None]:
    """Let compiled modules run as they are written: what the compiler makes of them cannot be seen into."""
    if "torch._dynamo" not in sys.modules:  # then nothing was compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _joined(first: _Record, second: _Record) -> fx.GraphModule:
    """Return the first record as a graph whose sizes follow its input, as the second one shows."""
    nodes, others = list(first.graph.nodes), list(second.graph.nodes)
    same = [(node.op, node.target) for node in nodes] == [(node.op, node.target) for node in others]
    if not same or not all(map(_equal, first.constants.values(), second.constants.values())):
        raise Untraceable("the forward pass takes another way, or other constants, for another batch")
    twins = dict(zip(nodes, others, strict=True))
    follow = _Follow(first.graph, twins)
    for node, twin in twins.items():
        node.args, node.kwargs = follow((node.args, node.kwargs), (twin.args, twin.kwargs))
        if "shape" in node.meta:
            pairs = zip(node.meta["shape"], twin.meta["shape"], strict=True)
            node.meta["shape"] = tuple(a if a == b else None for a, b in pairs)
    root = nn.Module()
    for name, value in first.constants.items():
        root.register_buffer(name, value.detach(), persistent=False)
    return fx.GraphModule(root, first.graph)


class _Follow:
    """Replaces numbers that grow with the batch by arithmetic on the size of the input."""

    def __init__(self, graph: fx.Graph, twins: dict[fx.Node, fx.Node]) -> None:
        self.graph, self.twins = graph, twins
        self.x = next(iter(twins))
        self.sizes: dict[tuple[int, int], fx.Node] = {}

    def __call__(self, a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node):
            if self.twins[a] is b:
                return a
        elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            return type(a)(self(*pair) for pair in zip(a, b, strict=True))
        elif isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: self(a[key], b[key]) for key in a}
        elif type(a) is type(b) and (a == b or (a != a and b != b)):  # noqa: PLR0124  (two NaNs)
            return a
        elif type(a) is int and type(b) is int:
            return self._size(a, b)
        raise Untraceable("the forward pass does another thing with another batch")

    def _size(self, a: int, b: int) -> fx.Node:
        per_row, rest = divmod(b - a, ROWS[1] - ROWS[0])
        if rest:
            raise Untraceable("the forward pass uses a number that depends on values, or on the batch in an odd way")
        fixed = a - per_row * ROWS[0]
        if (per_row, fixed) not in self.sizes:
            previous = next(reversed(self.sizes.values()), self.x)
            with self.graph.inserting_after(previous):
                size = self.graph.call_function(sized, (self.x, per_row, fixed))
            self.sizes[per_row, fixed] = size
        return self.sizes[per_row, fixed]


def sized(x: Tensor, per_row: int, fixed: int) -> int:
    """Return a number that grows with the rows of x."""
    return per_row * len(x) + fixed


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among the arguments that an operation changes."""
    declared = func._schema.arguments
    named = dict(zip((argument.name for argument in declared), args, strict=False)) | kwargs
    return [t for a in declared if a.is_write for t in _tensors(named.get(a.name))]


def _place(tensor: Tensor) -> object:
    """Return what two tensors share that are the same: where they lie and how they are laid out there."""
    marks = tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, marks


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _equal(a: Tensor, b: Tensor) -> bool:
    if _place(a) == _place(b):
        return True
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
