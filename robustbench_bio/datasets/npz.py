"""Any images in an .npz file with the key names of MedMNIST."""

import contextlib
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import opened, parsing
from robustbench_bio.datasets.base import SPLITS, Dataset, Examples, Split, count

#: Bytes of an .npz file, and of one of its arrays once unpacked: ImageNet's test split at 224 × 224 has half as many.
MAX_BYTES = 16 * 10**9

#: Classes of a file; ImageNet-21k has fewer.
MAX_CLASSES = 32_768

#: Characters of an array's header, which Python's own parser reads; those of plain arrays have some hundred.
_HEADER = 1000


@final
class NpzDataset(Dataset):
    """The images of one file, as a data set of its own.

    The file holds `train_images`, `train_labels`, `test_images`, `test_labels` (one split may be absent,
    other arrays are ignored): images uint8 [N, H, W] or [N, H, W, C], labels integer [N] or [N, 1]. Nothing
    is unpickled, and only the arrays of the split asked for are read.

    There are max label + 1 classes over both splits, named "0", "1", …. Shape, mean and std are those of the
    train split, or of the test split if there is no other; a channel of one colour gets std 1. No
    augmentation is known to keep the labels. Raises `UserError` where there is no such file, or no split in it.
    """

    licence = "not stated in the file"

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as arrays:
            self.splits = [split for split in SPLITS if f"{split}_images" in arrays.files]
            if not self.splits:
                raise UserError(_missing(path, "test", arrays))

    # Computed on first use: each reads arrays that an evaluation may not need.

    @cached_property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        with _opened(self.path) as arrays:
            highest = max(int(_labels(self.path, arrays, split).max()) for split in self.splits)
        return tuple(str(label) for label in range(highest + 1))

    @cached_property
    def shape(self) -> tuple[int, int, int]:  # type: ignore[override]
        return self._statistics[0]

    @cached_property
    def mean(self) -> tuple[float, ...]:  # type: ignore[override]
        return self._statistics[1]

    @cached_property
    def std(self) -> tuple[float, ...]:  # type: ignore[override]
        return self._statistics[2]

    @cached_property
    def _statistics(self) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
        with _opened(self.path) as arrays:
            x = _images(self.path, arrays, self.splits[0])
        n, c, h, w = x.shape
        levels = np.arange(256) / 255
        counts = np.zeros((c, 256), np.int64)
        for start in range(0, n, 256):  # blocks that stay in the cache: four times as fast
            for channel in range(c):
                pixels = x[start : start + 256, channel].ravel()
                counts[channel] += np.bincount(pixels, minlength=256)
        shares = counts / (n * h * w)
        mean = shares @ levels
        std = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1))
        return (c, h, w), tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())

    def load(self, split: Split, root: Path, n_examples: int | None = None) -> Examples:
        """Return the first `n_examples` of a split; `root` is not used."""
        del root
        with _opened(self.path) as arrays:
            y = _labels(self.path, arrays, split)
            x = _images(self.path, arrays, split)
        if len(x) != len(y):
            raise UserError(f"expected one label per image in {self.path}, got {len(x)} images and {len(y)} labels")
        n = count(n_examples, len(y))
        return Examples(np.ascontiguousarray(x[:n]), y[:n], np.arange(n))


@final
class NpzStandIn(Dataset):
    """The images of one file in place of the data set `named`, with its shape, classes and statistics."""

    def __init__(self, path: Path, name: str, named: Dataset) -> None:
        self._file, self._name = NpzDataset(path), name
        self.classes, self.shape, self.mean, self.std = named.classes, named.shape, named.mean, named.std
        self.licence, self.augmentation = named.licence, named.augmentation

    def load(self, split: Split, root: Path, n_examples: int | None = None) -> Examples:
        """Return the first `n_examples` of a split; `root` is not used."""
        examples = self._file.load(split, root, n_examples)
        shape, highest = examples.x.shape[1:], int(examples.y.max())
        place = f"in the {split} split of {self._file.path}"
        remedy = f"give a file with images of {self._name}, or use this one by its own path as the dataset"
        if shape != self.shape:
            raise UserError(f"{self._name} expects images of shape {self.shape}, got {shape} {place}: {remedy}")
        if highest >= len(self.classes):
            top = len(self.classes) - 1
            raise UserError(f"{self._name} expects labels in 0..{top}, got {highest} {place}: {remedy}")
        return examples


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    """Open the file for lazy reading; whatever it is not becomes a `UserError`."""
    with (
        opened(path, MAX_BYTES) as file,
        parsing(f"expected {path} to be an .npz file of plain arrays, got", "write it anew"),
    ):
        arrays = np.load(file, allow_pickle=False, max_header_size=_HEADER)
        if not isinstance(arrays, NpzFile):
            raise ValueError("a single array")  # noqa: TRY004  (of the file, not of an argument)
        with arrays:
            yield arrays


def _missing(path: Path, split: Split, arrays: NpzFile) -> str:
    return (
        f"expected {split}_images and {split}_labels in {path}, found {', '.join(arrays.files) or 'nothing'}"
        ": name the arrays as MedMNIST does, or ask for the other split"
    )


def _images(path: Path, arrays: NpzFile, split: Split) -> NDArray[np.uint8]:
    """Return x [N, C, H, W] of one split."""
    x = _member(path, arrays, split, "images")
    if x.dtype != np.uint8 or x.ndim not in {3, 4} or (x.ndim == 4 and x.shape[3] > 4) or x.size == 0:
        raise UserError(
            f"expected {split}_images in {path} as uint8 [N, H, W] or [N, H, W, C] with at most 4 channels, "
            f"got {x.dtype} {list(x.shape)}: store pixels as 0..255 with the channels last"
        )
    return x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)


def _labels(path: Path, arrays: NpzFile, split: Split) -> NDArray[np.int64]:
    """Return y [N] of one split."""
    y = _member(path, arrays, split, "labels")
    if y.dtype.kind not in "iu" or y.ndim == 0 or y.shape[1:] not in {(), (1,)} or y.size == 0 or y.min() < 0:
        raise UserError(
            f"expected {split}_labels in {path} as integers >= 0 of shape [N] or [N, 1], got {y.dtype} "
            f"{list(y.shape)}: give one class number per image"
        )
    if (highest := int(y.max())) >= MAX_CLASSES:
        raise UserError(
            f"expected {split}_labels in {path} below {MAX_CLASSES:,}, got {highest}: number the classes from 0"
        )
    return y.reshape(-1).astype(np.int64)


def _member(path: Path, arrays: NpzFile, split: Split, part: str) -> NDArray[Any]:
    name = f"{split}_{part}"
    if name not in arrays.files:
        raise UserError(_missing(path, split, arrays))
    members = cast("zipfile.ZipFile", arrays.zip).infolist()
    unpacked = max(info.file_size for info in members if info.filename.removesuffix(".npy") == name)
    if unpacked > MAX_BYTES:
        raise UserError(f"{path}: expected at most {MAX_BYTES:,} bytes in {name}, got {unpacked:,}: make it smaller")
    array: NDArray[Any] = arrays[name]
    if not isinstance(array, np.ndarray):  # numpy hands out the bytes of whatever else the archive holds
        raise ValueError(f"no array in {name}")  # noqa: TRY004
    return array
