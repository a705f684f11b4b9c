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
    """Return the first examples of a split as tensors, ready for `evaluate`.

    Args:
        dataset: a registered name, or a path that ends in .npz.
        split: "train" or "test".
        n_examples: how many; all by default.
        data_root: folder of downloaded data.
        data_file: an .npz that stands in for the named data set.

    Returns:
        x float32 [N, C, H, W] in [0, 1], y int64 [N].

    Raises:
        UserError: unknown name, missing data, or more examples asked for than there are.
    """
    return tensors(datasets.load_examples(dataset, split, n_examples, data_root=data_root, data_file=data_file))


def tensors(examples: Examples) -> "tuple[Tensor, Tensor]":
    """Return x float32 [N, C, H, W] in [0, 1] and y int64 [N]."""
    import torch

    return torch.from_numpy(examples.x).float() / 255, torch.from_numpy(examples.y)
