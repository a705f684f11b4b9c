"""One edge of the supernet: the weighted sum of all operations that a space offers."""

from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.nets.operations import named, norm, operation
from robustbench_bio.records.space import Space


class Family(NamedTuple):
    """The variants of one operation: their places among the primitives, and their names."""

    columns: list[int]
    names: list[str]

    def only(self, kept: Sequence[bool]) -> "Family":
        """Return some of the variants."""
        return Family(list(compress(self.columns, kept)), list(compress(self.names, kept)))


class MixedEdge(nn.Module):
    """Σ_o w_o·o(x): [N, C, H, W] → [N, C, ⌈H/stride⌉, ⌈W/stride⌉].

    With K = `space.partial` > 1 only the first C/K channels take part; the others pass, through a 2×2 max pool
    where the stride is 2, and all are shuffled so that the next edge mixes others (PC-DARTS, Xu et al. 2020).

    Modules: `operations.<primitive>`; a pool is followed by batch norm if the space says so.
    """

    def __init__(self, space: Space, channels: int, stride: int) -> None:
        super().__init__()
        self.partial = space.partial
        self.stride = stride
        self.operations = nn.ModuleDict()
        self.families = _families(space)
        width = channels // space.partial
        for name, primitive in zip(space.primitives, space.parsed, strict=True):
            op = operation(primitive.operation, width, stride, affine=False)
            if "pool" in primitive.operation and space.pool_norm:
                op = named(pool=op, norm=norm(width, affine=False))
            self.operations[name] = op

    def forward(self, x: Tensor, weights: Tensor, active: list[bool] | None = None) -> Tensor:
        """Return the edge's output for weights [primitives]; `active` says which operations run, all by default."""
        taken = self.taken(x)
        runs = active or [True] * len(self.operations)
        terms = [w * op(taken) for op, w, on in zip(self.operations.values(), weights, runs, strict=True) if on]
        return self.rejoined(x, sum(terms[1:], terms[0]) if terms else taken[:, :, :: self.stride, :: self.stride] * 0)

    def taken(self, x: Tensor) -> Tensor:
        """Return the channels of x that go through the operations."""
        return x if self.partial == 1 else x[:, : x.shape[1] // self.partial]

    def rejoined(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Return the mixed channels joined with those that passed, and shuffled."""
        if self.partial == 1:
            return mixed
        passed = x[:, mixed.shape[1] :]
        if self.stride == 2:
            passed = F.max_pool2d(passed, 2, ceil_mode=True)
        n, _, height, width = mixed.shape
        joined = torch.cat([mixed, passed], 1).view(n, self.partial, -1, height, width)
        return joined.transpose(1, 2).reshape(n, -1, height, width)


def _families(space: Space) -> list[Family]:
    """Sort the primitives by operation."""
    families: dict[str, Family] = {}
    for column, (name, primitive) in enumerate(zip(space.primitives, space.parsed, strict=True)):
        family = families.setdefault(primitive.operation, Family([], []))
        family.columns.append(column)
        family.names.append(name)
    return list(families.values())
