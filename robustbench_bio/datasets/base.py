"""What a data set is: labelled images from one source, with a licence."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import Registry

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Examples:
    """Labelled images.

    Args:
        x: uint8 [N, C, H, W]; the input in [0, 1] is x / 255.
        y: int64 [N].
        ids: int64 [N], row of each example in its split of the data set.
    """

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def sha256(self) -> str:
        """Return a hash of pixels, labels and shape: what a result says it was measured on."""
        digest = hashlib.sha256(repr(self.x.shape).encode())
        digest.update(np.ascontiguousarray(self.x).tobytes())
        digest.update(self.y.astype("<i8").tobytes())
        return digest.hexdigest()


class Dataset(ABC):
    """One source of images. A concrete class is registered under the data set's name.

    The attributes are the class's own for a registered data set, and the instance's for one read from a file.

    Attributes:
        classes: names of the labels, in label order.
        shape: (C, H, W) of one image.
        mean, std: per channel in input units [0, 1], of the train split.
        licence: short name and source of the terms.
        augmentation: which random changes keep the label, for training: any of "crop", "flip".
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    augmentation: tuple[str, ...] = ()

    @abstractmethod
    def load(self, split: Split, root: Path, n_examples: int | None = None) -> Examples:
        """Return the first `n_examples` of a split (all by default); imagenet spreads them over its classes.

        `root` holds downloaded data, and is created if a download needs it.

        Raises:
            UserError: data that is missing, damaged or not as it should be, or fewer than `n_examples`.
        """

    def is_local(self, root: Path) -> bool:
        """Tell whether loading needs no download; a data set that never downloads says so whether its data is there."""
        del root
        return True


def count(n_examples: int | None, available: int) -> int:
    """Return how many of the available examples to take, or raise `UserError` if there are not that many."""
    if n_examples is None:
        return available
    if not 1 <= n_examples <= available:
        raise UserError(f"expected n_examples in 1..{available} (all there are), got {n_examples}")
    return n_examples


DATASETS: Registry[type[Dataset]] = Registry("dataset", "robustbench_bio.datasets")
