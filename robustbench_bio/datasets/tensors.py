"""Examples as tensors. Loads no torch before it is needed."""

from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_bio import datasets
from robustbench_bio.datasets.base import Examples

if TYPE_CHECKING:
    from torch import Tensor


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
    return tensors(datasets.load_examples(dataset, split, n_examples, data_root=data_root, data_file=data_file))


def tensors(examples: Examples) -> "tuple[Tensor, Tensor]":
    """Return x float32 [N, C, H, W] in [0, 1] and y int64 [N]."""
    import torch

    return torch.from_numpy(examples.x).float() / 255, torch.from_numpy(examples.y)
