"""Pointwise convolutions of several layers side by side, each folded into its batch norm.

With the rows y [M, C] that a depthwise convolution gives (M positions), pointwise weights P and batch norm
without scale and shift are one affine map z = F y + s: the statistics of P y follow from mean and covariance of
y, F = r∘P, s = −r∘(P·mean), r = 1/√(var + eps), so that P y itself is never formed. For a gradient h at z, batch
norm hands down r∘(h − Σh/M − z·Σhz/M), which the rule's matrix B takes to y: again an affine map of (h, y), made
of Σh and hᵀy alone.

Every layer keeps its own weights W and its own matrix B: only the order of computation differs from layers one by
one, and so does rounding. Nothing here is twice differentiable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Norms:
    """Batch norms of a stack of variants, one for each, which agree in all that is set by hand."""

    modules: Sequence[nn.BatchNorm2d]

    @property
    def from_batch(self) -> bool:
        """Whether statistics are those of the batch."""
        return self.modules[0].training or self.modules[0].running_mean is None

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return self.modules[0].eps

    def agree(self) -> bool:
        """Return whether one treatment fits all."""
        settings = {
            (n.training, n.eps, n.momentum, n.track_running_stats, n.running_mean is None) for n in self.modules
        }
        return len(settings) == 1 and self.modules[0].momentum is not None

    def running(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return running mean and variance of each, [channels]; empty lists where none are kept."""
        means = [n.running_mean for n in self.modules if n.running_mean is not None]
        return means, [n.running_var for n in self.modules if n.running_var is not None]

    def observe(self, mean: Tensor, var: Tensor) -> None:
        """Let the running statistics follow: `mean` and unbiased `var` [variants, channels] of a batch."""
        rate = self.modules[0].momentum
        means, variances = self.running()
        if not (means and self.modules[0].training and self.modules[0].track_running_stats) or rate is None:
            return
        torch._foreach_lerp_(means, mean.unbind(), rate)
        torch._foreach_lerp_(variances, var.unbind(), rate)
        torch._foreach_add_([n.num_batches_tracked for n in self.modules if n.num_batches_tracked is not None], 1)

    def shared(self, x: Tensor) -> Tensor:
        """Return what each of them makes of the same x [N, C, H, W], with statistics of the batch."""
        mean, var = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
        out = F.batch_norm(x, mean, var, None, None, True, 1.0, self.eps)
        self.observe(mean.expand(len(self.modules), -1), var.expand(len(self.modules), -1))
        return out


def by_variant(y: Tensor, channels: int) -> Tensor:
    """View rows [M, V·C] as [V, M, C]; contiguous for one variant, which saves copies."""
    return y[None] if y.shape[1] == channels else y.view(len(y), -1, channels).transpose(0, 1)


def times(y: Tensor, matrices: Tensor) -> Tensor:
    """Return rows [M, V·C] times a matrix of each variant, [V, C, C]."""
    if len(matrices) == 1:  # a batch of one product costs a copy
        return y @ matrices[0]
    out = torch.empty_like(y)
    channels = matrices.shape[1]
    torch.bmm(by_variant(y, channels), matrices, out=by_variant(out, channels))
    return out


class Adjoint(NamedTuple):
    """What a pointwise convolution and its norm make of a gradient h at z: δy = h·through + y·back + constant.

    Attributes:
        pointwise: dP [V, C, C].
        share: Σ h·z, [V]: the gradient of a factor before z.
        through, back: [V, C, C]; `back` is None with fixed statistics.
        constant: [V, C]; None with fixed statistics.
    """

    pointwise: Tensor
    share: Tensor
    through: Tensor
    back: Tensor | None
    constant: Tensor | None

    def below(self, partial: Tensor, y: Tensor) -> Tensor:
        """Return δy [M, V·C], given h·through, which is changed in place."""
        if self.back is None or self.constant is None:
            return partial
        if len(self.back) == 1:
            partial.addmm_(y, self.back[0])
        else:
            channels = self.back.shape[1]
            by_variant(partial, channels).baddbmm_(by_variant(y, channels), self.back)
        return partial.add_(self.constant.flatten())


