"""ImageNet (ILSVRC 2012) from a folder of JPEG files."""

from pathlib import Path
from typing import Any, final

import numpy as np

from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets.base import DATASETS, Dataset, Examples, Split, count

_FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}


@final
@DATASETS.register("imagenet")
class ImageNet(Dataset):
    """1,000 classes of photographs at 224×224; label k is the k-th wnid in alphabetical order.

    Read from root/imagenet/{train,val}/<wnid>/*.JPEG, test being the official validation images. There is no
    download: the licence must be accepted at the source. Classes are named by their numbers.

    Source: Russakovsky et al. 2015, "ImageNet large scale visual recognition challenge".
    """

    classes = tuple(str(label) for label in range(1000))
    shape = (3, 224, 224)
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    licence = "ImageNet terms of access, non-commercial research, www.image-net.org"
    augmentation = ("crop", "flip")

    def load(self, split: Split, root: Path, n_examples: int | None = None) -> Examples:
        """Return `n_examples` spread evenly over the sorted list of files, not the first ones.

        The list is sorted by class, so the first thousands would all have one label. Row i of n is row
        ⌊i·N/n⌋ of the N files, and its id. Shorter side to 256 pixels (bilinear, antialiased), then the
        centre 224×224; only the examples asked for are decoded, 150 kB each.
        """
        folder = root / "imagenet" / _FOLDERS[split]
        files = self._image_folder(folder)
        n = count(n_examples, len(files))
        ids = np.arange(n, dtype=np.int64) * len(files) // n
        x = np.empty((n, *self.shape), np.uint8)
        y = np.empty(n, np.int64)
        for i, row in enumerate(ids.tolist()):
            path, y[i] = files.samples[row]
            try:
                x[i] = np.asarray(files[row][0]).transpose(2, 0, 1)
            except (OSError, SyntaxError, ValueError) as error:  # what pillow raises for damaged files
                raise UserError(f"expected an image in {path}, got a damaged file: copy it again") from error
        return Examples(x, y, ids)

    def _image_folder(self, folder: Path) -> Any:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import CenterCrop, Compose, Resize

        folders = sum(entry.is_dir() for entry in folder.iterdir()) if folder.is_dir() else 0
        if folders != len(self.classes):
            raise UserError(
                f"imagenet expects 1000 class folders {folder}/<wnid>/*.JPEG, found {folders}: accept the "
                "licence at www.image-net.org and unpack ILSVRC 2012 there with one folder per class, "
                "or pass --data-file FILE.npz"
            )
        try:
            return ImageFolder(folder, transform=Compose([Resize(256), CenterCrop(224)]))
        except FileNotFoundError as error:
            raise UserError(f"expected images in every class folder of {folder}, got {error}") from error
