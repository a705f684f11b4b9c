"""Handwritten digits of 8×8 pixels: real images that need no download."""

import contextlib
import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets.base import DATASETS, Dataset, Examples, Split, count

#: `Examples.sha256` of each whole split.
SHA256: dict[Split, str] = {
    "train": "b89abc946983a82fd3d7c6f48c00adebfbb1e2ed0bec3481e80d8c1024bdf726",
    "test": "3a5b9a7d06e1e4622f04ca9fa1a5c31ce3f97eb2d9776595d49fcd77dc47b435",
}

_TEST_PER_CLASS = 50
_SALT = "biorobust/digits"


@final
@DATASETS.register("digits")
class Digits(Dataset):
    """The 1,797 digits bundled with scikit-learn: 500 for test (50 of each class), 1,297 for training.

    Grey values 0..16 become round(v · 255/16). Both splits go round the classes, so the first n examples are
    nearly balanced. The same writers are in both splits.

    Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI (its test part). The
    source has no split of these images; this one is ours and fixed.
    """

    classes = tuple(str(digit) for digit in range(10))
    shape = (1, 8, 8)
    mean = (0.305976,)
    std = (0.376163,)
    licence = "CC BY 4.0, UCI Machine Learning Repository, Optical Recognition of Handwritten Digits"
    augmentation = ("crop",)

    def load(self, split: Split, root: Path, n_examples: int | None = None) -> Examples:
        """Return the first `n_examples` of a split; `root` is not used."""
        del root
        table = _table()
        labels = table[:, 64]
        rows = _split_rows(labels.tolist())[split]
        x = np.rint(table[rows, :64].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        whole = Examples(x, labels[rows], np.arange(len(rows)))
        if whole.sha256() != SHA256[split]:
            raise UserError(
                f"expected digits/{split} with sha256 {SHA256[split][:12]}…, got {whole.sha256()[:12]}…: "
                "the installed scikit-learn bundles other images, reinstall scikit-learn"
            )
        n = count(n_examples, len(whole))
        return Examples(whole.x[:n], whole.y[:n], whole.ids[:n])


def _table() -> NDArray[np.int64]:
    """Return scikit-learn's table, [1797, 65]: 64 grey values and the label.

    The file is read where it lies, since importing scikit-learn takes longer than many an evaluation.
    """
    module = importlib.util.find_spec("sklearn")
    if module is not None and module.origin is not None:
        path = Path(module.origin).parent / "datasets" / "data" / "digits.csv.gz"
        with contextlib.suppress(OSError, ValueError), gzip.open(path, "rt") as lines:
            return np.loadtxt(lines, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.int64)


def _split_rows(labels: list[int]) -> dict[Split, list[int]]:
    """Return the source rows of each split, from nothing but the labels and a fixed salt."""
    digests = [hashlib.sha256(f"{_SALT}/{row}".encode()).digest() for row in range(len(labels))]
    rounds: list[tuple[int, bytes, int]] = []  # the k-th example of every class belongs to round k
    seen = [0] * 10
    for row in sorted(range(len(labels)), key=digests.__getitem__):
        rounds.append((seen[labels[row]], digests[row], row))
        seen[labels[row]] += 1
    rounds.sort()
    return {
        "test": [row for turn, _, row in rounds if turn < _TEST_PER_CLASS],
        "train": [row for turn, _, row in rounds if turn >= _TEST_PER_CLASS],
    }
