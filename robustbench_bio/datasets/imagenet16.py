"""ImageNet16-120: ImageNet at 16×16 pixels with its first 120 classes."""

from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets.base import DATASETS, Dataset, Examples, Split, count
from robustbench_bio.datasets.safe_pickle import read_arrays

_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"train_data_batch_{i}" for i in range(1, 11)),
    "test": ("val_data",),
}
_PIXELS = 3 * 16 * 16


@final
@DATASETS.register("imagenet16-120")
class ImageNet16(Dataset):
    """151,700 training and 6,000 test images, read from root/ImageNet16 in the format of NAS-Bench-201.

    Each file is a pickle of `data` [N, 3·16·16] uint8 and `labels` 1..1000, of which 1..120 are kept and
    become 0..119; ids count the kept images. The pickles are read as data, nothing in them is executed.
    Classes are named by their numbers.

    Source: Chrabaszcz et al. 2017, "A downsampled variant of ImageNet as an alternative to the CIFAR
    datasets"; Dong & Yang 2020, "NAS-Bench-201".
    """

    classes = tuple(str(label) for label in range(120))
    shape = (3, 16, 16)
    mean = (122.68 / 255, 116.66 / 255, 104.01 / 255)
    std = (63.22 / 255, 61.26 / 255, 65.09 / 255)
    licence = "ImageNet terms of access, non-commercial research, www.image-net.org"
    augmentation = ("crop", "flip")

    def load(self, split: Split, root: Path, n_examples: int | None = None) -> Examples:
        """Return the first `n_examples` of a split, opening no more files than that takes."""
        folder = root / "ImageNet16"
        xs: list[NDArray[np.uint8]] = []
        ys: list[NDArray[np.int64]] = []
        for name in _FILES[split]:
            if not (folder / name).is_file():
                raise UserError(
                    f"imagenet16-120 expects a file {folder / name}, found none: put the folder ImageNet16 "
                    "of NAS-Bench-201 (github.com/D-X-Y/AutoDL-Projects) there, or pass --data-file FILE.npz"
                )
            x, y = self._kept(folder / name)
            xs.append(x)
            ys.append(y)
            if n_examples is not None and sum(map(len, ys)) >= n_examples:
                break
        n = count(n_examples, sum(map(len, ys)))
        return Examples(np.concatenate(xs)[:n], np.concatenate(ys)[:n], np.arange(n))

    def _kept(self, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return x [N, 3, 16, 16] and y [N] of the 120 classes in one file."""
        arrays = read_arrays(path, ("data", "labels"))
        data, labels = arrays["data"], arrays["labels"]
        if data.dtype != np.uint8 or labels.ndim != 1 or data.shape != (len(labels), _PIXELS):
            raise UserError(
                f"expected data uint8 [N, {_PIXELS}] and labels [N] in {path}, got {data.dtype} "
                f"{list(data.shape)} and {list(labels.shape)}: use the 16×16 version of the data set"
            )
        if labels.dtype.kind not in "iu" or (len(labels) and not 1 <= labels.min() <= labels.max() <= 1000):
            raise UserError(f"expected integer labels in 1..1000 in {path}: use the files of NAS-Bench-201")
        keep = labels <= len(self.classes)
        return data[keep].reshape(-1, *self.shape), labels[keep].astype(np.int64) - 1
