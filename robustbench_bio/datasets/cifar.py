"""CIFAR-10 and CIFAR-100, read and fetched by torchvision."""

import contextlib
import http.client
import shutil
import socket
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets.base import DATASETS, Dataset, Examples, Split, count
from robustbench_bio.datasets.npz import NpzStandIn

_NO_DOWNLOAD = (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error)
_STALLED_AFTER = 30.0  # seconds without a byte


class Cifar(Dataset):
    """32×32 colour photographs: 50,000 for training, 10,000 for test, in their official order.

    A missing data set is downloaded once into `root` and checked against torchvision's MD5 sums; the official
    archive found in `root` is unpacked instead. What cannot be fetched leaves no partial files. Where there are no
    official files, `cifar10.npz` or `cifar100.npz` in `root` (see `npz.NpzDataset`) stands in for them.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    name: ClassVar[str]
    reader: ClassVar[str]  # class of torchvision.datasets
    shape = (3, 32, 32)
    licence = "none stated, for research with citation of Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html"
    augmentation = ("crop", "flip")

    def load(self, split: Split, root: Path, n_examples: int | None = None) -> Examples:
        """Return the first `n_examples` of a split, downloading the data set if it is not in `root`."""
        import torchvision.datasets

        reader = getattr(torchvision.datasets, self.reader)
        with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to results
            try:
                images = reader(root, train=split == "train")
            except RuntimeError:  # torchvision's word for missing or damaged
                stand_in = root / f"{self.name}.npz"
                if stand_in.is_file():
                    return NpzStandIn(stand_in, self.name, self).load(split, root, n_examples)
                images = self._fetched(reader, split, root)
        n = count(n_examples, len(images.data))
        x = np.ascontiguousarray(images.data[:n].transpose(0, 3, 1, 2))
        return Examples(x, np.array(images.targets[:n], np.int64), np.arange(n))

    def is_local(self, root: Path) -> bool:
        import torchvision.datasets

        reader = getattr(torchvision.datasets, self.reader)
        return any((root / name).exists() for name in (reader.base_folder, reader.filename, f"{self.name}.npz"))

    def _fetched(self, reader: Any, split: Split, root: Path) -> Any:
        try:
            with _timeout():
                return _fetch(reader, split, root)
        except _NO_DOWNLOAD as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{self.name} is not in {root} and could not be downloaded ({reason}): "
                f"put {reader.filename} or {self.name}.npz there, or pass --data-file FILE.npz"
            ) from error


def _fetch(reader: Any, split: Split, root: Path) -> Any:
    """Download or unpack beside the final place, verify, then move: `root` never holds half a data set."""
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive, extract_archive

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".fetching-") as scratch:
        archive = root / reader.filename
        if check_integrity(archive, reader.tgz_md5):
            extract_archive(archive, scratch)
        else:
            download_and_extract_archive(reader.url, scratch, filename=archive.name, md5=reader.tgz_md5)
        images = reader(scratch, train=split == "train")
        final_place = root / reader.base_folder
        if final_place.exists():  # damaged, or torchvision would have read it
            shutil.rmtree(final_place)
        (Path(scratch) / reader.base_folder).rename(final_place)
    return images


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    """Let a silent network fail: torchvision opens its connections without a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED_AFTER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@final
@DATASETS.register("cifar10")
class Cifar10(Cifar):
    """CIFAR-10: ten kinds of animals and vehicles."""

    name = "cifar10"
    reader = "CIFAR10"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)


_FINE_LABELS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@final
@DATASETS.register("cifar100")
class Cifar100(Cifar):
    """CIFAR-100: the hundred fine labels."""

    name = "cifar100"
    reader = "CIFAR100"
    classes = tuple(_FINE_LABELS.split())
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
