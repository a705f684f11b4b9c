"""Labelled images, one file a source: open a data set by name or by file, load a split of it.

A source joins by a file with a registered `Dataset`. Loads no torch before it is needed.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.datasets.base import DATASETS, SPLITS, Dataset, Examples, Split
from robustbench_bio.datasets.npz import NpzDataset, NpzStandIn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DATASETS", "SPLITS", "Dataset", "Examples", "Split", "default_root", "load_data", "load_examples", "open_dataset",
    "tensors",
]  # fmt: skip


def default_root() -> Path:
    """Return the folder of data: $BIOROBUST_DATA, else $BIOROBUST_HOME/data, else ~/.cache/biorobust/data."""
    if data := os.environ.get("BIOROBUST_DATA"):
        return Path(data).expanduser()
    home = os.environ.get("BIOROBUST_HOME") or "~/.cache/biorobust"
    return Path(home).expanduser() / "data"


def open_dataset(name: str, data_file: str | Path | None = None) -> Dataset:
    """Return a data set by name, or the one in an .npz file (see `npz.NpzDataset`); reads no images yet.

    The images of `data_file` stand in for those of a data set by name. Raises `UserError` for an unknown name, a file
    that is not there, or two files.
    """
    if name.endswith(".npz"):
        if data_file is not None:
            raise UserError(f"expected one file, got {name} and {data_file}: leave one out")
        return NpzDataset(Path(name).expanduser())
    named = DATASETS.get(name)()
    return named if data_file is None else NpzStandIn(Path(data_file).expanduser(), name, named)


def load_examples(
    dataset: str = "digits",
    split: str = "test",
    n_examples: int | None = None,
    *,
    data_root: str | Path | None = None,
    data_file: str | Path | None = None,
) -> Examples:
    """Return the first `n_examples` of a split: uint8 [N, C, H, W] with labels and ids.

    Args:
        dataset: a registered name, or a path that ends in .npz.
        split: "train" or "test".
        n_examples: how many (all by default); imagenet spreads them over its classes.
        data_root: folder of downloaded data, `default_root()` by default.
        data_file: an .npz file whose images stand in for those of the named data set.

    Raises:
        UserError: an unknown name or split, a number of examples that is not there, or missing data.
    """
    source = open_dataset(dataset, data_file)
    if split not in SPLITS:
        raise UserError(unknown("split", split, SPLITS))
    if n_examples is not None and n_examples < 1:  # before a download, not after it
        raise UserError(f"expected n_examples >= 1, got {n_examples}")
    root = default_root() if data_root is None else Path(data_root).expanduser()
    return source.load(split, root, n_examples)


def load_data(
    dataset: str = "digits",
    split: str = "test",
    n_examples: int | None = None,
    *,
    data_root: str | Path | None = None,
    data_file: str | Path | None = None,
) -> "tuple[Tensor, Tensor]":
    """Return the first examples of a split as tensors, ready for `evaluate`: arguments and errors of `load_examples`.

    Returns:
        x float32 [N, C, H, W] in [0, 1], y int64 [N].
    """
    return tensors(load_examples(dataset, split, n_examples, data_root=data_root, data_file=data_file))


def tensors(examples: Examples) -> "tuple[Tensor, Tensor]":
    """Return x float32 [N, C, H, W] in [0, 1] and y int64 [N]."""
    import torch

    return torch.from_numpy(examples.x).float() / 255, torch.from_numpy(examples.y)
