"""The edges that leave one state, evaluated together: what their operations have in common is done once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.nets.operations import Zero
from robustbench_bio.search.supernet.fast.depthwise import Depthwise, DepthwiseLayers, image, rows
from robustbench_bio.search.supernet.fast.foldable import Separable, foldable, matrix, separables, watched
from robustbench_bio.search.supernet.fast.folded import MixedLayers, NormalisedLayers, Norms
from robustbench_bio.search.supernet.mixed_edge import Family, MixedEdge

#: Numbers in a stack of variants; larger ones fall out of the processor's cache.
STACK = 1 << 20

#: Mean of max(0, z) for a normal z: what batch norm and ReLU leave.
HALF_NORMAL = 0.4


def evaluate_edges(x: Tensor, edges: Sequence[MixedEdge], weights: Tensor) -> list[Tensor]:
    """Return what each edge makes of the state x, up to rounding as the edges do one by one.

    x is [N, C, H, W], weights [edges, primitives]; all edges have the same primitives and stride.
    """
    if not edges:
        return []
    first = edges[0]
    taken = first.taken(x).contiguous(memory_format=torch.channels_last)
    positive = F.relu(taken)
    terms: list[list[Tensor]] = [[] for _ in edges]
    common: list[tuple[list[int], Tensor]] = []
    for family in first.families:
        together, rest = _split(edges, family)
        if together.names:
            ops = [edge.operations[name] for edge in edges for name in together.names]
            for some, out in zip(terms, _separable(positive, ops, weights[:, together.columns]), strict=True):
                some.append(out)
        ops = [edge.operations[name] for edge in edges for name in rest.names]
        if (same := _same(ops, taken)) is not None:
            common.append((rest.columns, same))
        elif not all(isinstance(op, Zero) for op in ops):
            for some, edge, row in zip(terms, edges, weights, strict=True):
                some += [row[c] * edge.operations[n](taken) for c, n in zip(rest.columns, rest.names, strict=True)]
    if common:
        for some, out in zip(terms, _weighed(common, weights), strict=True):
            some.append(out)
    return [edge.rejoined(x, sum(some[1:], some[0])) for edge, some in zip(edges, terms, strict=True)]


def _split(edges: Sequence[MixedEdge], family: Family) -> tuple[Family, Family]:
    """Split the variants of an operation: those that can be evaluated together, and those that cannot."""

    def ops(names: Iterable[str]) -> list[nn.Module]:
        return [edge.operations[name] for edge in edges for name in names]

    if foldable(ops(family.names)):
        return family, Family([], [])
    fit = [foldable(ops([name])) for name in family.names]
    together = family.only(fit)
    if not foldable(ops(together.names)):
        return Family([], []), family
    return together, family.only([not one for one in fit])


def _same(ops: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """Return the one result that all the operations give: identities, and pools under batch statistics."""
    if not ops or any(watched(op) for op in ops):
        return None
    first = ops[0]
    if isinstance(first, nn.Identity):
        return x
    pool = getattr(first, "pool", first)
    if not isinstance(pool, nn.MaxPool2d | nn.AvgPool2d):
        return None
    if pool is first:
        return pool(x)  # type: ignore[no-any-return]
    norms = Norms([cast("nn.BatchNorm2d", op.norm) for op in ops])
    return norms.shared(pool(x)) if norms.agree() and norms.from_batch else None


def _weighed(common: Sequence[tuple[list[int], Tensor]], weights: Tensor) -> list[Tensor]:
    """Return for each edge the weighed sum of tensors [N, C, H, W], each under the primitives of some columns."""
    shares = torch.stack([weights[:, columns].sum(1) for columns, _ in common], 1)
    values = torch.stack([rows(same).flatten() for _, same in common])
    n, _, h, w = common[0][1].shape
    return [image(out, (n, h, w)) for out in (shares @ values).unbind()]


def _separable(x: Tensor, ops: Sequence[nn.Module], factors: Tensor) -> list[Tensor]:
    """Return Σ factor·operation for each edge; `ops` edge by edge, x after its ReLU, factors [edges, variants]."""
    variants = [separables(op) for op in ops]
    layer = variants[0][0].depthwise
    kernel, stride, dilation = layer.kernel_size[0], layer.stride[0], layer.dilation[0]
    split = False
    # Libraries are slow on dilated depthwise convolutions. A dilation of 2 reads pixels of one parity alone: with
    # stride 2 only one of the four images of every second pixel matters, with stride 1 each is convolved by itself.
    if (dilation, stride) == (2, 2):
        x, stride, dilation = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last), 1, 1
    elif dilation == 2 and not (x.shape[2] % 2 or x.shape[3] % 2):
        x, dilation, split = _phases(x), 1, True
    geometries = [Depthwise(kernel, stride, dilation), Depthwise(kernel, 1, 1)]
    expected = rows(x.detach()).mean(0)
    sums: dict[int, Tensor] = {}
    shifts = x.new_zeros(factors.shape[0], x.shape[1])
    step = max(1, STACK // x.numel())
    for start in range(0, len(ops), step):
        part = slice(start, min(start + step, len(ops)))
        edges = Counter(v // factors.shape[1] for v in range(part.start, part.stop))
        *outs, shift = _stack(x, expected, variants[part], geometries, factors.flatten()[part], list(edges.values()))
        shifts[list(edges)] += shift
        for edge, out in zip(edges, outs, strict=True):
            sums[edge] = sums[edge].add_(out) if edge in sums else out
    size = (len(x), -(-x.shape[2] // stride), -(-x.shape[3] // stride))
    images = [image(out.add_(shift), size) for out, shift in zip(sums.values(), shifts, strict=True)]
    return [_from_phases(out) for out in images] if split else images


def _stack(
    x: Tensor,
    expected: Tensor,
    variants: Sequence[Sequence[Separable]],
    geometries: Sequence[Depthwise],
    factors: Tensor,
    edges: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return rows [M, C] of Σ factor·variant for each edge, and what is to be added to each, [edges, C].

    All variants see x [N, C, H, W] of mean `expected` [C]; `edges` says how many of them, which lie side by side,
    belong to each edge. `geometries` are those of the depthwise convolutions in a row.
    """
    n, channels = len(variants), x.shape[1]
    if n > 1:
        x = image(rows(x)[:, None].expand(-1, n, -1).reshape(-1, n * channels), (len(x), *x.shape[2:]))
    expected = expected.expand(n, -1)
    *before, last = zip(*variants, strict=True)
    for level, geometry in zip(before, geometries, strict=False):
        stage = Stage.of(level, geometry.within(x.shape[2:]))
        y, offset = stage.depthwise(x, expected)
        z = NormalisedLayers.apply(rows(y), stage.pointwise_weight, stage.pointwise_matrix, offset, stage.norms)
        x, expected = image(z.relu_(), (len(y), *y.shape[2:])), torch.full_like(expected, HALF_NORMAL)
    stage = Stage.of(last, geometries[len(before)].within(x.shape[2:]))
    y, offset = stage.depthwise(x, expected)
    outs: tuple[Tensor, ...] = MixedLayers.apply(
        rows(y), factors, stage.pointwise_weight, stage.pointwise_matrix, offset, stage.norms, edges
    )
    return outs


