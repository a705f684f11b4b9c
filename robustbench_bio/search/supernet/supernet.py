"""The network that holds every choice of a search space: each edge is a weighted sum of all its operations."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import Inputs
from robustbench_bio.nets.cells import CellularNet, SkipRule
from robustbench_bio.nets.checks import choice, switch, whole
from robustbench_bio.nets.operations import FactorizedReduce, named, norm, pointwise
from robustbench_bio.records.space import Space
from robustbench_bio.search.supernet.fast.shared import evaluate_edges
from robustbench_bio.search.supernet.mixed_edge import MixedEdge


class Weights(NamedTuple):
    """Values [edges, primitives] of one kind of cell, and which operations of each edge run; all if None."""

    values: Tensor
    active: list[list[bool]] | None = None

    def of(self, edge: int) -> tuple[Tensor, list[bool] | None]:
        """Return values and active operations of one edge."""
        return self.values[edge], None if self.active is None else self.active[edge]


class Mixing(NamedTuple):
    """Weights for both kinds of cell."""

    normal: Weights
    reduce: Weights


class SearchCell(nn.Module):
    """One cell with all its edges: two earlier outputs → concatenated nodes [N, nodes·channels, H, W].

    Modules: `preprocess0`, `preprocess1` and `edges.<j>`, in the order of `Space.sources`. Arguments as in
    `nets.cells.Cell`.
    """

    def __init__(
        self, space: Space, c_prev_prev: int, c_prev: int, channels: int, *, reduction: bool, reduction_prev: bool
    ) -> None:
        super().__init__()
        shrink = FactorizedReduce if reduction_prev else pointwise
        self.preprocess0 = shrink(c_prev_prev, channels, affine=False)
        self.preprocess1 = pointwise(c_prev, channels, affine=False)
        self.nodes = space.nodes
        self.edges = nn.ModuleList(
            MixedEdge(space, channels, 2 if reduction and state < 2 else 1) for state in space.sources
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Weights, fast: bool) -> Tensor:
        """Return the cell's output; `fast` lets the edges that leave a state share work on a CPU."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        if fast and shares_work(s0, weights):
            return self._shared(states, weights.values)
        first = 0
        for node in range(self.nodes):
            terms = [self.edges[first + j](state, *weights.of(first + j)) for j, state in enumerate(states)]
            states.append(sum(terms[1:], terms[0]))
            first += node + 2
        return torch.cat(states[2:], 1)

    def _shared(self, states: list[Tensor], values: Tensor) -> Tensor:
        """Return the cell's output from its first two states, one state after the other handed to all later nodes."""
        entering: list[list[Tensor]] = [[] for _ in range(self.nodes)]
        for state in range(self.nodes + 2):
            if state > 1:
                states.append(_sum(entering[state - 2]))
            nodes = range(max(0, state - 1), self.nodes)
            places = [node * (node + 3) // 2 + state for node in nodes]
            edges = [cast("MixedEdge", self.edges[place]) for place in places]
            for node, out in zip(nodes, evaluate_edges(states[state], edges, values[places]), strict=True):
                entering[node].append(out)
        return torch.cat(states[2:], 1)


def shares_work(x: Tensor, weights: Weights) -> bool:
    """Tell whether the edges of a cell may be evaluated together: on a CPU, without autocast, every operation running.

    The shared work is made for caches that a GPU does not have.
    """
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and weights.active is None


def _sum(terms: list[Tensor]) -> Tensor:
    """Return the sum of images, whose gradient will come in channels-last order, as fast code expects it."""
    total = sum(terms[1:], terms[0])
    if total.requires_grad:
        total.register_hook(_channels_last)  # type: ignore[no-untyped-call]
    return total


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


class Supernet(CellularNet):
    """Stem, cells of mixed edges, global average pool, linear classifier (Liu et al. 2019, section 2).

    An edge's output is Σ_o w_o·o(x) over all primitives, w = softmax(alphas) on that edge unless `mixing` says
    otherwise. Cells at layers // 3 and 2·layers // 3 reduce: half the resolution, twice the channels. All
    normal cells share one table of weights, all reduction cells another. Batch norm has no scale and shift
    except in the stem, so that alphas alone weigh the operations.

    Every variant of an operation keeps its own weights: `sep_conv_3x3_u` and `sep_conv_3x3_fa` are two modules.
    With shared weights both would give the same output, since rules change nothing but the backward pass; the
    gradient of a weight w_o is ⟨gradient at the edge, o(x)⟩, so theirs would be equal and the search blind to
    rules. Skips of stride 1 have no weights: there the variants' gradients are equal.

    Under a rule set, `net.rules.backward(net, x, loss)` also adds to the alphas' `.grad`: pseudo-gradients
    like the weights', since they reach an edge through the rules of all layers above it.

    Attributes:
        alphas: (normal, reduce), each [edges, primitives]; leaf tensors that require a gradient, neither
            parameters nor in the state dict, so that an optimiser of the weights leaves them alone. They
            follow `.to`. Zeros (equal weights) until `draw_alphas`.

    Args:
        channels, layers: C (the stem has 3C) and number of cells; the space's own by default.
        fast: share work between the operations of a cell where `shares_work` allows it; the same numbers up to
            rounding. Single operations fall back to the plain sum: under rules that are more than a feedback matrix
            (dfa, Hebbian) and with hooks on layers. Gradients are not twice differentiable.
        skip_rule: see `CellNet`.
    """

    def __init__(
        self,
        inputs: Inputs,
        *,
        space: Space,
        channels: int | None = None,
        layers: int | None = None,
        fast: bool = True,
        skip_rule: SkipRule = "applied",
    ) -> None:
        super().__init__(inputs)
        channels = whole("channels", space.channels if channels is None else channels)
        layers = whole("layers", space.layers if layers is None else layers)
        choice("skip_rule", skip_rule, get_args(SkipRule))
        if channels % space.partial:
            k = space.partial
            raise UserError(
                f"expected channels to be a multiple of {k}, got {channels}: {space.name} splits them by {k}"
            )
        self.space = space
        self.fast = switch("fast", fast)
        self.skip_rule = skip_rule
        conv = nn.Conv2d(inputs.shape[0], 3 * channels, 3, padding=1, bias=False)
        self.stem = named(conv=conv, norm=norm(3 * channels, affine=True))
        self.reductions = {layers // 3, 2 * layers // 3}
        self.cells = nn.ModuleList()
        c_prev_prev = c_prev = 3 * channels
        for i in range(layers):
            channels *= 2 if i in self.reductions else 1
            halves, halved = i in self.reductions, i - 1 in self.reductions
            self.cells.append(SearchCell(space, c_prev_prev, c_prev, channels, reduction=halves, reduction_prev=halved))
            c_prev_prev, c_prev = c_prev, space.nodes * channels
        self.classifier = nn.Linear(c_prev, inputs.classes)
        shape = (len(space.sources), len(space.primitives))
        self.alphas = (torch.zeros(shape, requires_grad=True), torch.zeros(shape, requires_grad=True))
        self._mixing: Mixing | None = None

    def draw_alphas(self, generator: torch.Generator) -> None:
        """Set the alphas to 1e-3·N(0, 1), their initial law in DARTS."""
        with torch.no_grad():
            for alpha in self.alphas:
                alpha.copy_(1e-3 * torch.randn(alpha.shape, generator=generator, device=generator.device))

    @contextlib.contextmanager
    def mixing(self, normal: Tensor, reduce: Tensor) -> Iterator[None]:
        """Use these weights [edges, primitives] instead of softmax(alphas) within the block; blocks may nest.

        Weights that need no gradient may be zero: those operations are not run at all, as if they were not
        there, so that their batch norms see nothing. Raises `UserError` for another shape.
        """
        before, self._mixing = self._mixing, Mixing(self._checked(normal), self._checked(reduce))
        try:
            yield
        finally:
            self._mixing = before

    def _checked(self, values: Tensor) -> Weights:
        shape = self.alphas[0].shape
        if values.shape != shape:
            got = list(values.shape)
            raise UserError(f"expected weights {list(shape)} for the space {self.space.name}, got {got}")
        if values.requires_grad or bool((values != 0).all()):
            return Weights(values)
        return Weights(values, (values != 0).tolist())

    def forward(self, x: Tensor) -> Tensor:
        mixing = self._mixing or Mixing(*(Weights(alpha.softmax(1)) for alpha in self.alphas))
        if self.fast and x.device.type == "cpu":  # see `shares_work` for why not on a GPU
            x = x.contiguous(memory_format=torch.channels_last)
        s0 = s1 = self.stem(self.normalise(x))
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, mixing.reduce if i in self.reductions else mixing.normal, self.fast)
        return self.classifier(s1.mean((2, 3)))  # type: ignore[no-any-return]

    def operations(self) -> Iterator[tuple[str, str, nn.Module]]:
        primitives = dict(zip(self.space.primitives, self.space.parsed, strict=True))
        for path, edge in self.named_modules():
            if isinstance(edge, MixedEdge):
                for name, op in edge.operations.items():
                    yield f"{path}.operations.{name}", primitives[name].rule, op

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Supernet":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for alpha in self.alphas:
                alpha.data = fn(alpha.data)
                if alpha.grad is not None:
                    alpha.grad.data = fn(alpha.grad.data)
        return self
