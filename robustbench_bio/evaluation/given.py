"""What a caller gives as examples, as tensors that can be attacked."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from robustbench_bio.core.errors import UserError

#: Examples as a caller may give them: x and y as tensors or arrays, or what yields pairs of them, images or batches.
Data = tuple[Any, Any] | list[Any] | Dataset[Any] | Iterable[Any]

#: How many units in the last place a value may lie outside [0, 1] and still be taken for rounding.
_ROUNDING = 4

#: Channels that images have.
_COLOURS = (1, 3, 4)


def examples_of(data: Data) -> tuple[Tensor, Tensor]:
    """Return x float32 [N, C, H, W] in [0, 1] and y int64 [N] of what a caller gives; the caller's own stays as it is.

    Floats of any precision are rounded to float32, those outside [0, 1] by rounding alone are set to the border,
    and uint8 is divided by 255. Labels may be any integers, [N] or [N, 1].

    Args:
        data: (x, y) as tensors or NumPy arrays, or a `DataLoader`, a `Dataset` or another iterable of pairs (x, y), of
            single images [C, H, W] or of batches.

    Raises:
        UserError: it is nothing of the kind, or its values are no images in [0, 1] with labels.
    """
    if _is_pair(data):
        x, y = data  # type: ignore[misc]
        return _checked(_tensor(x, "x"), _tensor(y, "y"))
    if not isinstance(data, Dataset | Iterable) or isinstance(data, str | bytes | dict | Tensor | np.ndarray):
        raise UserError(
            f"expected data as (x, y), a DataLoader or a Dataset, got {type(data).__name__}: pass data=(x, y)"
        )
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed from the global generator, shuffled or not
        pairs = [(_images(_tensor(x, "x")), _labels(_tensor(y, "y"))) for x, y in _pairs(data)]
    if not pairs:
        raise UserError("expected at least one example, got an empty slice")
    shapes = {tuple(x.shape[1:]) for x, _ in pairs}
    if len(shapes) > 1:
        raise UserError(f"expected images of one shape, got {sorted(shapes)}: resize or crop them")
    return _checked(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))


def _is_pair(data: object) -> bool:
    """Tell (x, y) from a sequence of two batches, each of which is a pair itself."""
    return isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], tuple | list)


def _pairs(data: Any) -> Iterator[tuple[Any, Any]]:
    indexed = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    for item in (data[i] for i in range(len(data))) if indexed else data:
        if not isinstance(item, tuple | list) or len(item) != 2:
            size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise UserError(
                f"expected data that yields pairs (x, y), got {type(item).__name__}{size}: "
                "pass data=(x, y), two tensors"
            )
        yield item[0], item[1]


def _images(x: Tensor) -> Tensor:
    """Return a single image as a batch of one, a batch as it is."""
    if x.ndim not in (3, 4):
        raise UserError(
            f"expected images [C, H, W] or batches [N, C, H, W] in the data, got {tuple(x.shape)}: "
            "give each image an axis of channels, as torchvision's ToTensor does"
        )
    return x[None] if x.ndim == 3 else x


def _labels(y: Tensor) -> Tensor:
    return y[None] if y.ndim == 0 else y


def _tensor(values: Any, name: str) -> Tensor:
    """Return a tensor of a tensor, an array, a number or what NumPy takes for an array; shares memory at most."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
        if array.dtype.kind == "f":
            # Rounded to float32 here: torch has neither long doubles nor the other order of bytes.
            return torch.from_numpy(array.astype(np.float32))
        if array.dtype.kind in "iu":
            return torch.from_numpy(array.astype(np.uint8 if array.dtype == np.uint8 else np.int64))
    except (ValueError, TypeError) as error:
        raise UserError(f"expected {name} as a tensor or an array, got {type(values).__name__}: {error}") from None
    raise UserError(f"expected {name} as a tensor or an array of numbers, got {type(values).__name__} of {array.dtype}")


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    _check_shape(x)
    labels = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    got = f"{_dtype(y)} {tuple(y.shape)}"
    if labels.ndim == 2:
        raise UserError(f"expected y as integers [{len(x)}], got {got}: of one-hot labels pass y.argmax(1)")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UserError(f"expected y as integers [{len(x)}], got {got}: pass y as int64")
    if labels.shape != (len(x),):
        raise UserError(f"expected y as integers [{len(x)}], a label for each row of x, got {got}")
    return _pixels(x), labels.long()


def _check_shape(x: Tensor) -> None:
    shape = tuple(x.shape)
    if x.ndim != 4:
        remedies = {
            2: ": pass x[:, :, None, None]",
            3: ": pass x[:, None] for grey images, x[None] for a single one",
        }
        raise UserError(f"expected x as [N, C, H, W], got {_dtype(x)} {shape}{remedies.get(x.ndim, '')}")
    if x.numel() == 0:
        raise UserError("expected at least one example, got an empty slice")
    if shape[3] in _COLOURS and min(shape[1:3]) > max(_COLOURS):
        raise UserError(
            f"expected x as [N, C, H, W], got {shape}, which looks like [N, H, W, C]: "
            "pass x.permute(0, 3, 1, 2), or x.transpose(0, 3, 1, 2) of an array"
        )


def _pixels(x: Tensor) -> Tensor:
    """Return x as float32 in [0, 1]."""
    if x.dtype == torch.uint8:
        if x.max() == 1:
            raise UserError(
                "expected uint8 images in 0…255, got none above 1: if they are in [0, 1], pass x as float32"
            )
        return x.float() / 255
    if not x.is_floating_point():
        raise UserError(
            f"expected x as floats in [0, 1] or as uint8 in 0…255, got {_dtype(x)}: pass it as one of these"
        )
    slack = _ROUNDING * max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps)
    x = x.float()
    if not torch.isfinite(x).all():
        raise UserError("expected finite inputs, got NaN or infinity in x")
    low, high = x.min().item(), x.max().item()
    if low < -slack or high > 1 + slack:
        scaled = low >= 0 and 2 < high <= 255
        remedy = "divide by 255, or pass x as uint8" if scaled else "put the normalisation inside the model"
        raise UserError(f"expected inputs in [0, 1], got [{low:.3g}, {high:.3g}]: {remedy}")
    return x if low >= 0 and high <= 1 else x.clamp(0, 1)


def _dtype(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
