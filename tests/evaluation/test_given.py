"""What is served as examples, whatever holds them, and what is refused by its name."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.evaluation.given import examples_of

X = torch.randint(256, (12, 3, 5, 6), generator=torch_generator("given"), dtype=torch.uint8)
Y = torch.arange(12) % 5
#: What every one of the forms below holds.
EXPECTED = X.float() / 255


class Images(Dataset[Any]):
    """Single images as arrays with their labels as plain numbers; knows no end but its length."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        return EXPECTED[i % 12].numpy(), int(Y[i % 12])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(EXPECTED, Y, strict=True))


def read_only() -> Any:
    array = EXPECTED.numpy().copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "data",
    [
        (EXPECTED, Y),
        [EXPECTED, Y],
        (EXPECTED.double(), Y.short()),
        (X, Y.to(torch.uint8)),
        (X.numpy(), Y.numpy().astype(np.uint16)),
        (EXPECTED.numpy(), Y.tolist()),
        (EXPECTED.numpy().astype(np.float64), Y.numpy().astype(">i4")),
        (EXPECTED.numpy().astype(">f4"), Y[:, None]),
        (EXPECTED.numpy()[::-1][::-1], Y.numpy()[:, None]),
        (read_only(), Y),
        (EXPECTED.numpy().transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2), Y),
        (EXPECTED.clone().requires_grad_(True), Y),
        TensorDataset(EXPECTED, Y),
        TensorDataset(X, Y),
        Subset(Images(), range(12)),
        Images(),
        Stream(),
        DataLoader(TensorDataset(EXPECTED, Y), batch_size=5),
        DataLoader(Images(), batch_size=5),
        DataLoader(Images(), batch_size=None),
        [(EXPECTED[:7], Y[:7]), (EXPECTED[7:], Y[7:])],
        [(image, label) for image, label in zip(EXPECTED, Y.tolist(), strict=True)],
        zip(EXPECTED.numpy(), Y.numpy()[:, None], strict=True),
    ],
)
@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("global_rng_untouched")
def test_whatever_holds_the_examples_they_are_the_same(data: Any) -> None:
    x, y = examples_of(data)
    assert (x.dtype, y.dtype, x.requires_grad) == (torch.float32, torch.int64, False)
    assert torch.equal(x, EXPECTED)
    assert torch.equal(y, Y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_outside_by_rounding_are_on_the_border(dtype: torch.dtype) -> None:
    given = EXPECTED.to(dtype, copy=True)
    beyond = torch.nextafter(torch.ones(1, dtype=dtype), torch.full((1,), 2, dtype=dtype)).item()
    given[0, 0, 0, 0], given[0, 0, 0, 1] = beyond, 1 - beyond
    before = given.clone()
    x, _ = examples_of((given, Y))
    assert (x[0, 0, 0, 0].item(), x[0, 0, 0, 1].item()) == (1, 0)
    assert torch.equal(x.flatten()[2:], before.float().flatten()[2:])
    assert torch.equal(given, before), "the caller's tensor stays as it is"


class Ragged(Images):
    def __getitem__(self, i: int) -> Any:
        return EXPECTED[i][:, i // 6 :], 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((EXPECTED * 255, Y), "expected inputs in [0, 1], got [0, 255]: divide by 255, or pass x as uint8"),
        (((EXPECTED - 0.5) / 0.2, Y), "expected inputs in [0, 1], got [-2.5, 2.5]: put the normalisation inside"),
        ((EXPECTED * 0 + 1 + 1e-6, Y), "expected inputs in [0, 1], got [1, 1]"),
        ((EXPECTED - 1e-6, Y), "expected inputs in [0, 1], got [-1e-06, 1]"),
        ((torch.where(EXPECTED > 0.9, math.nan, EXPECTED), Y), "expected finite inputs"),
        ((EXPECTED.double() / 0, Y), "expected finite inputs"),
        (((EXPECTED > 0.5).to(torch.uint8), Y), "expected uint8 images in 0…255, got none above 1"),
        ((EXPECTED.long(), Y), "expected x as floats in [0, 1] or as uint8 in 0…255, got int64"),
        ((EXPECTED > 0.5, Y), "expected x as floats in [0, 1] or as uint8 in 0…255, got bool"),
        ((EXPECTED[0], Y), "expected x as [N, C, H, W], got float32 (3, 5, 6): pass x[:, None] for grey images"),
        ((EXPECTED.flatten(1), Y), "expected x as [N, C, H, W], got float32 (12, 90): pass x[:, :, None, None]"),
        ((EXPECTED[:, None], Y), "expected x as [N, C, H, W], got float32 (12, 1, 3, 5, 6)"),
        ((EXPECTED.permute(0, 2, 3, 1), Y), "got (12, 5, 6, 3), which looks like [N, H, W, C]: pass x.permute("),
        ((EXPECTED[:, :1].permute(0, 2, 3, 1).numpy(), Y), "got (12, 5, 6, 1), which looks like [N, H, W, C]"),
        ((EXPECTED[:0], Y[:0]), "expected at least one example, got an empty slice"),
        ([], "expected at least one example, got an empty slice"),
        ((EXPECTED, Y[:-1]), "expected y as integers [12], a label for each row of x, got int64 (11,)"),
        ((EXPECTED, F.one_hot(Y, 5)), "expected y as integers [12], got int64 (12, 5): of one-hot labels pass"),
        ((EXPECTED, Y.float()), "expected y as integers [12], got float32 (12,): pass y as int64"),
        ((EXPECTED, Y > 2), "expected y as integers [12], got bool (12,)"),
        ((EXPECTED, None), "expected y as a tensor or an array of numbers, got NoneType"),
        ((EXPECTED, ["cat"] * 12), "expected y as a tensor or an array of numbers, got list"),
        ((EXPECTED, [[1], [1, 2]]), "expected y as a tensor or an array, got list"),
        (EXPECTED, "expected data as (x, y), a DataLoader or a Dataset, got Tensor"),
        (EXPECTED.numpy(), "expected data as (x, y), a DataLoader or a Dataset, got ndarray"),
        ({"x": EXPECTED, "y": Y}, "expected data as (x, y), a DataLoader or a Dataset, got dict"),
        ("digits", "expected data as (x, y), a DataLoader or a Dataset, got str"),
        (None, "expected data as (x, y), a DataLoader or a Dataset, got NoneType"),
        ((EXPECTED, Y, Y), "expected data that yields pairs (x, y), got Tensor"),
        ([{"image": EXPECTED[0], "label": 1}], "expected data that yields pairs (x, y), got dict"),
        (TensorDataset(EXPECTED), "expected data that yields pairs (x, y), got tuple of 1"),
        (TensorDataset(EXPECTED[:, 0], Y), "expected images [C, H, W] or batches [N, C, H, W] in the data"),
        (Ragged(), "expected images of one shape, got [(3, 4, 6), (3, 5, 6)]"),
    ],
)
def test_what_cannot_be_attacked_is_refused_by_its_name(data: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        examples_of(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(6, 1, 1), (6, 7, 5), (2, 8, 3), (3, 5, 1), (4, 28, 28)])
def test_an_unusual_shape_is_not_taken_for_another_order(shape: tuple[int, ...]) -> None:
    assert examples_of((torch.zeros(2, *shape), [0, 1]))[0].shape == (2, *shape)
