"""The one-pixel attack: its draws and pixels, a planted backdoor, and robust accuracy beside torchattacks."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_bio.attacks import WhiteBoxModel, make
from robustbench_bio.attacks.pixel import OnePixel, _other_members, _painted
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.core.stats import wilson
from robustbench_bio.records.threat import Threat


class Backdoor(nn.Module):
    """On black images, class 1 wins where a pixel near `place` comes near `colour`: only close by it fools."""

    def __init__(self, threshold: float, size: int = 16) -> None:
        super().__init__()
        at = torch.arange(size, dtype=torch.float64)
        self.near = torch.exp(-((at[:, None] - 11) ** 2 + (at - 4) ** 2) / 50)
        self.colour = torch.tensor([0.9, 0.1, 0.6], dtype=torch.float64).view(1, 3, 1, 1)
        self.threshold = threshold
        self.rows = 0
        self.fooled: list[bool] = []

    def response(self, x: Tensor) -> Tensor:
        likeness = 1 - (x.double() - self.colour).square().mean(1)
        lit = x.sum(1) > 0
        return (self.near * likeness * lit).flatten(1).amax(1)

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        lead = self.threshold - self.response(x)
        self.fooled.append(bool((lead < 0).any()))
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def attacked(net: nn.Module, n: int, eps: float = 1, seed: int = 0, **params: Any) -> Any:
    x, y = torch.zeros(n, 3, 16, 16), torch.zeros(n, dtype=torch.int64)
    return OnePixel(**params).perturb(
        WhiteBoxModel(net, traced=False), x, y, Threat("l0", eps), ExampleRng(seed, range(n))
    )


@pytest.mark.parametrize("base", ["best", "random"])
def test_evolution_improves_and_finds_a_planted_backdoor(base: Any) -> None:
    net = Backdoor(threshold=0.985)
    reached = [
        net.response(attacked(Backdoor(9.0), 12, population=40, generations=g, base=base).x_adv) for g in (0, 5, 20)
    ]
    for before, after in itertools.pairwise(reached):
        assert (after >= before).all()
        assert 1 - after.mean() < 0.5 * (1 - before.mean())
    proposal = attacked(net, 12, population=40, generations=100, base=base)
    assert WhiteBoxModel(net).fooled(proposal.x_adv, torch.zeros(12, dtype=torch.int64)).all()
    for changed in (proposal.x_adv != 0).any(1):
        (place,) = changed.nonzero().tolist()
        assert abs(place[0] - 11) <= 1
        assert abs(place[1] - 4) <= 1
    # Random search with as many tries does not.
    u = torch.rand(int(proposal.queries.float().mean()), 5, generator=torch_generator("random search"))
    assert net.response(_painted(torch.zeros(len(u), 3, 16, 16), u[:, None], Threat("l0", 1))).max() < 0.985


def test_the_search_ends_with_the_first_member_that_fools() -> None:
    net = Backdoor(threshold=0.9)
    proposal = attacked(net, 20, population=8, generations=30)
    assert net.rows == proposal.queries.sum()
    fooled = WhiteBoxModel(net).fooled(proposal.x_adv, torch.zeros(20, dtype=torch.int64))
    assert torch.equal(proposal.queries, 8 * (1 + proposal.steps))
    assert fooled.sum() > 5
    assert (proposal.steps[~fooled] == 30).all()
    assert (proposal.steps[fooled] < 30).any()
    alone = [Backdoor(threshold=0.9) for _ in range(5)]
    for seed, one in enumerate(alone):
        attacked(one, 1, seed=seed, population=8, generations=30)
        assert not any(one.fooled[:-1])
    assert any(one.fooled[-1] for one in alone)
    shorter = attacked(net, 20, population=8, generations=int(proposal.steps[fooled].min()))
    first = proposal.steps == proposal.steps[fooled].min()
    assert torch.equal(shorter.x_adv[first], proposal.x_adv[first])


def test_a_mutant_is_the_best_member_and_half_a_difference() -> None:
    members = torch.rand(6, 7, 2, 5, generator=torch_generator("members")) * 0.2 + 0.4
    fitness = torch.rand(6, 7, generator=torch_generator("fitness"))
    for base in ("best", "random"):
        mutants = OnePixel(base=base)._mutants(members, fitness, ExampleRng(0, range(6)))  # type: ignore[arg-type]
        for row, mutant in ((i, m) for i in range(6) for m in mutants[i]):
            bases = [int(fitness[row].argmax())] if base == "best" else range(7)
            candidates = torch.stack(
                [
                    members[row, c] + 0.5 * (members[row, a] - members[row, b])
                    for c in bases
                    for a in range(7)
                    for b in range(7)
                    if a != b
                ]
            )
            assert (candidates - mutant).abs().amax((1, 2)).min() < 1e-6


def test_genes_out_of_range_are_drawn_anew() -> None:
    members = torch.rand(50, 10, 1, 5, generator=torch_generator("members")).round()
    mutants = OnePixel(mutation=3.0)._mutants(members, torch.zeros(50, 10), ExampleRng(0, range(50)))
    assert mutants.min() >= 0
    assert mutants.max() <= 1
    inner = mutants[(mutants > 0) & (mutants < 1)]
    assert len(inner) > 500
    assert abs(inner.mean() - 0.5) < 0.05


def test_members_that_mutate_another_are_distinct_and_equally_likely() -> None:
    u = torch.rand(20000, 5, 3, generator=torch_generator("others"))
    u[0] = 1 - 2**-24
    u[1] = 0
    picks = _other_members(u)
    own = torch.arange(5).view(1, 5, 1).expand(20000, 5, 1)
    together = torch.cat([own, picks], 2).sort(2).values
    assert together.min() == 0
    assert together.max() == 4
    assert (together[..., 1:] > together[..., :-1]).all()
    for member in range(5):
        codes = (picks[:, member] * torch.tensor([25, 5, 1])).sum(1)
        counts = torch.bincount(codes)
        assert (counts > 0).sum() == 24
        assert counts[counts > 0].float().sub(20000 / 24).abs().max() < 150


def test_pixels_are_painted_at_their_place_in_their_colour() -> None:
    x = torch.full((2, 3, 4, 8), 0.5)
    almost = 1 - 2**-24
    pixels = torch.tensor(
        [[[0.0, 0.0, 0.1, 0.2, 0.3], [almost, almost, 0.7, 0.8, 0.9]], [[0.5, 0.5, 1, 1, 1], [0.5, 0.5, 0, 0, 0]]]
    )
    painted = _painted(x, pixels, Threat("l0", 2, (0.0, 2.0)))
    expected = x.clone()
    expected[0, :, 0, 0] = torch.tensor([0.2, 0.4, 0.6])
    expected[0, :, 3, 7] = torch.tensor([1.4, 1.6, 1.8])
    expected[1, :, 2, 4] = 0
    torch.testing.assert_close(painted, expected)
    assert torch.equal(x, torch.full_like(x, 0.5))


@pytest.mark.parametrize("eps", [0, 1, 3])
def test_as_many_pixels_change_as_eps_allows(eps: int) -> None:
    proposal = attacked(Backdoor(9.0), 10, eps)
    changed = (proposal.x_adv != 0).any(1).flatten(1).sum(1)
    assert (changed <= eps).all()
    assert changed.max() == eps
    assert (proposal.queries == 110).all()
    assert ((proposal.x_adv >= 0) & (proposal.x_adv <= 1)).all()


def test_parameters_are_checked() -> None:
    for params, message in (
        ({"population": 3}, "expected population >= 4, got 3"),
        ({"generations": -1}, "expected generations >= 0, got -1"),
        ({"mutation": -0.5}, "expected mutation >= 0, got -0.5"),
        ({"base": "worst"}, "expected base of one-pixel to be 'best' or 'random', got 'worst'"),
    ):
        with pytest.raises(UserError, match=message):
            make("one-pixel", "l0", params)
    assert OnePixel(population=400, generations=100, base="random").brief().population < 10


@pytest.mark.slow
def test_robust_accuracy_on_a_real_network_is_not_above_that_of_torchattacks(
    real_network: tuple[nn.Module, Tensor, Tensor],
) -> None:
    ta = pytest.importorskip("torchattacks")
    resnet, x, y = real_network
    white_box = WhiteBoxModel(resnet)
    right = ~white_box.fooled(x, y)
    x, y = x[right], y[right]
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    other = ta.OnePixel(resnet, pixels=1, steps=10, popsize=10)(x, y)
    np.random.set_state(before)  # noqa: NPY002
    proposal = OnePixel().perturb(white_box, x, y, Threat("l0", 1), ExampleRng(0, range(len(y))))
    robust = int((~white_box.fooled(proposal.x_adv, y)).sum())
    assert robust < len(y)
    assert robust / len(y) <= wilson(int((~white_box.fooled(other, y)).sum()), len(y)).high
