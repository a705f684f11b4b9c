"""Networks of searched cells: the macro-structure of DARTS (Liu et al. 2019), shared by BioNAS and EG-NAS."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import NETS, Inputs, Net, weight_layers
from robustbench_bio.nets.checks import choice, halved, real, switch, whole
from robustbench_bio.nets.operations import FactorizedReduce, drop_path, named, operation, pointwise
from robustbench_bio.records.genotype import Genotype, Primitive, parse_primitive

Stem = Literal["cifar", "imagenet"]
SkipRule = Literal["applied", "ignored"]


class Cell(nn.Module):
    """One cell: two earlier outputs [N, ·, ·, ·] → concatenated nodes [N, len(concat)·channels, H, W].

    Modules: `preprocess0`, `preprocess1`, and `operations.<j>` for edge j of the genotype.

    Args:
        c_prev_prev, c_prev: channels of the two inputs.
        channels: of every node.
        reduction: whether edges from the inputs have stride 2.
        reduction_prev: whether the earlier input is twice as large as the later one.
    """

    def __init__(
        self, genotype: Genotype, c_prev_prev: int, c_prev: int, channels: int, *, reduction: bool, reduction_prev: bool
    ) -> None:
        super().__init__()
        shrink = FactorizedReduce if reduction_prev else pointwise
        self.preprocess0 = shrink(c_prev_prev, channels)
        self.preprocess1 = pointwise(c_prev, channels)
        edges = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.sources = [state for _, state in edges]
        self.primitives: list[Primitive] = [parse_primitive(op) for op, _ in edges]
        self.operations = nn.ModuleList(
            operation(primitive.operation, channels, 2 if reduction and state < 2 else 1)
            for primitive, state in zip(self.primitives, self.sources, strict=True)
        )

    def forward(self, s0: Tensor, s1: Tensor, drop: float) -> Tensor:
        """Return the cell's output; `drop` is the drop-path probability, used in train mode only."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edges = []
        for i, op in enumerate(self.operations):
            y = op(states[self.sources[i]])
            if self.training and drop > 0 and not isinstance(op, nn.Identity):
                y = drop_path(y, drop)
            edges.append(y)
            if i % 2:
                states.append(edges[i - 1] + edges[i])
        return torch.cat([states[i] for i in self.concat], 1)


