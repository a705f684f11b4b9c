"""The forward pass of any network as a graph of plain tensor operations, whatever its modules say of gradients.

A custom autograd function can hand down any gradient it likes: that is how learning rules work, and also how
a defence can hide. Its forward pass cannot hide: recorded operation by operation (ATen, with `record`) and
differentiated from there, it yields the true gradient of the function that the network computes.
"""

import operator
import weakref

import torch
from torch import Tensor, fx, nn

from robustbench_bio.attacks.access.mean_prediction import seeded_by_input
from robustbench_bio.attacks.access.record import Untraceable, record

_aten = torch.ops.aten

#: Operations that name strides outright, recorded for contiguous inputs.
_STRIDED = {_aten.as_strided.default, _aten.empty_strided.default, _aten.new_empty_strided.default}

#: Batch norm as it is recorded with symbols, without, and on a GPU; the last two say sixth whether it trains.
_NORMS = {
    _aten._native_batch_norm_legit_no_training.default,
    _aten.native_batch_norm.default,
    _aten.cudnn_batch_norm.default,
}

#: Marks a graph that takes its inputs as the network does.
_AS_RECORDED = "as recorded"

#: Largest difference of logits, relative to their spread, between a network and its trace.
TOLERANCE = 1e-3


def trace(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """Return the forward pass of `model` as a graph that takes any batch size.

    Batch norms in eval mode are folded into the convolution before them, or become one multiply-add. The graph
    shares no tensor that it changes with the model, and is cached with it.

    Args:
        model: in eval mode.
        x: [n, C, H, W], a few real inputs; the graph must give the model's logits on them.

    Raises:
        Untraceable: control flow depends on the data, the graph gives other logits than the model, or an operation
            has no derivative.
    """
    state, cached = _cache.get(model, (None, None))
    if cached is not None and state == _state(model, x) and _agrees(model, cached, x):
        return cached
    # Rounding inside a network may turn the last bits of a folded norm into another answer.
    for simplify in (_simplify, _copy_constants):
        with seeded_by_input("trace", x=x):
            graph = record(_alone(model), x)
        simplify(graph)
        if _agrees(model, graph, x):
            _differentiate(graph, x)
            _cache[model] = (_state(model, x), graph)
            return graph
    raise Untraceable("the recorded forward pass gives other logits than the network, which may keep a state")


_cache: "weakref.WeakKeyDictionary[nn.Module, tuple[object, fx.GraphModule]]" = weakref.WeakKeyDictionary()


@torch.no_grad()
def _agrees(model: nn.Module, graph: fx.GraphModule, x: Tensor) -> bool:
    # A random network agrees with its trace if both make the same of the same draws.
    with seeded_by_input("trace", x=x):
        expected = model(x)
    try:
        with seeded_by_input("trace", x=x):
            got = graph(laid_out(graph, x))
    except (RuntimeError, IndexError):  # a size that the graph holds as a number, and that another batch does not have
        return False
    if expected.shape != got.shape:
        return False
    return bool((expected - got).abs().max() <= TOLERANCE * (expected.std(correction=0) + 1e-6))


def _alone(model: nn.Module) -> nn.Module:
    """Return the module that runs on many devices, whose parts would answer out of sight."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def _differentiate(graph: fx.GraphModule, x: Tensor) -> None:
    point = laid_out(graph, x.detach().clone()).requires_grad_(True)
    try:
        with torch.enable_grad(), seeded_by_input("trace", x=x):
            logits = graph(point)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), point, allow_unused=True)
    except RuntimeError as error:
        raise Untraceable(str(error).splitlines()[0]) from None


def _state(model: nn.Module, x: Tensor) -> object:
    """Return what a trace depends on: where every tensor lies and how often it was written to."""
    tensors = [*model.parameters(), *model.buffers()]
    return x.shape[1:], x.dtype, x.device, [(t.data_ptr(), t._version) for t in tensors]


def _copy_constants(graph: fx.GraphModule) -> None:
    """Give the graph tensors of its own, and leave it as it was recorded otherwise."""
    for name, value in list(graph.named_buffers()):
        graph.register_buffer(name, value.clone(), persistent=False)
    graph.meta[_AS_RECORDED] = True


def _simplify(graph: fx.GraphModule) -> None:
    # Constants of the graph are the model's own parameters and buffers: copies, so that folding leaves those alone.
    for name, value in list(graph.named_buffers()):
        _set(graph, name, value)
    _free_of_layout(graph)
    _fold_norms(graph)
    _trim_kernels(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _free_of_layout(module: fx.GraphModule) -> None:
    """Let the graph take inputs in any order of memory: a view that would need one order becomes a reshape."""
    for node in module.graph.nodes:
        if node.target in {_aten.view.default, _aten._unsafe_view.default}:
            node.target = _aten.reshape.default
    module.recompile()


def laid_out(module: nn.Module, x: Tensor) -> Tensor:
    """Return x [n, C, H, W] in the order of memory that suits a module: channels last for a trace without strides."""
    if not isinstance(module, fx.GraphModule) or _AS_RECORDED in module.meta:
        return x.contiguous()
    strided = any(node.target in _STRIDED for node in module.graph.nodes)
    return x.contiguous() if strided else x.contiguous(memory_format=torch.channels_last)


def _set(graph: fx.GraphModule, name: str, value: Tensor) -> None:
    value = value.detach().clone()
    # Kernels in the order of the inputs (`laid_out`): otherwise every pass would turn one of them around.
    if value.ndim == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    if hasattr(graph, name):
        delattr(graph, name)
    graph.register_buffer(name, value, persistent=False)


def _fold_norms(module: fx.GraphModule) -> None:
    """Replace each batch norm by new weights of the convolution before it, or by x·scale + shift."""
    for i, node in enumerate(list(module.graph.nodes)):
        if node.target not in _NORMS or node.args[5] is True:
            continue
        x, weight, bias, mean, variance, *_, eps = node.args
        if any(n is not None and n.op != "get_attr" for n in (weight, bias, mean, variance)):
            continue
        # In float64, so that the folded weights are rounded once and stay as near to the network as float32 allows.
        scale = 1 / torch.sqrt(_value(module, variance).double() + eps)
        if weight is not None:
            scale = scale * _value(module, weight).double()
        shift = -_value(module, mean).double() * scale
        if bias is not None:
            shift = shift + _value(module, bias).double()
        (normed,) = (use for use in node.users if use.target is operator.getitem and use.args[1] == 0)
        folded = _into_convolution(module, x, node, scale, shift, i)
        normed.replace_all_uses_with(folded or _multiply_add(module, x, node, scale, shift, i))


def _into_convolution(
    module: fx.GraphModule, x: fx.Node, norm: fx.Node, scale: Tensor, shift: Tensor, i: int
) -> fx.Node | None:
    """Give the convolution `x` the weights that also do what `norm` does; None if somebody else sees its output."""
    if x.target != _aten.convolution.default or x.args[6]:
        return None  # a transposed one has its output channels on another axis
    if any(use is not norm for use in x.users):
        return None
    weight, bias = x.args[1], x.args[2]
    if any(isinstance(n, fx.Node) and n.op != "get_attr" for n in (weight, bias)):
        return None
    old = _value(module, weight)
    if bias is not None:
        shift = shift + _value(module, bias).double() * scale
    _set(module, f"folded_weight_{i}", (old.double() * scale.view(-1, *[1] * (old.ndim - 1))).to(old.dtype))
    _set(module, f"folded_bias_{i}", shift.to(old.dtype))
    with module.graph.inserting_before(x):
        new = module.graph.get_attr(f"folded_weight_{i}"), module.graph.get_attr(f"folded_bias_{i}")
    x.args = (x.args[0], *new, *x.args[3:])
    return x


def _trim_kernels(module: fx.GraphModule) -> None:
    """Leave out the border of kernels that sees nothing but padding, as wide ones do on small maps.

    The fourth of a network's time can go into a dilated 5×5 kernel on maps of 2×2, whose middle alone meets a pixel.
    """
    for i, node in enumerate(list(module.graph.nodes)):
        if node.target != _aten.convolution.default or node.args[6] or len(node.args[3]) != 2:
            continue
        x, weight, bias, stride, padding, dilation, *rest = node.args
        sides = x.meta["shape"][2:]
        if weight.op != "get_attr" or None in sides:
            continue
        kernel = _value(module, weight)
        parts = zip(sides, kernel.shape[2:], padding, dilation, strict=True)
        idle = [_idle(side, taps, pad, gap) for side, taps, pad, gap in parts]
        if not any(idle):
            continue
        rows, columns = (slice(n, taps - n) for n, taps in zip(idle, kernel.shape[2:], strict=True))
        _set(module, f"trimmed_weight_{i}", kernel[:, :, rows, columns])
        with module.graph.inserting_before(node):
            trimmed = module.graph.get_attr(f"trimmed_weight_{i}")
        smaller = [pad - n * gap for pad, n, gap in zip(padding, idle, dilation, strict=True)]
        node.args = (x, trimmed, bias, stride, smaller, dilation, *rest)


def _idle(side: int, taps: int, padding: int, dilation: int) -> int:
    """Return how many taps at each end of a kernel never meet one of `side` pixels, whatever the stride."""
    # The kernel's first tap reaches from -padding to where its last tap leaves the padding behind.
    last = side + 2 * padding - dilation * (taps - 1) - 1
    seen = [-padding + tap * dilation < side and last - padding + tap * dilation >= 0 for tap in range(taps)]
    return min(seen.index(True), seen[::-1].index(True), padding // dilation) if any(seen) else 0


def _multiply_add(module: fx.GraphModule, x: fx.Node, norm: fx.Node, scale: Tensor, shift: Tensor, i: int) -> fx.Node:
    dtype = _value(module, norm.args[3]).dtype
    ndim = len(x.meta["shape"])
    for name, value in (("scale", scale), ("shift", shift)):
        _set(module, f"{name}_{i}", value.view(1, -1, *[1] * (ndim - 2)).to(dtype))
    with module.graph.inserting_before(norm):
        a, b = module.graph.get_attr(f"scale_{i}"), module.graph.get_attr(f"shift_{i}")
        # One operation instead of two: small networks spend their time on calls, not on sums.
        scaled = module.graph.call_function(_aten.addcmul.default, (b, x, a))
    scaled.meta.update(x.meta)
    return scaled


def _value(module: fx.GraphModule, node: object) -> Tensor:
    assert isinstance(node, fx.Node)  # noqa: S101
    value = getattr(module, str(node.target))
    assert isinstance(value, Tensor)  # noqa: S101
    return value
