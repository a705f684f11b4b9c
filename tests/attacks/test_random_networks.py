"""Every attack on a network that answers at random: judged by its mean, none may end where it was merely lucky."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_bio import load_model
from robustbench_bio.attacks import ATTACKS, WhiteBoxModel, make
from robustbench_bio.attacks.access.mean_prediction import SURE, MeanPrediction
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.datasets import load_examples
from robustbench_bio.records.threat import Norm, Threat

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

DRAWS = 20

#: Attacks whose many steps follow a gradient.
CLIMBERS = ("apgd-ce", "apgd-dlr", "apgd-t", "autoattack", "fab-t", "mi-fgsm", "pgd", "swift")

BUDGET = {"steps": 10, "targets": 3, "queries": 60, "population": 10, "generations": 3, "halvings": 2,
          "restarts": 1}  # fmt: skip

RADII: dict[Norm, float] = {"linf": 20 / 255, "l2": 0.9, "l1": 4.0, "l0": 1}


def these(names: Iterable[str], fast: tuple[str, ...]) -> list[Any]:
    """Return attacks to test, all but a few of them in the slow suite."""
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.slow) for name in names]


class Jittered(nn.Module):
    """A network of the zoo behind Gaussian noise on its input, which counts the rows that it sees."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.net(x + 0.1 * torch.randn_like(x))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def net() -> Jittered:
    return Jittered(load_model("pc-cnn")).eval()


@pytest.fixture(scope="module")
def examples(net: Jittered) -> tuple[Tensor, Tensor]:
    """Forty test digits that the mean answer gets right."""
    data = load_examples("digits", "test", 60)
    x, y = torch.from_numpy(data.x).float() / 255, torch.from_numpy(data.y)
    right = MeanPrediction(net, DRAWS, 0, "judge")(x).argmax(1) == y
    return x[right][:40], y[right][:40]


def attacked(name: str, net: Jittered, examples: tuple[Tensor, Tensor], **params: Any) -> tuple[int, Tensor, int]:
    """Return how many the judge leaves, the queries, and the rows that went through the network."""
    x, y = examples
    cls = ATTACKS.get(name)
    norm: Norm = max(cls.norms, key=lambda one: (one == "linf", one))
    fields = {field.name for field in dataclasses.fields(cls)}
    attack = make(name, norm, {key: value for key, value in BUDGET.items() if key in fields} | params)
    white_box = WhiteBoxModel(net, "eot:8", draws=DRAWS, traced=False)
    before = net.rows
    proposal = attack.perturb(white_box, x, y, Threat(norm, RADII[norm]), ExampleRng(0, range(len(y))))
    passed = net.rows - before
    return left(net, proposal.x_adv, y), proposal.queries, passed


def left(net: Jittered, x_adv: Tensor, y: Tensor) -> int:
    return int((MeanPrediction(net, DRAWS, 0, "judge")(x_adv).argmax(1) == y).sum())


@pytest.fixture(scope="module")
def by_pgd(net: Jittered, examples: tuple[Tensor, Tensor]) -> int:
    """What ten steps along the mean gradient leave, without any of the package's loops."""
    x, y = examples
    threat = Threat("linf", RADII["linf"])
    white_box, point = WhiteBoxModel(net, "eot:8", draws=DRAWS), x.clone()
    for _ in range(10):
        gradient = white_box.gradient(point, y, lambda z, t: nn.functional.cross_entropy(z, t, reduction="none"))
        point = (point + threat.eps / 4 * gradient.gradient.sign()).clamp(x - threat.eps, x + threat.eps).clamp(0, 1)
    return left(net, point, y)


@pytest.mark.parametrize("name", these(CLIMBERS, fast=("apgd-t", "pgd")))
def test_no_attack_is_weaker_than_plain_ascent_along_the_mean_gradient(
    name: str, net: Jittered, examples: tuple[Tensor, Tensor], by_pgd: int
) -> None:
    assert 8 < by_pgd < 32
    # Three are within the noise of the judge's draws; before the mean answer weighed attempts, apgd-t left 36 of 40.
    assert attacked(name, net, examples, steps=20 if name == "fab-t" else 10)[0] <= by_pgd + 3


@pytest.mark.parametrize(
    "name", these(sorted({*ATTACKS.names()} - {"transfer", "autoattack"}), fast=("apgd-ce", "fab-t", "pgd", "square"))
)
def test_queries_are_forward_passes(name: str, net: Jittered, examples: tuple[Tensor, Tensor]) -> None:
    x, y = examples
    _, queries, passed = attacked(name, net, (x[:3], y[:3]))
    assert queries.sum().item() == passed


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key", "few", "many"), [
    ("pgd", "steps", 3, 30), ("pgd", "restarts", 1, 3), ("apgd-ce", "steps", 5, 40), ("apgd-t", "targets", 1, 4),
    ("fab-t", "steps", 5, 20), ("square", "queries", 20, 200), ("noise", "queries", 2, 30),
])  # fmt: skip
def test_more_work_is_not_weaker(
    name: str, key: str, few: int, many: int, net: Jittered, examples: tuple[Tensor, Tensor]
) -> None:
    less, more = (attacked(name, net, examples, **{key: value})[0] for value in (few, many))
    assert more <= less + 1


class Votes(nn.Module):
    """Class 1 with a probability that the first pixel says, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.rand(len(x)) < x[:, 0, 0, 0]
        return torch.stack([~ones, ones], 1).float() * 10


def test_a_lead_counts_beyond_the_noise_of_its_draws() -> None:
    x = torch.zeros(300, 1, 1, 1)
    x[100:200], x[200:] = 0.6, 0.999
    mean = MeanPrediction(Votes().eval(), DRAWS, 0, "attack")
    margin, sure = mean.lead(x, torch.zeros(300, dtype=torch.int64))
    assert not sure[:100].any() and sure[200:].float().mean() > 0.95  # noqa: PT018
    # Most of those that vote 60 to 40 seem fooled, and half a dozen of them would not be when asked again.
    assert (margin[100:200] > 0).float().mean() > 0.5 and sure[100:200].float().mean() < 0.1  # noqa: PT018
    # Against the closed form: k votes of 20 for class 1 lead by (2k − 20)/20, with variance 1 − lead² per draw, and
    # the softmax of ten against zero in place of a vote.
    votes = torch.arange(DRAWS + 1)
    lead = (2 * votes - DRAWS) / DRAWS
    first = votes[lead > SURE * ((1 - lead**2) / DRAWS) ** 0.5][0].item()
    chance = torch.sigmoid(torch.tensor(10.0))
    p = ((margin.exp() / (1 + margin.exp())) - (1 - chance)) / (2 * chance - 1)
    assert torch.equal(sure, (p * DRAWS).round() >= first)


def test_draws_of_the_judge_are_its_own() -> None:
    x = torch.rand(50, 1, 8, 8, generator=torch_generator(0, "x"))
    judge, attacker = (MeanPrediction(Votes().eval(), DRAWS, 0, purpose) for purpose in ("judge", "attack"))
    assert not torch.equal(judge(x), attacker(x))
    y = torch.zeros(50, dtype=torch.int64)
    torch.testing.assert_close(attacker.lead(x, y)[0], attacker(x)[:, 1] - attacker(x)[:, 0])
