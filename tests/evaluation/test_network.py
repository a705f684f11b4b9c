"""What is served as a network, and what is refused by its name: by `evaluate` and by `diagnose` alike."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustbench_bio as rb
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.evaluation.network import network_of
from robustbench_bio.evaluation.store import Store

X = torch.rand(16, 1, 4, 4, generator=torch_generator("network"))


class Plain(nn.Module):
    """Two layers whose logits and inputs other functions bend."""

    def __init__(
        self, bend: Callable[[Tensor], Any] = lambda z: z, before: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        generator = torch_generator("weights")
        self.hidden, self.last = nn.Linear(16, 12), nn.Linear(12, 4)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.bend, self.before = bend, before
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.bend(self.last(F.relu(self.hidden(self.before(x).flatten(1)))))

    def logits(self, x: Tensor) -> Any:
        return self(x)


Y = Plain()(X).argmax(1)


class Leaky(nn.Module):
    """A leaky membrane in a hidden, non-persistent buffer, as snntorch's `Leaky(init_hidden=True)` keeps it."""

    membrane: Tensor

    def __init__(self, *, persistent: bool = False) -> None:
        super().__init__()
        self.register_buffer("membrane", torch.zeros(0), persistent=persistent)

    def reset(self) -> None:
        self.membrane = torch.zeros_like(self.membrane)

    def forward(self, current: Tensor) -> Tensor:
        if self.membrane.shape != current.shape:
            self.membrane = torch.zeros_like(current)
        self.membrane = 0.9 * self.membrane + current
        return self.membrane


class Spiking(nn.Module):
    def __init__(self, *, reset: bool, persistent: bool = False) -> None:
        super().__init__()
        self.net, self.leaky, self.reset = Plain(), Leaky(persistent=persistent), reset
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.reset:
            self.leaky.reset()
        return torch.stack([self.leaky(self.net(x)) for _ in range(3)]).mean(0)


def in_place(x: Tensor) -> Tensor:
    return x.sub_(0.5).div_(0.2)


class Counting(Plain):
    """Remembers in a plain attribute how often it was called."""

    def forward(self, x: Tensor) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) + 0.5 * self.calls * torch.arange(4)


def with_norm(**options: bool) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1, **options), Plain()).eval()


def train_mode_inside() -> nn.Module:
    net = nn.Sequential(nn.Dropout(0.0), Plain()).eval()
    net[0].train()
    return net


def own_generator() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    return Plain(before=lambda x: x + 0.3 * torch.randn(x.shape, generator=generator))


def with_state(x: Tensor, net: nn.Module = train_mode_inside()) -> Tensor:  # noqa: B008
    return net(x)  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a state": (lambda: Spiking(reset=False), r"keeps a state between calls \(leaky.membrane\): reset it where"),
    "a count": (Counting, "keeps a state between calls, or draws from something else than torch's generator"),
    "a generator": (own_generator, "keeps a state between calls, or draws from something else than torch's generator"),
    "in place": (lambda: Plain(before=in_place), r"changes it in place \(by up to \d.*pass lambda x: model\(x.clone"),
    "batch": (lambda: with_norm(track_running_stats=False), "depend on the rest of the batch.* batch statistics"),
    "mode": (train_mode_inside, "expected the model in eval mode, got '0' in train mode: call model.eval"),
    "mode within a function": (lambda: with_state, r"in eval mode, got 'Sequential.0' in train mode"),
    "double": (lambda: Plain().double(), r"its parameters are float64, pass model.float\(\) or lambda x: model\(x.to"),
    "bfloat16": (lambda: Plain().bfloat16(), r"takes x float32 .*its parameters are bfloat16, pass model.float\(\)"),
    "half": (lambda: Plain().half(), "takes x float32 .*its parameters are float16"),
    "shape": (lambda: nn.Linear(9, 4).eval(), r"takes x float32 \(2, 1, 4, 4\), got RuntimeError: .*mat1 and mat2"),
    "class": (lambda: Plain, "expected a network, a module or a function of x, got the class Plain"),
    "name": (lambda: "bp-darts", r"a function of x, got str: pass rb.load_model\('bp-darts'\)"),
    "none": (lambda: None, "expected a network, a module or a function of x, got NoneType"),
    "tuple": (lambda: Plain(lambda z: (z, z)), r"got tuple: pass lambda x: model\(x\)\[0\]"),
    "dict": (lambda: Plain(lambda z: {"logits": z}), r"got dict: pass lambda x: model\(x\)\['logits'\]"),
    "axes": (lambda: Plain(lambda z: z[:, :, None, None]), r"pass lambda x: model\(x\).flatten\(1\)"),
    "one logit": (lambda: Plain(lambda z: z[:, 0]), r"of a single logit pass lambda x: torch.nn.functional.pad"),
}  # fmt: skip


