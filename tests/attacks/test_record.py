"""Whatever runs in a forward pass is seen in its trace, and nothing else is changed by looking."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library, nn

from robustbench_bio.attacks.access.record import Untraceable, record
from robustbench_bio.attacks.access.trace import trace
from robustbench_bio.core.rng import torch_generator

_WEIGHTS = torch.randn((48, 10), generator=torch_generator("weights"), dtype=torch.float64)
_X = torch.rand((2, 3, 4, 4), generator=torch_generator("inputs"), dtype=torch.float64)


class Plain(nn.Module):
    """One function of the flattened input, and a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(_WEIGHTS.clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x.flatten(1)) @ self.weight


def slope(net: nn.Module, x: Tensor = _X) -> Tensor:
    """The gradient at x of a scalar that every logit has a part in."""
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(x).logsumexp(1).sum(), x)
    return gradient


def no_grad(u: Tensor) -> Tensor:
    with torch.no_grad():
        return u.tanh()


def inference(u: Tensor) -> Tensor:
    with torch.inference_mode():
        return u.tanh() + torch.zeros(())


def switched(u: Tensor) -> Tensor:
    with torch.set_grad_enabled(False):
        u = u.tanh()
    return u.clone().detach_()


def written(u: Tensor) -> Tensor:
    v = torch.zeros_like(u)
    v[:, :7] = u[:, :7].tanh()
    v.data.add_(u.sin())
    return v


def shared(u: Tensor) -> Tensor:
    v = u * 1
    v.detach().mul_(2)
    return v.tanh()


def purified(u: Tensor) -> Tensor:
    with torch.enable_grad():
        v = u.detach().clone().requires_grad_(True)
        (inner,) = torch.autograd.grad((v.tanh() ** 2).sum(), v)
    return u - 0.1 * inner


#: Forward passes that hide their slope from autograd, and honest ones that compute the same.
CUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "detach": (lambda u: u.tanh().detach(), torch.tanh),
    "data": (lambda u: u.tanh().data, torch.tanh),
    "no_grad": (no_grad, torch.tanh),
    "inference_mode": (inference, torch.tanh),
    "set_grad_enabled and detach_": (switched, torch.tanh),
    "straight-through": (lambda u: u + (u.tanh() - u).detach(), torch.tanh),
    "half of a sum": (lambda u: u.tanh() + u.sin().detach(), lambda u: u.tanh() + u.sin()),
    "torch.tensor": (lambda u: u.new_tensor(u.detach()).tanh(), torch.tanh),
    "data written to": (written, lambda u: torch.cat([u[:, :7].tanh(), 0 * u[:, 7:]], 1) + u.sin()),
    "memory shared": (shared, lambda u: (2 * u).tanh()),
    "gradient inside": (purified, lambda u: u - 0.2 * u.tanh() * (1 - u.tanh() ** 2)),
}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("cut", CUTS)
def test_no_cut_hides_the_true_gradient(cut: str) -> None:
    hiding, honest = CUTS[cut]
    graph = trace(Plain(hiding), _X)
    torch.testing.assert_close(slope(graph), slope(Plain(honest)))
    again = torch.cat([_X] * 4)[:7]
    torch.testing.assert_close(graph(again), Plain(honest)(again))


def reads(u: Tensor) -> Tensor:
    return u.tanh() if u.sum() > 0 else u


def swallows(u: Tensor) -> Tensor:
    try:
        return u.tanh() * float(u.max())
    except Exception:  # noqa: BLE001  (what the planted network does)
        return u.tanh()


class Foreign(torch.autograd.Function):
    """Answers from outside of torch, in memory that no operation was told of."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        numbers = (ctypes.c_double * u.numel()).from_address(u.contiguous().data_ptr())
        return torch.frombuffer(numbers, dtype=u.dtype).clone().view(u.shape)


UNSEEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "listed": (lambda u: torch.tensor(u.tolist(), dtype=u.dtype), "tolist"),
    "numpy": (lambda u: torch.from_numpy(u.detach().numpy().copy()), "numpy"),
    "branch": (reads, "reads a number"),
    "number": (lambda u: u * u.max().item(), "reads a number"),
    "caught": (swallows, "reads a number"),
    "foreign": (Foreign.apply, "other constants"),
    "sizes": (lambda u: u[:, : int(u[0].nonzero().shape[0])], "size of a tensor"),
    "halves": (lambda u: u + len(u) // 2, "odd way"),
    "generator": (lambda u: u + torch.rand(u.shape, generator=torch_generator("own"), dtype=u.dtype), "generator"),
}


@pytest.mark.parametrize("way", UNSEEN)
def test_what_cannot_be_followed_is_refused(way: str) -> None:
    function, reason = UNSEEN[way]
    with pytest.raises(Untraceable, match=reason):
        record(Plain(function), _X)


@pytest.mark.slow  # imports the compiler
def test_a_compiled_module_is_seen_into() -> None:
    # Not only where it is outermost. What the compiler would make of it is no part of this.
    with torch.compiler.set_stance("force_eager"):
        graph = trace(nn.Sequential(torch.compile(Plain(CUTS["detach"][0]))).eval(), _X)  # type: ignore[arg-type]
    torch.testing.assert_close(slope(graph), slope(Plain(torch.tanh)))
    whole = record(torch.compile(Plain(CUTS["straight-through"][0])), _X)  # type: ignore[arg-type]
    torch.testing.assert_close(slope(whole), slope(Plain(torch.tanh)))


class Tokens(nn.Module):
    """A layer on sequences, between an embedding and a mean."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(3, 16), layer, nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x.flatten(2).transpose(1, 2))).mean(1))  # type: ignore[no-any-return]


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]  # type: ignore[no-any-return]