class Fold(NamedTuple):
    """z = y·matrixᵀ + shift: V pointwise convolutions, each with its batch norm.

    Attributes:
        y: [M, V·C], where it is seen from.
        matrix: [V, C, C].
        shift: [V, C].
        scale: r [V, C].
        mean: of y, [V, C]; zeros if statistics are fixed.
        covariance: of y, [V, C, C]; None if statistics are fixed.
    """

    y: Tensor
    matrix: Tensor
    shift: Tensor
    scale: Tensor
    mean: Tensor
    covariance: Tensor | None

    @classmethod
    def of(cls, y: Tensor, offset: Tensor, pointwise: Tensor, norms: Norms) -> Self:
        """Return the map for y + `offset` [V, C], the latter taken away from all y to keep the sums small."""
        channels = pointwise.shape[2]
        shifted = (pointwise @ offset[..., None])[..., 0]
        mean, covariance = torch.zeros_like(offset), None
        if norms.from_batch:
            # P y is affine in y: mean P·mean, variance diag(P·cov·Pᵀ). Two products of [C, C] instead of one of [M, C].
            mean = y.mean(0).view(-1, channels)
            each = by_variant(y, channels)
            covariance = each.mT @ each / len(y) - mean[:, :, None] * mean[:, None]
            centre = (pointwise @ mean[..., None])[..., 0]
            # E[yy] − E[y]E[y] may be negative by rounding, and rsqrt would make a NaN of it.
            var = ((pointwise @ covariance) * pointwise).sum(2).clamp_min(0)
            # As torch does: batches are normalised by the biased variance, the running one is unbiased.
            norms.observe(centre + shifted, var * (len(y) / (len(y) - 1)))
        else:
            centre, var = (torch.stack(kept) for kept in norms.running())
            centre = centre - shifted
        scale = (var + norms.eps).rsqrt()
        return cls(y, scale[..., None] * pointwise, -scale * centre, scale, mean, covariance)

    def adjoint(self, products: Tensor, sums: Tensor, factors: Tensor, matrix: Tensor) -> Adjoint:
        """Return what becomes of h, times `factors` [V], given hᵀy [V, C, C], Σh [V, C] and B [V, C, C]."""
        r, count = self.scale[..., None], len(self.y)
        through = factors[:, None, None] * r * matrix
        if self.covariance is None:  # fixed statistics are constants: nothing flows through mean and variance
            share = (self.matrix * products).sum((1, 2)) + (self.shift * sums).sum(1)
            return Adjoint(factors[:, None, None] * r * products, share, through, None, None)
        # z = F(y − mean), so Σhz needs only Σh(y − mean), which also spares dP the part that batch norm takes away.
        products = products - sums[..., None] * self.mean[:, None]
        with_z = (self.matrix * products).sum(2)
        share = with_z.sum(1)
        with_z = factors[:, None] * with_z
        # dP = Σ r∘(h − Σh/M − z·Σhz/M) yᵀ, where Σ z yᵀ/M = F·cov.
        pointwise = r * (factors[:, None, None] * products - with_z[..., None] * (self.matrix @ self.covariance))
        # δy = r∘(h − Σh/M − z·Σhz/M)·B with z = F y + s written out: `through` holds what stands at h, −Fᵀ·pull at y.
        pull = (self.scale * with_z / count)[..., None] * matrix
        push = factors[:, None] * self.scale * sums / count
        constant = -(push[:, None] @ matrix + self.shift[:, None] @ pull)[:, 0]
        return Adjoint(pointwise, share, through, -self.matrix.mT @ pull, constant)


class NormalisedLayers(torch.autograd.Function):
    """Pointwise convolutions side by side, each with its batch norm: rows y [M, V·C] → z [M, V·C].

    Further inputs: P and B [V, C, C], what was taken away from y [V, C], the norms.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, pointwise: Tensor, matrix: Tensor, offset: Tensor, norms: Norms) -> Tensor:
        fold = Fold.of(y, offset, pointwise, norms)
        ctx.save_for_backward(matrix, *fold)
        return times(y, fold.matrix.mT).add_(fold.shift.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        matrix, *kept = ctx.saved_tensors
        fold = Fold(*kept)
        channels = matrix.shape[1]
        h = h.contiguous()
        products = by_variant(h, channels).mT @ by_variant(fold.y, channels)
        adjoint = fold.adjoint(products, h.sum(0).view(-1, channels), torch.ones_like(matrix[:, 0, 0]), matrix)
        return adjoint.below(times(h, adjoint.through), fold.y), adjoint.pointwise, None, None, None


class MixedLayers(torch.autograd.Function):
    """Weighted sums of pointwise convolutions with batch norm: rows y [M, V·C] → for each edge [M, C], and shifts.

    The shifts [edges, C] are still to be added to the sums: sums over several stacks need it only once.

    Further inputs: factors [V]; P and B [V, C, C]; what was taken away from y [V, C]; the norms; the number of
    variants of each edge, which lie side by side.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        factors: Tensor,
        pointwise: Tensor,
        matrix: Tensor,
        offset: Tensor,
        norms: Norms,
        edges: list[int],
    ) -> tuple[Tensor, ...]:
        fold = Fold.of(y, offset, pointwise, norms)
        ctx.save_for_backward(factors, matrix, *fold)
        ctx.edges = edges
        channels = pointwise.shape[1]
        weighed = (factors[:, None, None] * fold.matrix).mT.reshape(-1, channels)
        widths = [n * channels for n in edges]
        pairs = zip(torch.split(y, widths, 1), torch.split(weighed, widths), strict=True)
        shifts = torch.stack([some.sum(0) for some in torch.split(factors[:, None] * fold.shift, edges)])
        ctx.mark_non_differentiable(shifts)
        return (*(part @ w for part, w in pairs), shifts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factors, matrix, *kept = ctx.saved_tensors
        fold, edges = Fold(*kept), ctx.edges
        channels = matrix.shape[1]
        widths = [n * channels for n in edges]
        gradients = tuple(g.contiguous() for g in gradients[:-1])
        pairs = list(zip(gradients, torch.split(fold.y, widths, 1), strict=True))
        products = torch.cat([by_variant(g.mT @ y, channels) for g, y in pairs])
        sums = torch.cat([g.sum(0).expand(n, -1) for g, n in zip(gradients, edges, strict=True)])
        adjoint = fold.adjoint(products, sums, factors, matrix)
        through = adjoint.through.transpose(0, 1).reshape(channels, -1)
        below = torch.empty_like(fold.y)
        parts = zip(gradients, torch.split(through, widths, 1), torch.split(below, widths, 1), strict=True)
        for g, t, out in parts:
            torch.mm(g, t, out=out)
        return adjoint.below(below, fold.y), adjoint.share, adjoint.pointwise, None, None, None, None