@pytest.fixture
def untouched() -> Iterator[tuple[Tensor, Tensor]]:
    """The examples, which must be afterwards what they were."""
    x, y = X.clone(), Y.clone()
    yield x, y
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("ask", [rb.evaluate, rb.diagnose])
def test_a_network_that_is_no_function_of_its_input_is_named_as_what_it_is(
    kind: str, ask: Callable[..., Any], untouched: tuple[Tensor, Tensor]
) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(UserError, match=message) as caught:
        ask(make(), untouched, eps=0.1, steps=2)
    assert "\n" not in str(caught.value)


def test_a_random_network_is_random_and_keeps_no_state(untouched: tuple[Tensor, Tensor]) -> None:
    net = Plain(lambda z: F.dropout(z, 0.5, training=True))
    with pytest.raises(UserError, match="the network is random, ask for the mean over its draws with gradient eot:20"):
        rb.evaluate(net, untouched, eps=0.1, steps=2)
    assert rb.evaluate(net, untouched, attack="fgsm", eps=0.1, gradient="eot:2").spec.draws == 20


Z = Plain(lambda z: z[:, :1])

SERVED: dict[str, Any] = {
    "module": Plain(),
    "function": lambda x: Plain()(1 * x),
    "closure": functools.partial(lambda net, x: net(x), Plain()),
    "method": Plain().logits,
    "in place": functools.partial(lambda net, x: net(x.clone()), Plain(before=lambda x: x.mul_(1))),
    "tuple": lambda x: Plain(lambda z: (z, 1))(x)[0],
    "dict": lambda x: Plain(lambda z: {"logits": z})(x)["logits"],
    "axes": lambda x: Plain(lambda z: z[:, :, None, None])(x).flatten(1),
    "double": lambda x: Plain().double()(x.to(torch.float64)),
    "tracked statistics": with_norm(),
}


@pytest.mark.parametrize("kind", SERVED)
def test_a_function_is_a_network_like_any_other(kind: str, untouched: tuple[Tensor, Tensor]) -> None:
    expected = rb.evaluate(Plain(), untouched, eps=0.05, steps=5)
    assert 0.1 < expected.robust_accuracy < 0.9
    result = rb.evaluate(SERVED[kind], untouched, eps=0.05, steps=5)
    assert result.outcomes["robust"].tolist() == expected.outcomes["robust"].tolist()


def test_a_single_logit_decides_between_two_classes(untouched: tuple[Tensor, Tensor]) -> None:
    x, _ = untouched
    y = (Z(x)[:, 0] > 0).long()
    result = rb.evaluate(lambda x: F.pad(Z(x).view(-1, 1), (1, 0)), (x, y), eps=0.05, steps=5)
    assert result.clean_accuracy == 1


def test_half_precision_is_served_as_its_remedy_says(untouched: tuple[Tensor, Tensor]) -> None:
    net = Plain().bfloat16()
    result = rb.evaluate(lambda x: net(x.to(torch.bfloat16)), untouched, eps=0.05, steps=5)
    assert result.clean_accuracy > 0.8
    assert result.robust_accuracy < result.clean_accuracy


@pytest.mark.parametrize("persistent", [False, True])
def test_a_network_that_resets_its_state_is_attacked_like_one_without(
    persistent: bool, untouched: tuple[Tensor, Tensor], tmp_path: Any
) -> None:
    net = Spiking(reset=True, persistent=persistent)
    # Three steps of a leaky membrane under a constant current: a factor on the logits, no more.
    expected = rb.evaluate(Plain(), untouched, eps=0.05, steps=5)
    for attack in ("pgd", "square"):
        steps = {"queries": 20} if attack == "square" else {"steps": 5}
        result = rb.evaluate(net, untouched, attack=attack, eps=0.05, batch_size=7, store=Store(tmp_path), **steps)
        assert result.clean_accuracy == 1
        again = rb.evaluate(net, untouched, attack=attack, eps=0.05, batch_size=5, store=Store(tmp_path), **steps)
        assert again.from_store
    result = rb.evaluate(net, untouched, eps=0.05, steps=5)
    assert abs(result.robust_accuracy - expected.robust_accuracy) < 0.1
    assert rb.diagnose(net, untouched, eps=0.05, steps=3, queries=10).verdict in {"sound", "inconclusive"}


def test_modules_that_a_function_reaches_are_its_parts() -> None:
    net = Plain()
    whole = network_of(lambda x: net(x), X)  # noqa: PLW0108
    assert {id(p) for p in whole.parameters()} == {id(p) for p in net.parameters()}
    assert network_of(net, X) is net