def auxiliary_head(channels: int, classes: int, size: tuple[int, int], stem: Stem) -> nn.Sequential:
    """Build the second classifier of DARTS, which sees the cells' output after two thirds of the depth.

    ReLU → 5×5 average pool (stride 3, or 2 for ImageNet) → 1×1 convolution → 2×2 convolution → linear, on a
    map of 2×2 after the pool. Where the published pool gives another size, an adaptive pool to 2×2 stands in
    its place: with the CIFAR stem, maps smaller than 8×8 (images smaller than 32×32), where the released code
    fails. The ImageNet head has no second batch norm, as published.
    """
    stride = 3 if stem == "cifar" else 2
    published = all(side >= 5 and (side - 5) // stride + 1 == 2 for side in size)
    return named(
        relu=nn.ReLU(),
        pool=nn.AvgPool2d(5, stride) if published else nn.AdaptiveAvgPool2d(2),
        conv1=nn.Conv2d(channels, 128, 1, bias=False),
        norm1=nn.BatchNorm2d(128),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(128, 768, 2, bias=False),
        norm2=nn.BatchNorm2d(768) if stem == "cifar" else nn.Identity(),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        classifier=nn.Linear(768, classes),
    )


class CellularNet(Net):
    """A network of cells whose operations are its slots, each under the rule that the cells prescribe."""

    skip_rule: SkipRule

    @abstractmethod
    def operations(self) -> Iterator[tuple[str, str, nn.Module]]:
        """Yield (module path, rule, module) of every operation of the cells."""

    def rule_slots(self) -> Mapping[str, Sequence[str]]:
        return {slot: layers for slot, _, layers in self._ruled_operations()}

    def genotype_rules(self) -> Mapping[str, str]:
        return {layer: rule for _, rule, layers in self._ruled_operations() if rule != "bp" for layer in layers}

    def _ruled_operations(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yield (path, rule, names of its convolutions) of each operation that has convolutions to rule."""
        for slot, rule, op in self.operations():
            if isinstance(op, FactorizedReduce) and self.skip_rule == "ignored":
                continue
            if layers := tuple(f"{slot}.{name}" for name in weight_layers(op)):
                yield slot, rule, layers


@NETS.register("cells")
class CellNet(CellularNet):
    """Stem, `layers` cells, global average pool, linear classifier.

    Cells at layers // 3 and 2·layers // 3 reduce: half the resolution, twice the channels. No convolution has
    a bias. Modules: `stem0` and `stem1`, which make the first cell's inputs (`stem1` is the identity with the
    CIFAR stem), `cells.<i>`, `classifier`, and `auxiliary_head` if asked for.

    Which rule each layer learns under is reported by `genotype_rules`, never carried out here. Stem,
    preprocessing layers, auxiliary head and classifier are no part of a genotype and have no slot.

    Args:
        channels: C; the CIFAR stem has 3C, nodes of the first cells have C.
        layers: number of cells.
        stem: "cifar" keeps the resolution; "imagenet" divides it by eight before the second cell input.
        auxiliary: whether to build the auxiliary head.
        drop_path: initial value of the attribute, in [0, 1); no identity is dropped.
        skip_rule: "applied" counts both 1×1 convolutions of a skip of stride 2 to its rule; "ignored" leaves
            them to bp, as the released BioNAS code does.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        genotype: Genotype,
        channels: int = 36,
        layers: int = 20,
        stem: Stem = "cifar",
        auxiliary: bool = False,
        drop_path: float = 0.0,
        skip_rule: SkipRule = "applied",
    ) -> None:
        super().__init__(inputs)
        if not isinstance(genotype, Genotype):
            kind = type(genotype).__name__
            raise UserError(f"expected a genotype of cells for the network cells, got {kind}: read a file of cells")
        choice("stem", stem, get_args(Stem))
        choice("skip_rule", skip_rule, get_args(SkipRule))
        whole("channels", channels, 2 if stem == "imagenet" else 1)
        whole("layers", layers)
        self.drop_path = real("drop_path", drop_path, 0, 1, high_is_legal=False)
        self.skip_rule = skip_rule
        self.stem0, self.stem1 = _stems(inputs.shape[0], channels, stem)
        self.reductions = {layers // 3, 2 * layers // 3}
        self._auxiliary_at = 2 * layers // 3
        widths = self._add_cells(genotype, channels, layers, stem)
        self.classifier = nn.Linear(widths[-1], inputs.classes)
        if switch("auxiliary", auxiliary):
            halvings = len(self.reductions) + (3 if stem == "imagenet" else 0)
            height, width = (halved(side, halvings) for side in inputs.shape[1:])
            self.auxiliary_head = auxiliary_head(widths[self._auxiliary_at], inputs.classes, (height, width), stem)

    def _add_cells(self, genotype: Genotype, channels: int, layers: int, stem: Stem) -> list[int]:
        """Build the cells; return the number of channels that each puts out."""
        self.cells = nn.ModuleList()
        first = 3 * channels if stem == "cifar" else channels
        widths: list[int] = []
        c_prev_prev, c_prev = first, first
        reduction_prev = stem == "imagenet"
        for i in range(layers):
            reduction = i in self.reductions
            channels *= 2 if reduction else 1
            cell = Cell(genotype, c_prev_prev, c_prev, channels, reduction=reduction, reduction_prev=reduction_prev)
            self.cells.append(cell)
            reduction_prev = reduction
            c_prev_prev, c_prev = c_prev, len(cell.concat) * channels
            widths.append(c_prev)
        return widths

    def forward(self, x: Tensor) -> Tensor:
        s0 = self.stem0(self.normalise(x))
        s1 = self.stem1(s0)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path)
            if i == self._auxiliary_at and self.training and self.auxiliary_head is not None:
                self.auxiliary_head(s1)
        return self.classifier(s1.mean((2, 3)))  # type: ignore[no-any-return]

    def operations(self) -> Iterator[tuple[str, str, nn.Module]]:
        for i, cell in enumerate(self.cells):
            assert isinstance(cell, Cell)  # noqa: S101  (nn.ModuleList forgets the type)
            for j, op in enumerate(cell.operations):
                yield f"cells.{i}.operations.{j}", cell.primitives[j].rule, op


def _stems(c_in: int, channels: int, stem: Stem) -> tuple[nn.Module, nn.Module]:
    """Return the modules that make the first cell's inputs: s0 = stem0(x), s1 = stem1(s0)."""

    def conv(before: int, after: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(before, after, 3, stride, 1, bias=False)

    if stem == "cifar":
        return named(conv=conv(c_in, 3 * channels, 1), norm=nn.BatchNorm2d(3 * channels)), nn.Identity()
    half = channels // 2
    stem0 = named(
        conv0=conv(c_in, half, 2),
        norm0=nn.BatchNorm2d(half),
        relu=nn.ReLU(),
        conv1=conv(half, channels, 2),
        norm1=nn.BatchNorm2d(channels),
    )
    stem1 = named(relu=nn.ReLU(), conv=conv(channels, channels, 2), norm=nn.BatchNorm2d(channels))
    return stem0, stem1
