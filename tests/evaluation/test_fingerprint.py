import functools
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.core.rng import torch_generator
from robustbench_bio.evaluation.fingerprint import fingerprint, fleeting, state_sha256
from robustbench_bio.nets.base import Net
from robustbench_bio.zoo.loading import load_model

X = torch.rand(3, 2, 5, 6, generator=torch_generator("fingerprint"))


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(24.0).view(1, 2, 3, 4) / 7)
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("hidden", torch.ones(2, dtype=torch.bfloat16), persistent=False)
        self.register_buffer("empty", torch.zeros(0))
        self.inner = nn.BatchNorm2d(2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = F.conv2d(self.inner(x), self.weight).flatten(1)[:, :5] + self.hidden.sum()
        return logits


def test_a_fingerprint_sees_every_change() -> None:
    def swapped(net: Everything) -> None:
        net.weight = nn.Parameter(net.weight.detach().flip(3))

    changes: list[Callable[[Everything], Any]] = [
        lambda net: net.weight.data.view(-1)[5].mul_(1 + 2e-7),
        lambda net: net.weight.data.neg_(),
        swapped,
        lambda net: net.count.add_(1),
        lambda net: net.flags.logical_not_(),
        lambda net: net.hidden.mul_(1.01),
        lambda net: net.inner.running_var.mul_(1.01),
        lambda net: net.inner.num_batches_tracked.add_(1),
        lambda net: setattr(net.inner, "eps", 1e-3),
        lambda net: setattr(net, "inner", nn.BatchNorm2d(2, affine=False)),
        lambda net: setattr(net, "weight", nn.Parameter(net.weight.detach().view(2, 1, 3, 4))),
        lambda net: setattr(net, "description", "another genotype"),
        lambda net: net.double(),
        lambda net: setattr(net, "answer", 42),
    ]
    hashes = [fingerprint(Everything(), X)]
    for change in changes:
        net = Everything()
        change(net)
        hashes.append(fingerprint(net, X))
    for (i, one), (j, other) in itertools.combinations(enumerate(hashes), 2):
        assert one != other, (i, j)


def test_a_fingerprint_does_not_see_what_decides_nothing() -> None:
    net = Everything()
    before = fingerprint(net, X)
    net.to(memory_format=torch.channels_last)
    net.weight.grad = torch.ones_like(net.weight)
    net.weight.requires_grad_(False)
    net.eval()
    assert fingerprint(net, X) == before == fingerprint(Everything(), X)


class Rolled(nn.Module):
    """Logits of one pixel column, rolled: no parameter, buffer or attribute tells two of them apart."""

    def __init__(self, roll: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._roll = roll
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self._roll(x[:, 0, :, 0])


def test_networks_that_differ_in_their_code_alone_have_different_fingerprints() -> None:
    rolls: list[Callable[[Tensor], Tensor]] = [
        lambda logits: logits,
        lambda logits: logits.roll(3, 1),
        lambda logits: 7 * logits,
        lambda logits: logits * (1 + 1e-7),
        lambda logits: torch.where(logits > 0.99, logits + 1, logits),
        lambda logits: torch.where(logits > 0.991, logits + 1, logits),
    ]
    assert len({fingerprint(Rolled(roll), X) for roll in rolls}) == len(rolls)


def test_answers_tell_networks_apart_whose_code_says_nothing_but_not_by_rounding() -> None:
    """Code of a library is not looked into: what it computes shows in the answers only."""

    class Opaque(nn.Module):
        __module__ = "torch.opaque"

        def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            Opaque.forward = lambda _, x: bend(x[:, 0, :, 0])  # type: ignore[method-assign]
            self.eval()

    def named(bend: Callable[[Tensor], Tensor]) -> str:
        return fingerprint(Opaque(bend), X)

    one = named(lambda z: z)
    assert named(lambda z: z.roll(3, 1)) != one
    assert named(lambda z: 1.02 * z) != one
    assert named(lambda z: z * (z > 0.1)) != one
    assert named(lambda z: z * (1 + 1e-7)) == one


class Scaled(nn.Module):
    """A linear network that multiplies by a number, which `hold` puts somewhere that is no parameter."""

    factor = 1.0

    def __init__(self, hold: Callable[["Scaled"], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(60, 10)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        hold(self)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(self.linear(x.flatten(1)))

    def scaled(self, logits: Tensor) -> Tensor:
        return torch.mul(logits, self.factor)


def of_class(net: Scaled, value: float) -> None:
    net.__class__ = type("Scaled", (Scaled,), {"factor": value})


def of_global(net: Scaled, value: float) -> None:
    names = {"value": value}
    exec("def scaled(logits): return logits * value", names)  # noqa: S102
    net.scaled = names["scaled"]  # type: ignore[method-assign,assignment]


def of_code(net: Scaled, value: float) -> None:
    names: dict[str, Any] = {}
    exec(f"def scaled(logits): return logits * {value!r}", names)  # noqa: S102
    net.scaled = names["scaled"]


def hooked(net: Scaled, value: float) -> None:
    net.linear.register_forward_hook(lambda *call: call[-1] * value)


def of_default(net: Scaled, value: float) -> None:
    def scaled(logits: Tensor, by: float = value) -> Tensor:
        return logits * by

    net.scaled = scaled  # type: ignore[method-assign]


def of_helper(net: Scaled, value: float) -> None:
    by = [value]

    def times(logits: Tensor) -> Tensor:
        return logits * by[0]

    net.scaled = lambda logits: times(logits)  # type: ignore[method-assign]  # noqa: PLW0108


HOLDS: dict[str, Callable[[Scaled, float], object]] = {
    "attribute": lambda net, value: setattr(net, "factor", value),
    "hidden attribute": lambda net, value: setattr(net, "_factor", value),
    "tensor": lambda net, value: setattr(net, "factor", torch.tensor(value)),
    "tensors": lambda net, value: setattr(net, "factors", [{"a": torch.tensor(value)}]),
    "array": lambda net, value: setattr(net, "factor", np.array(value, np.float32)),
    "config": lambda net, value: setattr(net, "config", SimpleNamespace(factor=value)),
    "modules in a list": lambda net, value: setattr(net, "hidden", [Scaled(lambda n: setattr(n, "factor", value))]),
    "partial": lambda net, value: setattr(net, "scaled", functools.partial(torch.mul, value)),
    "method": lambda net, value: setattr(net, "scaled", Scaled(lambda n: setattr(n, "factor", value)).scaled),
    "closure": lambda net, value: setattr(net, "scaled", lambda logits: logits * value),
    "class": of_class,
    "global": of_global,
    "code": of_code,
    "hook": hooked,
    "default": of_default,
    "helper": of_helper,
}


@pytest.mark.parametrize("place", HOLDS)
def test_a_number_is_seen_wherever_a_network_holds_it(place: str) -> None:
    # Too small for any answer that rounding leaves alone.
    values = (1.0, 1.0, 1 + 2e-6)
    one, again, other = (fingerprint(Scaled(lambda net, v=v: HOLDS[place](net, v)), X) for v in values)
    assert one == again
    assert one != other


class Membrane(nn.Module):
    """Integrates in a buffer that is reset in each pass, counts its calls and keeps what it saw."""

    def __init__(self, *, constant: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("membrane", torch.zeros(1), persistent=False)
        self.register_buffer("constant", torch.tensor(constant), persistent=False)
        self.calls, self.seen = 0, [torch.zeros(1)]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        self.last = x
        self.membrane = torch.zeros_like(x[:, 0, :, 0])
        for _ in range(3):
            self.membrane = 0.5 * self.membrane + self.constant * x[:, 0, :, 0]
        return self.membrane


def test_what_a_pass_leaves_behind_is_no_part_of_a_network() -> None:
    net = Membrane()
    first = fingerprint(net, X)
    for rows in (1, 3, 2):
        net(X[:rows])
        assert fingerprint(net, X) == first
    assert fleeting(net, X) == {"membrane"}
    assert fingerprint(Membrane(constant=1.01), X) != first


def test_a_network_of_the_zoo_that_was_altered_is_another() -> None:
    def hook(net: Net) -> None:
        net.register_forward_hook(lambda *call: call[-1].roll(3, 1))

    def exchange(net: Net) -> None:
        name = next(name for name, module in net.named_modules() if isinstance(module, nn.ReLU))
        net.set_submodule(name, nn.Tanh())

    def override(net: Net) -> None:
        forward = net.forward
        net.forward = lambda x: forward(x).roll(3, 1)  # type: ignore[method-assign]

    hashes = [fingerprint(load_model("bp-darts"), torch.zeros(2, 1, 8, 8))]
    for alter in (hook, exchange, override):
        net = load_model("bp-darts")
        alter(net)
        assert state_sha256(net) == state_sha256(load_model("bp-darts"))
        hashes.append(fingerprint(net, torch.zeros(2, 1, 8, 8)))
    assert len(set(hashes)) == 4


def test_the_text_of_a_module_does_not_matter() -> None:
    class Chatty(Rolled):
        def extra_repr(self) -> str:
            return "printed otherwise by another version of torch"

    Chatty.__qualname__ = Rolled.__qualname__
    assert fingerprint(Rolled(lambda logits: logits), X) == fingerprint(Chatty(lambda logits: logits), X)


def test_a_network_of_the_zoo_is_named_by_its_card_on_every_machine() -> None:
    net, x = load_model("bp-darts"), torch.zeros(2, 1, 8, 8)
    assert fingerprint(net, x) == fingerprint(net, x + 0.5), "no answers that could depend on a processor"
    before = fingerprint(net, x)
    net.description += " "
    assert fingerprint(net, x) != before


def test_a_network_in_train_mode_is_not_asked() -> None:
    net = Everything().train()
    before = net.inner.num_batches_tracked.item()
    fingerprint(net, X)
    assert net.inner.num_batches_tracked.item() == before
