import hashlib

import numpy as np
import pytest
import torch
from numpy.random import Generator, Philox
from scipy import stats
from torch import Tensor

from robustbench_bio.core.rng import ExampleRng, torch_generator

LIKE = torch.empty(0)


def uniform(seed: int, ids: list[int], tag: str = "t", shape: tuple[int, ...] = (4,)) -> Tensor:
    return ExampleRng(seed, ids, tag).uniform(shape, LIKE)


def test_a_draw_belongs_to_the_example_not_to_its_batch() -> None:
    whole = uniform(3, list(range(20)))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(3, order.tolist()), whole[order])
    assert torch.equal(torch.cat([uniform(3, [*range(first, first + 5)]) for first in range(0, 20, 5)]), whole)
    assert torch.equal(uniform(3, [17]), whole[17:18])


def test_later_draws_do_not_depend_on_dropped_neighbours() -> None:
    rng = ExampleRng(3, range(6), "t")
    alone = ExampleRng(3, [4], "t")
    rng.uniform((2,), LIKE)
    alone.uniform((2,), LIKE)
    kept = rng.take(torch.tensor([False, False, True, False, True, False]))
    assert kept.ids == [2, 4]
    assert torch.equal(kept.uniform((3,), LIKE)[1:], alone.uniform((3,), LIKE))
    again = kept.take(torch.tensor([1]))
    assert again.ids == [4]
    assert torch.equal(again.normal((3,), LIKE), alone.normal((3,), LIKE))


def test_children_start_anew_whatever_the_parent_has_drawn() -> None:
    rng = ExampleRng(3, range(6), "t")
    rng.uniform((5,), LIKE)
    child = rng.take(torch.tensor([5, 1])).child("0")
    fresh = ExampleRng(3, [5, 1], "t").child("0")
    assert torch.equal(child.uniform((4,), LIKE), fresh.uniform((4,), LIKE))
    assert not torch.equal(rng.child("0").uniform((4,), LIKE), rng.child("1").uniform((4,), LIKE))
    assert not torch.equal(fresh.child("0").uniform((4,), LIKE), ExampleRng(3, [5, 1], "t").uniform((4,), LIKE))


def test_seed_tag_and_id_each_give_another_stream() -> None:
    keys = [
        (0, 0, "t"),
        (1, 0, "t"),
        (-1, 0, "t"),
        (0, 1, "t"),
        (0, -1, "t"),
        (0, -2, "t"),
        (2, -1, "t"),
        (2, -2, "t"),
        (0, 0, "u"),
        (0, 0, ""),
        (11, 0, ""),
        (1, 0, "1"),
    ]
    draws = {tuple(uniform(seed, [row], tag).flatten().tolist()) for seed, row, tag in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize("seed", range(8))
def test_streams_are_philox_keyed_by_hash_and_id(seed: int) -> None:
    key = int.from_bytes(hashlib.sha256(f"{seed}|pgd".encode()).digest()[:8], "little")
    expected = Generator(Philox(key=key | 41 << 64)).random(5, dtype=np.float32)
    assert uniform(seed, [41], "pgd", (5,))[0].tolist() == expected.tolist()


def test_uniform_draws_are_uniform_within_and_across_examples() -> None:
    draws = uniform(0, list(range(400)), shape=(50,))
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(draws[:, 0].numpy(), "uniform").pvalue > 1e-3
    neighbours = np.corrcoef(draws[:-1, 0].numpy(), draws[1:, 0].numpy())[0, 1]
    assert abs(neighbours) < 4 / 400**0.5


def test_normal_draws_are_normal() -> None:
    draws = ExampleRng(0, range(400), "n").normal((50,), LIKE)
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_shape_and_type_asked_for(dtype: torch.dtype) -> None:
    rng = ExampleRng(0, torch.tensor([4, 9]), "t")
    like = torch.empty(0, dtype=dtype)
    assert len(rng) == 2
    assert rng.uniform((3, 2, 2), like).shape == (2, 3, 2, 2)
    assert rng.uniform((), like).shape == (2,)
    assert rng.normal((1,), like).dtype == dtype
    nobody = rng.take(torch.tensor([False, False]))
    assert nobody.uniform((3,), like).shape == (0, 3)


@pytest.mark.usefixtures("global_rng_untouched")
def test_the_global_generators_are_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    uniform(0, [1, 2])
    ExampleRng(0, [1]).normal((2,), LIKE)
    torch.rand(3, generator=torch_generator(0, "x"))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_a_torch_generator_is_its_key() -> None:
    def draw(*key: int | str) -> list[float]:
        return torch.rand(4, generator=torch_generator(*key)).tolist()

    first = draw(0, "order", 1)
    torch.manual_seed(123)
    torch.rand(10)
    assert draw(0, "order", 1) == first
    others = [draw(0, "order", 2), draw(1, "order", 1), draw(0, "augment", 1), draw(0, "order"), draw()]
    assert first not in others
    assert len({tuple(d) for d in others}) == len(others)


def test_the_same_numbers_come_out_of_every_process() -> None:
    # Golden: whatever changes these changes every published number.
    assert uniform(0, [0], "pgd", (2,))[0].tolist() == [0.9490224719047546, 0.7737745642662048]
    assert torch.rand(2, generator=torch_generator(0, "weights")).tolist() == [0.25352901220321655, 0.7389575242996216]
