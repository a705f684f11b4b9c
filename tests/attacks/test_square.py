"""Square Attack: the reference's schedule, windows and iterates; its own promises; robust accuracy beside peers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.square import BLOCK, Square, _corner, _eta, share
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.core.stats import wilson
from robustbench_bio.records.threat import Norm, Threat


class Recorded(nn.Module):
    """A smooth network of three classes in float64 that keeps what it was asked; `lead` makes class 0 win."""

    def __init__(self, shape: tuple[int, int, int], lead: float) -> None:
        super().__init__()
        generator = torch_generator("square", *shape)
        self.w = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        self.lead = torch.tensor([lead, 0.0, 0.0], dtype=torch.float64)
        self.asked: list[Tensor] = []

    def logits(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", torch.tanh(2 * x.double() - 1), self.w) + self.lead

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return self.logits(x)

    def lead_at(self, x: Tensor) -> Tensor:
        """How much class 0 leads by: [n]."""
        logits = self.logits(x)
        return logits[:, 0] - logits[:, 1:].amax(1)


def image(shape: tuple[int, int, int], low: float = 0.0, high: float = 1.0, n: int = 1) -> Tensor:
    return low + (high - low) * torch.rand(n, *shape, generator=torch_generator("image", *shape))


def attacked(net: nn.Module, x: Tensor, norm: Norm, eps: float, seed: int = 0, **params: Any) -> Any:
    y = torch.zeros(len(x), dtype=torch.int64)
    return Square(**params).perturb(
        WhiteBoxModel(net, traced=False), x, y, Threat(norm, eps), ExampleRng(seed, range(len(x)))
    )


# --- the reference ----------------------------------------------------------------------------------------------


def test_the_share_of_pixels_follows_the_published_table() -> None:
    table = {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 200: 4, 201: 8, 500: 8, 501: 16, 1000: 16, 1001: 32, 2000: 32}
    table |= {2001: 64, 4000: 64, 4001: 128, 6000: 128, 6001: 256, 8000: 256, 8001: 512, 9999: 512}
    for query, divisor in table.items():
        assert share(0.8, query, 10000) == 0.8 / divisor
    reference = pytest.importorskip("pyautoattack.square").SquareAttack
    for queries in (200, 1000, 5000):
        theirs = reference(None, n_queries=queries, p_init=0.3)
        assert [share(0.3, i, queries) for i in range(queries)] == [theirs.p_selection(i) for i in range(queries)]


def test_the_windows_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("pyautoattack.square").SquareAttack(None, norm="L2", device="cpu")
    for side in (1, 2, 3, 5, 6, 7, 10, 29, 32):
        for lying in (0, 1):
            monkeypatch.setattr(torch, "rand", lambda _, value=float(lying): torch.tensor([value]))
            torch.testing.assert_close(_eta(side, torch.zeros(1))[lying], theirs.eta(side), rtol=0, atol=1e-6)


# An l2 step is √(eps² − ‖δ‖²): where next to nothing is left, the last bit decides it and all that follows. Float64 and
# this radius keep the runs clear of that.
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 2.0)])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 25, 25)])
def test_every_iterate_is_that_of_the_reference_given_its_draws(
    norm: Norm, eps: float, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = pytest.importorskip("pyautoattack.square").SquareAttack
    x, mine, theirs = image(shape).double(), Recorded(shape, 1000.0), Recorded(shape, 1000.0)
    attacked(mine, x, norm, eps, queries=150)
    stream = ExampleRng(0, [0]).child("0")

    def drawn(size: Any) -> Tensor:
        return stream.uniform((int(torch.tensor(size).prod()),), x).view(tuple(size))

    whole = reference.random_int
    peer = reference(theirs, norm=norm.capitalize(), n_queries=150, eps=eps, device="cpu")
    peer.init_hyperparam(x)
    monkeypatch.setattr(peer, "random_int", lambda low, high: whole(peer, low, high + 1))  # the border pixels too
    monkeypatch.setattr(torch, "rand", drawn)
    peer.attack_single_run(x, torch.zeros(1, dtype=torch.int64))
    best, lead, same = x, float("inf"), 0
    for ours, other in zip(mine.asked, theirs.asked, strict=False):
        if norm == "linf" and torch.allclose(other, best, atol=1e-6):  # an idle square, which is not asked here
            if mine.lead_at(ours) < lead:
                break
            continue
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)
        same += 1
        if theirs.lead_at(other) < lead:
            best, lead = other, theirs.lead_at(other)
    assert same == 150 if norm == "l2" else same > 10


# --- promises ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.8)])
def test_the_margin_never_increases_and_the_best_point_asked_is_proposed(norm: Norm, eps: float) -> None:
    net = Recorded((3, 9, 9), 1000.0)
    proposal = attacked(net, image((3, 9, 9)), norm, eps, queries=400)
    asked = torch.cat(net.asked)
    margins = net.lead_at(asked)
    assert proposal.queries.item() == len(margins) == 400
    assert torch.equal(proposal.x_adv[0], asked[margins.argmin()])
    lows = torch.cummin(margins, 0).values
    assert proposal.steps.item() == (lows[1:] < lows[:-1]).sum() > 10
    # Every query is one patch away from the best point before it.
    for i in range(1, 400):
        changed = (asked[i] != asked[margins[:i].argmin()]).any(0)
        assert changed.any()
        if norm == "linf":
            rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
            side = max(round((share(0.8, i - 1, 400) * 81) ** 0.5), 1)
            assert rows.max() - rows.min() < side
            assert columns.max() - columns.min() < side


def test_linf_points_are_corners_of_ball_and_box() -> None:
    x, net = image((3, 8, 8), n=2), Recorded((3, 8, 8), 1000.0)
    attacked(net, x, "linf", 0.2, queries=200)
    for point in net.asked:
        corner = (point == (x + 0.2).clamp(0, 1)) | (point == (x - 0.2).clamp(0, 1))
        assert corner.all()
    stripes = (net.asked[0] > x).any(2)
    assert (((net.asked[0] > x) == stripes[:, :, None]) | (x < 1e-6) | (x > 1 - 1e-6)).all()


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 8, 8), (2, 7, 10), (1, 3, 3)])
def test_l2_points_keep_the_full_radius_where_the_box_does_not_bind(shape: tuple[int, int, int]) -> None:
    x, net = image(shape, 0.4, 0.6, n=3), Recorded(shape, 1000.0)
    attacked(net, x.double(), "l2", 0.3, queries=150)
    for point in net.asked:
        assert torch.linalg.vector_norm((point - x).flatten(1), dim=1).sub(0.3).abs().max() < 1e-6


def test_l2_points_stay_in_the_ball_and_regain_what_the_box_took() -> None:
    x, net = image((3, 10, 10)).round(), Recorded((3, 10, 10), 1000.0)
    proposal = attacked(net, x, "l2", 2.0, queries=300)
    lengths = torch.stack([torch.linalg.vector_norm(point - x) for point in net.asked])
    assert (lengths <= 2.0 + 1e-5).all()
    assert lengths[0] < 1.6
    assert torch.linalg.vector_norm(proposal.x_adv - x) > lengths[0]


def test_squares_lie_inside_the_image_and_reach_every_place() -> None:
    x, nearly = torch.zeros(1, 1, 9, 13), 1 - 2**-24
    for side in range(1, 10):
        u = torch.tensor([[0.0, 0.0], [nearly, nearly]])
        assert _corner(u, side, x).tolist() == [[0, 0], [9 - side, 13 - side]]
    grid = torch.cartesian_prod(torch.arange(64) / 64, torch.arange(64) / 64)
    counts = torch.bincount((_corner(grid, 2, x) * torch.tensor([12, 1])).sum(1), minlength=96)
    assert counts.min() > 0
    assert counts.max() <= 2 * counts.min()


def test_it_finds_the_optimum_of_a_linear_function() -> None:
    net = Recorded((1, 6, 6), 1000.0)
    net.logits = lambda x: torch.stack([torch.einsum("nchw,chw->n", x.double(), net.w[0]), torch.zeros(len(x))], 1)  # type: ignore[method-assign]
    x = image((1, 6, 6), 0.3, 0.7, n=4) + 100  # far on the right side of the border at 0, whatever the box
    y = (net.logits(x)[:, 0] < 0).long()
    for norm, eps, best, least in (
        ("linf", 0.1, 0.1 * net.w[0].abs().sum(), 0.999),
        ("l2", 0.3, 0.3 * net.w[0].norm(), 0.7),
    ):
        threat = Threat(norm, eps, (0.0, 200.0))  # type: ignore[arg-type]
        proposal = Square(queries=1000).perturb(WhiteBoxModel(net, traced=False), x, y, threat, ExampleRng(0, range(4)))
        gain = (net.logits(x)[:, 0] - net.logits(proposal.x_adv)[:, 0]).abs()
        assert (gain <= best * 1.001).all()
        assert (gain >= least * best).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.5)])
def test_an_example_that_is_fooled_is_asked_no_more_and_restarts_only_help(norm: Norm, eps: float) -> None:
    x = image((3, 8, 8), n=30)
    net = Recorded((3, 8, 8), 0.0)
    clean = net.logits(x)
    net.lead = torch.tensor([float((clean[:, 1:].amax(1) - clean[:, 0]).max()) + 0.3, 0.0, 0.0], dtype=torch.float64)
    y, white_box = torch.zeros(30, dtype=torch.int64), WhiteBoxModel(net, traced=False)
    once = attacked(net, x, norm, eps, queries=2 * BLOCK + 10)
    assert sum(map(len, net.asked)) == once.queries.sum()
    fooled = white_box.fooled(once.x_adv, y)
    assert 0 < fooled.sum() < 30
    assert (once.queries[~fooled] == 2 * BLOCK + 10).all()
    assert (once.queries[fooled] < 2 * BLOCK + 10).any()
    thrice = attacked(net, x, norm, eps, queries=2 * BLOCK + 10, restarts=3)
    assert torch.equal(thrice.x_adv[fooled], once.x_adv[fooled])
    assert (thrice.queries[~fooled] > 2 * BLOCK + 10).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_all_examples_may_be_fooled_at_the_same_query(norm: Norm) -> None:
    net = Recorded((3, 8, 8), 0.0)
    x = image((3, 8, 8)).expand(3, -1, -1, -1)
    for lead in (-50.0, 50.0 if norm == "linf" else 10.0):
        net.lead[0] = lead
        threat = Threat(norm, 1.0 if norm == "linf" else 9.0)
        proposal = Square(queries=100).perturb(
            WhiteBoxModel(net, traced=False), x, torch.zeros(3, dtype=torch.int64), threat, ExampleRng(0, [7] * 3)
        )
        assert (proposal.queries == proposal.queries[0]).all()
        assert WhiteBoxModel(net).fooled(proposal.x_adv, torch.zeros(3, dtype=torch.int64)).all()
        assert (proposal.queries[0] == 1) == (lead < 0)


def test_parameters_are_checked() -> None:
    for params, message in (
        ({"queries": 0}, "expected queries >= 1, got 0"),
        ({"restarts": 0}, "expected restarts >= 1, got 0"),
        ({"p_init": -0.1}, "expected p_init >= 0, got -0.1"),
    ):
        with pytest.raises(UserError, match=message):
            Square(**params)


# --- peers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
def test_robust_accuracy_on_a_real_network_is_not_above_that_of_peers(
    norm: Norm, eps: float, real_network: tuple[nn.Module, Tensor, Tensor]
) -> None:
    ta, aa = pytest.importorskip("torchattacks"), pytest.importorskip("pyautoattack.square")
    resnet, x, y = real_network
    white_box = WhiteBoxModel(resnet)
    right = ~white_box.fooled(x, y)
    x, y = x[right], y[right]
    kind = norm.capitalize()
    others = [
        aa.SquareAttack(resnet, norm=kind, n_queries=199, eps=eps, seed=0, device="cpu").perturb(x, y),
        ta.Square(resnet, norm=kind, eps=eps, n_queries=199, seed=0)(x, y),
    ]
    proposal = Square(queries=200).perturb(white_box, x, y, Threat(norm, eps), ExampleRng(0, range(len(y))))
    robust = int((~white_box.fooled(proposal.x_adv, y)).sum())
    for other in others:
        assert robust / len(y) <= wilson(int((~white_box.fooled(other, y)).sum()), len(y)).high
