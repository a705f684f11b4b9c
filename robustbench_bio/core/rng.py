"""Random draws that belong to examples, not to batches."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator, Philox
from numpy.typing import NDArray
from torch import Tensor


class ExampleRng:
    """One independent random stream per example, keyed by (seed, tag, example id).

    What an example draws depends on nothing but its key and on how often it has drawn: not on the batch it
    sits in, its place there, the batch size, or which of its neighbours were dropped on the way. So a number
    measured in batches of 32 is the number measured in batches of 500, and shards can be merged.

    Streams are Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        seed: any integer.
        ids: one integer per example, such as its row in the data set.
        tag: separates the streams of different purposes under one seed.
    """

    def __init__(self, seed: int, ids: Sequence[int] | Tensor, tag: str = "") -> None:
        self.seed = seed
        self.tag = tag
        self.ids = [int(i) for i in ids]
        digest = hashlib.sha256(f"{seed}|{tag}".encode()).digest()
        key = int.from_bytes(digest[:8], "little")
        # As uint64: numpy turns a list of a large and a small integer into floats, which merges keys.
        keys = [np.array([key, i & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) for i in self.ids]
        self._streams = [Generator(Philox(key=k)) for k in keys]

    def __len__(self) -> int:
        return len(self.ids)

    def child(self, tag: str) -> "ExampleRng":
        """Return fresh streams for the same examples under another tag (a restart, a stage)."""
        return ExampleRng(self.seed, self.ids, f"{self.tag}/{tag}")

    def take(self, keep: Tensor) -> "ExampleRng":
        """Return the streams of the examples that `keep` selects, continuing where they are.

        `keep` is a bool mask [n] or an index tensor [m].
        """
        rows = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        part = object.__new__(ExampleRng)
        part.seed, part.tag = self.seed, self.tag
        part.ids = [self.ids[i] for i in rows.tolist()]
        part._streams = [self._streams[i] for i in rows.tolist()]
        return part

    def uniform(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw from U[0, 1): [n, *shape] with the dtype and device of `like`."""
        return self._stack([g.random(tuple(shape), dtype=np.float32) for g in self._streams], shape, like)

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draw from N(0, 1): [n, *shape] with the dtype and device of `like`."""
        draws = [g.standard_normal(tuple(shape), dtype=np.float32) for g in self._streams]
        return self._stack(draws, shape, like)

    @staticmethod
    def _stack(draws: list[NDArray[np.float32]], shape: Sequence[int], like: Tensor) -> Tensor:
        if not draws:
            return like.new_empty((0, *shape))
        return torch.from_numpy(np.stack(draws)).to(like)


def torch_generator(*key: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator seeded by a hash of `key`: the same key, the same draws, whatever came before."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator
