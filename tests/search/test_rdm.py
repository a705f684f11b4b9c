"""Representational dissimilarity: against scipy pair by pair, closed forms, and what must leave it unchanged."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial import distance
from torch import Tensor, nn

from robustbench_bio import nets
from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import Inputs
from robustbench_bio.nets.spiking import LIF
from robustbench_bio.search.motifs import rdm
from robustbench_bio.search.motifs.genome import GenomeCode
from robustbench_bio.zoo import catalog

NORMALISED = tuple(rdm.METRICS)


def spikes(*shape: int, rate: float = 0.3, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


@pytest.mark.parametrize("metric", NORMALISED)
def test_every_pair_is_what_scipy_says(metric: str) -> None:
    seen = spikes(5, 7, 3, 4)
    trains = seen.transpose(0, 1).reshape(7, -1).numpy()
    rates = seen.mean(0).reshape(7, -1).double().numpy()
    reference = {
        "hamming": lambda i, j: distance.hamming(trains[i], trains[j]),
        "jaccard": lambda i, j: distance.jaccard(trains[i] > 0, trains[j] > 0),
        "cosine": lambda i, j: distance.cosine(rates[i], rates[j]),
        "pearson": lambda i, j: distance.correlation(rates[i], rates[j]),
        "manhattan": lambda i, j: distance.cityblock(rates[i], rates[j]) / rates.shape[1],
    }[metric]
    wanted = np.array([[reference(i, j) if i != j else 0.0 for j in range(7)] for i in range(7)])
    np.testing.assert_allclose(rdm.dissimilarity(seen, metric).numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("metric", NORMALISED)
def test_it_is_symmetric_with_a_zero_diagonal_and_knows_no_order_or_number_of_neurons(metric: str) -> None:
    seen = spikes(4, 9, 20)
    found = rdm.dissimilarity(seen, metric)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    assert (found.diagonal() == 0).all()
    assert found.sum() > 0
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rdm.dissimilarity(seen[:, :, order], metric), found)
    torch.testing.assert_close(rdm.dissimilarity(torch.cat([seen, seen], 2), metric), found)
    stimuli = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(rdm.dissimilarity(seen[:, stimuli], metric), found[stimuli][:, stimuli])


@pytest.mark.parametrize(("metric", "value"), list(product(NORMALISED, ["same", "silent", "always"])))
def test_identical_answers_are_no_distance_apart(metric: str, value: str) -> None:
    same = {"same": spikes(4, 1, 30), "silent": torch.zeros(4, 1, 30), "always": torch.ones(4, 1, 30)}[value]
    found = rdm.dissimilarity(same.expand(4, 6, 30), metric)
    torch.testing.assert_close(found, torch.zeros(6, 6, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_independent_neurons_differ_in_twice_p_times_one_minus_p(rate: float) -> None:
    n = 4 * 5000
    found = rdm.mean_off_diagonal(rdm.dissimilarity(spikes(4, 30, 5000, rate=rate), "hamming"))
    wanted = 2 * rate * (1 - rate)
    assert abs(found - wanted) < 5 * (wanted / n / 30) ** 0.5


def test_one_silent_answer_is_like_no_other() -> None:
    seen = torch.cat([torch.zeros(3, 2, 10), torch.ones(3, 1, 10)], 1)
    seen[:, 2, :5] = 0
    for metric in ("jaccard", "cosine", "pearson"):
        found = rdm.dissimilarity(seen, metric)
        assert found[0, 1] == 0
        assert found[0, 2] == found[1, 2] == 1


def test_the_released_arithmetic_is_that_of_pairwise_distance() -> None:
    seen = spikes(3, 6, 2, 5)
    apart = nn.PairwiseDistance(p=1)
    wanted = torch.zeros(6, 6, dtype=torch.float64)
    for t, i, j in product(range(3), range(6), range(6)):
        wanted[i, j] += apart(seen[t, i].flatten().double(), seen[t, j].flatten().double())
    torch.testing.assert_close(rdm.released_sum(seen), wanted, rtol=1e-12, atol=0)


def test_the_kernel_of_sahd_is_that_of_its_authors() -> None:
    seen = spikes(2, 5, 3000, rate=0.2)
    x = seen.transpose(0, 1).flatten(1).double().numpy()
    n = x.shape[1]
    for i, j in product(range(5), range(5)):
        s, r = x[i].mean(), x[j].mean()
        wanted = n - 0.5 * np.abs(x[i] - x[j]).sum() / (s * (1 - r) + (1 - s) * r + 1e-3)
        assert rdm.sahd_kernel(seen)[i, j].item() == pytest.approx(wanted, rel=1e-6)
    # Independent answers are half the diagonal; n·η in the place of η would leave n − 1/2 everywhere.
    off = rdm.mean_off_diagonal(rdm.sahd_kernel(seen))
    assert 0.49 * n < off < 0.52 * n


class Two(nn.Module):
    """Two layers of neurons, the second behind a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.factor = LIF(), nn.BatchNorm1d(8), LIF(), factor

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(self.norm(x.flatten(1)).expand(3, -1, -1))
        return self.second(self.factor * first).mean(0)