class Remembers(nn.LSTM):
    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(tokens)[0]  # type: ignore[no-any-return]


class Dot(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        heads = tokens.unflatten(-1, (4, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, 2 * heads, heads, is_causal=True).transpose(1, 2).flatten(2)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "MultiheadAttention": Attends,
    "TransformerEncoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2),
    "scaled_dot_product_attention": Dot,
    "LSTM": lambda: Remembers(16, 16, batch_first=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_fused_layers_are_traced_as_what_they_consist_of(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Tokens(LAYERS[name]()).eval()
    graph = trace(net, _X.float())
    found = slope(graph, _X.float())
    fused = {"attention", "encoder", "rnn", "lstm"}
    assert not [node for node in graph.graph.nodes if any(word in str(node.target) for word in fused)]
    torch.testing.assert_close(found.double(), slope(net.double()), rtol=1e-4, atol=1e-7)


def test_an_operation_with_a_derivative_of_its_own_is_refused() -> None:
    @library.custom_op("planted::tanh", mutates_args=())
    def tanh(u: Tensor) -> Tensor:
        return u.tanh()

    with pytest.raises(Untraceable, match="may have any derivative"):
        record(Plain(tanh), _X)


@pytest.mark.filterwarnings("ignore:.*torch.jit:")
def test_scripted_exported_and_parallel_modules_are_seen_into() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).tanh().detach() + x.flatten(1)

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).tanh() + x.flatten(1)

    batch = {"x": {0: torch.export.Dim("n", min=2)}}
    forms = [
        torch.jit.script(Cut().eval()),
        torch.jit.trace(Cut().eval(), _X),
        torch.export.export(Cut().eval(), (_X,), dynamic_shapes=batch).module(),
        nn.DataParallel(Cut()).eval(),
    ]
    for form in forms:
        torch.testing.assert_close(slope(trace(form, _X)), slope(Whole()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:")
def test_what_autograd_cannot_differentiate_is_refused() -> None:
    fused = torch.jit.script(Tokens(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)).eval())
    with pytest.raises(Untraceable, match="derivative"):
        trace(fused, _X.float())


def test_hooks_are_part_of_the_forward_pass_and_see_real_tensors() -> None:
    seen: list[Tensor] = []

    def looks(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append(output)

    def changes(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output.sin().detach()

    def doubles(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (2 * inputs[0],)

    net = nn.Sequential(nn.Flatten(), Plain(torch.tanh), nn.ReLU()).eval()
    net[1].register_forward_hook(looks)
    handle = net[1].register_forward_hook(changes)
    net[2].register_forward_pre_hook(doubles)
    torch.testing.assert_close(slope(trace(net, _X)), slope(Then(lambda z: (2 * z.sin()).relu())))
    assert {type(output) for output in seen} == {Tensor}
    handle.remove()
    torch.testing.assert_close(slope(trace(net, _X)), slope(Then(lambda z: (2 * z).relu())))


class Then(Plain):
    """The hyperbolic tangent, the linear layer, and something after it."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__(torch.tanh)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(x))


def test_a_network_is_left_as_it_was() -> None:
    class Keeps(Plain):
        def __init__(self) -> None:
            super().__init__(torch.tanh)
            self.register_buffer("count", torch.zeros(1))
            self.last, self.all, self.plain = None, [], torch.ones(3)

        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            self.all.append(x)
            self.count.add_(1)
            self.plain.mul_(2)
            return super().forward(x) + self.plain.sum() * 0

    net = Keeps()
    graph = record(net, _X)
    assert (net.last, net.all, net.count.item(), net.plain.sum().item()) == (None, [], 0, 3)
    assert not [node for node in graph.graph.nodes if node.op == "get_attr" and not hasattr(graph, node.target)]


@pytest.mark.slow  # a process of its own
def test_a_trace_costs_no_import_of_the_compiler() -> None:
    code = (
        "import sys, torch; from torch import nn; from robustbench_bio.attacks.access.trace import trace;"
        "net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10)).eval();"
        "trace(net, torch.rand(2, 3, 4, 4)); print([m for m in ('torch._dynamo', 'sympy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout.strip() == "[]"
