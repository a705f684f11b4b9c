import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.core.rng import torch_generator
from robustbench_bio.evaluation.fingerprint import fingerprint
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
    one, other = Rolled(lambda logits: logits), Rolled(lambda logits: logits.roll(3, 1))
    steeper = Rolled(lambda logits: 7 * logits)
    assert len({fingerprint(net, X) for net in (one, other, steeper)}) == 3
    assert fingerprint(one, X) == fingerprint(Rolled(lambda logits: logits * (1 + 1e-7)), X), (
        "rounding is no difference"
    )


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