class Stage(NamedTuple):
    """The same separable convolution of V variants.

    Attributes:
        geometry: of the depthwise convolutions.
        depthwise_weight, depthwise_matrix: W and B, [V·C, 1, k, k].
        pointwise_weight, pointwise_matrix: W and B, [V, C, C].
        norms: what follows.
    """

    geometry: Depthwise
    depthwise_weight: Tensor
    depthwise_matrix: Tensor
    pointwise_weight: Tensor
    pointwise_matrix: Tensor
    norms: Norms

    @classmethod
    def of(cls, variants: Sequence[Separable], geometry: Depthwise) -> Self:
        """Stack the layers' weights and the matrices that their rules have now."""
        depthwise, pointwise, norms = zip(*variants, strict=True)
        channels = pointwise[0].in_channels

        def stacked(tensors: Iterable[Tensor]) -> Tensor:
            return torch.cat(list(tensors)).view(-1, channels, channels)

        return cls(
            geometry,
            geometry.crop(torch.cat([layer.weight for layer in depthwise])),
            geometry.crop(torch.cat([matrix(layer) for layer in depthwise])),
            stacked(layer.weight for layer in pointwise),
            stacked(matrix(layer) for layer in pointwise),
            Norms(norms),
        )

    def depthwise(self, x: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
        """Return the depthwise convolution of x, and the part [V, C] of its likely mean that was taken away.

        The mean is none of the norms' business under batch statistics; without it, sums of squares lose less.
        """
        sums = self.depthwise_weight.detach().sum((1, 2, 3)).view_as(expected)
        offset = expected * sums if self.norms.from_batch else torch.zeros_like(expected)
        weight, matrix, bias = self.depthwise_weight, self.depthwise_matrix, -offset.flatten()
        return DepthwiseLayers.apply(x, weight, matrix, bias, self.geometry), offset


def _phases(x: Tensor) -> Tensor:
    """Return the four images [4N, C, H/2, W/2] of every second pixel: a dilation of 2 becomes one of 1 in each."""
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c)
    return pixels.permute(2, 4, 0, 1, 3, 5).reshape(4 * n, h // 2, w // 2, c).permute(0, 3, 1, 2)


def _from_phases(x: Tensor) -> Tensor:
    """Undo `_phases`."""
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(2, 2, n // 4, h, w, c)
    return pixels.permute(2, 3, 0, 4, 1, 5).reshape(n // 4, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
