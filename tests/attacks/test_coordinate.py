"""The coordinate search beside closed forms, and where gradients say nothing."""

import pytest
import torch
from torch import Tensor, nn

from robustbench_bio import evaluate
from robustbench_bio.attacks import WhiteBoxModel, make
from robustbench_bio.attacks.access.white_box import margin
from robustbench_bio.attacks.coordinate import LEVELS, SHAPES, Coordinate, _Moves, _Walk
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.records.threat import Threat

EPS = 0.1
LINF = Threat("linf", EPS)


class Linear(nn.Module):
    """Two classes, logits ±⟨w, x⟩/2 + shift."""

    def __init__(self, channels: int, shift: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 4, 5, generator=torch_generator("w", channels)))
        self.shift = shift
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        lead = (x * self.weight).sum((1, 2, 3)) + self.shift
        return torch.stack([lead, -lead], 1) / 2


class Counts(nn.Module):
    """Logits are how many pixels of each half are bright: flat everywhere, and no single pixel decides."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        bright = (x > 0.5).to(x.dtype).flatten(1)
        return torch.stack([bright[:, :16].sum(1), bright[:, 16:].sum(1)], 1)


def images(n: int, channels: int, low: float = 0.2, high: float = 0.8) -> Tensor:
    return low + (high - low) * torch.rand(n, channels, 4, 5, generator=torch_generator("x", channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_linear_network_is_taken_to_the_best_corner(channels: int) -> None:
    net, x, y = Linear(channels, shift=1e3), images(3, channels), torch.zeros(3, dtype=torch.int64)
    moves = _Moves(x).count
    # No patch of several pixels can take back what single pixels have won: two sweeps reach every corner.
    attack = Coordinate(steps=0, queries=2 * moves + 1, restarts=1, heat=0)
    found = attack.perturb(WhiteBoxModel(net), x, y, LINF, ExampleRng(0, range(3)))
    best = x - EPS * net.weight.detach().sign()
    torch.testing.assert_close(margin(net(found.x_adv), y), margin(net(best), y), rtol=1e-6, atol=1e-4)
    assert (found.queries == 2 * moves + 1).all()


def test_what_thresholds_hide_from_gradients_is_found() -> None:
    net = Counts()
    x = torch.full((6, 1, 8, 4), 0.45)
    x[:, :, :4] = 0.55  # sixteen bright pixels against none: nine of them have to change sides
    y = torch.zeros(6, dtype=torch.int64)
    asked = {"norm": "linf", "eps": EPS, "seed": 0}
    assert evaluate(net, (x, y), attack="pgd", steps=20, **asked).robust_accuracy == 1
    assert evaluate(net, (x, y), attack="coordinate", steps=0, queries=400, **asked).robust_accuracy == 0


def test_moves_are_every_patch_at_every_level_and_none_is_idle() -> None:
    x = images(2, 3)
    moves = _Moves(x)
    places = sum((4 - rows + 1) * (5 - columns + 1) for rows, columns in SHAPES)
    assert moves.count == places * 4 * len(LEVELS), "three channels alone, and all together"
    point = x.clone()
    for number in range(moves.count):
        tried = moves.made(x, point, torch.tensor([number, number]), LINF)
        changed = (tried != point).flatten(1)
        assert changed.any(1).all(), number
        assert (changed == moves.masks[number // len(LEVELS)].flatten()).all()
        assert LINF.contains(x, tried).all()


@pytest.mark.parametrize("heat", [0.0, 0.05, 100.0])
def test_no_point_is_lost_for_a_worse_one_and_costs_are_counted(heat: float) -> None:
    net, x, y = Linear(1, shift=2.0), images(8, 1), torch.zeros(8, dtype=torch.int64)
    margins = []
    for queries in (1, 20, 200):
        attack = make("coordinate", "linf", {"queries": queries, "steps": 0, "restarts": 1, "heat": heat})
        found = attack.perturb(WhiteBoxModel(net), x, y, LINF, ExampleRng(0, range(8)))
        margins.append(margin(net(found.x_adv), y))
        assert (found.queries <= queries).all()
    assert (margins[1] >= margins[0]).all()
    assert (margins[2] >= margins[1]).all()


class Trap(nn.Module):
    """Fooled where all pixels rise together; one alone, or a patch, lowers the margin: greed stays where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        up = (x > 0.5).to(x.dtype).mean((1, 2, 3))
        lead = torch.where(up < 0.9, 1 + 0.2 * up, -1)
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def test_heat_leaves_a_trap_that_greed_stays_in() -> None:
    x, y = torch.full((12, 1, 3, 3), 0.5), torch.zeros(12, dtype=torch.int64)
    found = {}
    for heat in (0.0, 0.2):
        attack = Coordinate(steps=0, queries=1500, restarts=1, heat=heat)
        proposal = attack.perturb(WhiteBoxModel(Trap()), x, y, LINF, ExampleRng(0, range(12)))
        found[heat] = (Trap()(proposal.x_adv).argmax(1) != y).sum().item()
    assert found[0.0] == 0
    assert found[0.2] > 6


def test_moves_are_taken_as_often_as_metropolis_says() -> None:
    n, image = 20_000, torch.zeros(20_000, 1, 1, 1)
    walk = _Walk(torch.arange(n), image, torch.zeros(n), image, *(torch.zeros(n),) * 2, image, torch.full((n,), 0.5))
    luck = torch.rand(n, generator=torch_generator("luck"))
    for change, cooled, share in [(0.3, 1, 1), (0.0, 0, 1), (-0.2, 1, 0.6703), (-0.2, 0.5, 0.4493), (-1e-9, 0, 0)]:
        _, taken = walk.moved(image, torch.full((n,), change), cooled, luck)
        assert taken.float().mean().item() == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize("params", [{"queries": 0}, {"steps": -1}, {"restarts": 0}, {"heat": -0.1}])
def test_a_budget_out_of_range_is_refused(params: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"expected {next(iter(params))} >= "):
        make("coordinate", "linf", params)
