"""From weights of edges, draws and mutations to the cells of a search space."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from robustbench_bio.core.errors import DivergedError, UserError
from robustbench_bio.records.genotype import Edge, Genotype, parse_primitive
from robustbench_bio.records.space import Space

if TYPE_CHECKING:
    from torch import Generator, Tensor

T = TypeVar("T")


def discretise(space: Space, normal: "Tensor", reduce: "Tensor", *, name: str, source: str) -> Genotype:
    """Return the cells that the edges' weights favour (Liu et al. 2019, section 2.4).

    The strength of an edge is the largest weight of its primitives other than "none". Each node keeps its two
    strongest edges, the stronger one first, and on each the primitive with that weight. Among equals the
    first in the list wins.

    `normal` and `reduce` are alphas [edges, primitives], whose softmax on each edge gives the weights. Raises
    `UserError` for another shape, `DivergedError` for values that are not finite.
    """
    cells = [_strongest(space, _weights(space, cell)) for cell in (normal, reduce)]
    return Genotype(name=name, source=source, normal=cells[0], reduce=cells[1])


def _weights(space: Space, cell: "Tensor") -> list[list[float]]:
    """Return the weights of each edge, in float64 so that ties are those of the numbers given."""
    shape = (len(space.sources), len(space.primitives))
    if tuple(cell.shape) != shape:
        raise UserError(f"expected alphas {list(shape)} for the space {space.name}, got {list(cell.shape)}")
    if not bool(cell.isfinite().all()):
        raise DivergedError(
            "expected finite alphas, got infinity or not-a-number: the search diverged, lower its rates"
        )
    weights: list[list[float]] = cell.detach().double().softmax(1).tolist()
    return weights


class _Strength(NamedTuple):
    weight: float
    op: str
    state: int


def _strongest(space: Space, rows: list[list[float]]) -> tuple[Edge, ...]:
    kept: list[Edge] = []
    choices = space.choices
    first = 0
    for node in range(space.nodes):
        entering = []
        for state, row in enumerate(rows[first : first + node + 2]):
            pairs = zip(row, space.primitives, strict=True)
            legal = [_Strength(weight, op, state) for weight, op in pairs if op in choices]
            entering.append(max(legal, key=lambda s: s.weight))
        first += node + 2
        entering.sort(key=lambda s: -s.weight)
        kept += [Edge(s.op, s.state) for s in entering[:2]]
    return tuple(kept)


def draw_genotype(space: Space, generator: "Generator", *, name: str, source: str) -> Genotype:
    """Draw uniformly from the cells that `discretise` can return: two different states for each node."""

    def cell() -> tuple[Edge, ...]:
        edges = []
        for node in range(space.nodes):
            first = _below(node + 2, generator)
            second = (first + 1 + _below(node + 1, generator)) % (node + 2)
            edges += [Edge(_one_of(space.choices, generator), state) for state in (first, second)]
        return tuple(edges)

    return Genotype(name=name, source=source, normal=cell(), reduce=cell())


def mutate(genotype: Genotype, space: Space, generator: "Generator", *, name: str, source: str) -> Genotype:
    """Change the source or the operation of one edge (Real et al. 2019, section 3.2, without their identity).

    Which of the two, the cell and the edge are drawn uniformly among those that can change; so is the new
    value among the others. The two edges of a node keep coming from different states, so that the child is
    one that `draw_genotype` could have drawn; an operation never becomes "none".

    Raises `UserError` for cells of another number of nodes than the space's, or a space that leaves nothing to change.
    """
    cells = {"normal": genotype.normal, "reduce": genotype.reduce}
    if any(len(edges) != 2 * space.nodes for edges in cells.values()):
        got = " and ".join(str(len(edges) // 2) for edges in cells.values())
        raise UserError(f"expected cells of {space.nodes} nodes for the space {space.name}, got {got}")

    def new_operations(edges: tuple[Edge, ...], i: int) -> list[Edge]:
        op, state = edges[i]
        return [Edge(other, state) for other in space.choices if parse_primitive(other) != parse_primitive(op)]

    kinds = [options for new in (_new_sources, new_operations) if (options := _changes(cells, new))]
    if not kinds:
        raise UserError(f"expected a space with something to change, got {space.name}: add a primitive or a node")
    kind, i, new = _one_of(_one_of(kinds, generator), generator)
    edge = _one_of(new, generator)
    cells[kind] = (*cells[kind][:i], edge, *cells[kind][i + 1 :])
    concats = {"normal_concat": genotype.normal_concat, "reduce_concat": genotype.reduce_concat}
    return Genotype(name=name, source=source, **cells, **concats)


class _Change(NamedTuple):
    """What may replace edge `edge` of the cell `cell`."""

    cell: str
    edge: int
    new: list[Edge]


def _changes(cells: dict[str, tuple[Edge, ...]], new: Callable[[tuple[Edge, ...], int], list[Edge]]) -> list[_Change]:
    """Return what `new`, from a cell's edges and the place of one, allows to stand there, where it allows anything."""
    changes = (_Change(cell, i, new(edges, i)) for cell, edges in cells.items() for i in range(len(edges)))
    return [change for change in changes if change.new]


def _new_sources(edges: tuple[Edge, ...], i: int) -> list[Edge]:
    taken = {edges[i].state, edges[i ^ 1].state}
    return [Edge(edges[i].op, state) for state in range(i // 2 + 2) if state not in taken]


def _below(n: int, generator: "Generator") -> int:
    import torch

    return int(torch.randint(n, (), generator=generator, device=generator.device))


def _one_of(options: Sequence[T], generator: "Generator") -> T:
    return options[_below(len(options), generator)]