def stimuli(n: int = 2) -> list[Tensor]:
    return [torch.rand(10, 2, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(n)]


def test_dead_layers_count_with_zero_and_a_dead_end_scores_zero() -> None:
    alive, dead = (
        rdm.spike_scores(Two(2.0), stimuli(), NORMALISED, sahd=True),
        rdm.spike_scores(Two(0.0), stimuli(), NORMALISED),
    )
    assert alive["dead"] == 0
    assert dead["dead"] == 0.5
    for metric in NORMALISED:
        assert alive[f"rdm:{metric}"] > 0
        assert dead[f"rdm:{metric}"] == 0
    half = nn.Sequential(Two(2.0))
    half[0].first, half[0].second = half[0].second, half[0].first  # runs the same layers under other names
    assert rdm.spike_scores(half, stimuli(), ["hamming"])["rdm:hamming"] == alive["rdm:hamming"]


def test_a_dead_layer_in_the_middle_halves_the_mean() -> None:
    class Beside(Two):
        def forward(self, x: Tensor) -> Tensor:
            current = self.norm(x.flatten(1)).expand(3, -1, -1)
            self.first(0 * current)
            return self.second(current).mean(0)

    class Alone(Beside):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.norm(x.flatten(1)).expand(3, -1, -1)).mean(0)

    alone = rdm.spike_scores(Alone(1), stimuli())
    beside = rdm.spike_scores(Beside(1), stimuli())
    assert beside["rdm:hamming"] == pytest.approx(alone["rdm:hamming"] / 2)
    assert beside["spikes"] == alone["spikes"]


def test_scores_are_means_over_batches_and_the_network_stays_as_it_is() -> None:
    net = Two(2.0).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    both = rdm.spike_scores(net, stimuli(2), rdm.KNOWN, sahd=True)
    parts = [rdm.spike_scores(net, [x], rdm.KNOWN, sahd=True) for x in stimuli(2)]
    assert both == {name: pytest.approx((parts[0][name] + parts[1][name]) / 2) for name in both}
    assert parts[0] != parts[1]
    assert not net.training
    assert not net.first._forward_hooks
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_of_motifs_without_links_scores_zero() -> None:
    code = GenomeCode(catalog.space("mse-nas"), 6, "released")
    inputs = Inputs((1, 8, 8), 10, (0.3,), (0.4,))
    x = [torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))]

    def score(motif: int) -> dict[str, float]:
        genome = [*6 * [motif, *19 * [0]], 3]
        genotype = code.decode(genome, name="g", source="")
        net = nets.build("motifs", inputs, seed=0, genotype=genotype, channels=2, steps=3)
        return rdm.spike_scores(net, x, NORMALISED, sahd=True)

    none, one = score(0), score(1)
    assert all(none[f"rdm:{metric}"] == 0 < one[f"rdm:{metric}"] for metric in NORMALISED)
    # All neurons but those that read the stem are dead: 3 in cell 0, 1 in cell 2.
    assert none["dead"] == pytest.approx(1 - 4 / 13)
    assert one["dead"] < 0.3


def test_a_kernel_that_is_singular_is_a_finite_number() -> None:
    assert rdm.spike_scores(Two(2.0), [torch.full((6, 2, 2, 2), 0.5)], [], sahd=True)["sahd"] == rdm.SINGULAR


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="unknown metric of rdm 'haming': did you mean hamming"):
        rdm.spike_scores(Two(1.0), stimuli(), ["haming"])
    with pytest.raises(UserError, match=r"expected spikes \[steps >= 1, stimuli >= 2, neurons\], got \[0, 4, 3\]"):
        rdm.dissimilarity(torch.zeros(0, 4, 3), "hamming")
    with pytest.raises(UserError, match="expected a network with LIF layers"):
        rdm.spike_scores(nn.Linear(3, 2), [torch.zeros(2, 3)])
