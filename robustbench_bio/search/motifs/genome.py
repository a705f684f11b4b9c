"""Genomes of MSE-NAS: from integers to genotypes of motifs. Loads no torch."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal, get_args

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.records.genotype import Edge
from robustbench_bio.records.motif_space import BLOCK, MotifSpace
from robustbench_bio.records.motifs import MAX_CELLS, Link, Motif, MotifGenotype, parse_link

Bounds = Literal["clean", "released"]
Genome = tuple[int, ...]

#: Kernels that a gene chooses from.
KERNELS = (3, 5)

#: What the one gene of feedback chooses from in the released code, whatever the motif says of the sign.
RELEASED_FEEDBACK = (Link(3, "p"), Link(5, "p"), Link(3, "n"), Link(5, "n"))


class GenomeCode:
    """What genomes stand for: a block of 20 genes for each cell, then one for the macro type.

    Gene 0 of a block is the motif's id, gene 1 + i the kernel of link i. All feedback convolutions share the gene
    whose place is the number of all links of the motif, feedback included.

    `bounds="clean"` reaches every motif that exists for each number of inputs, every number of inputs, and leaves
    the sign of feedback to the motif. `bounds="released"` has motif ids 0..3, two or three inputs, and feedback
    that is excitatory whatever the motif says (at place 19, which t5 alone reads, also inhibitory), as in the
    released code.

    Raises `UserError` for unknown bounds, a number of cells out of range, or a space without what the bounds need.
    """

    def __init__(self, space: MotifSpace, layers: int, bounds: Bounds = "clean") -> None:
        if bounds not in get_args(Bounds):
            raise UserError(unknown("bounds", bounds, list(get_args(Bounds))))
        if not 1 <= layers <= MAX_CELLS:
            raise UserError(f"expected layers in 1..{MAX_CELLS} for genomes, got {layers}")
        self.space, self.layers, self.bounds = space, layers, bounds
        self._motifs = space.buildable
        inputs = sorted({k for k, _ in self._motifs})
        if bounds == "released":
            inputs, ids = [2, 3], [0, 1, 2, 3]
        else:
            shared = set.intersection(*({n for k, n in self._motifs if k == some} for some in inputs))
            ids = sorted(shared - {0})
        complete = set(range(min(ids, default=0), max(ids, default=-1) + 1)) == set(ids) and ids
        if not complete or any((k, n) not in self._motifs for k in range(inputs[0], inputs[-1] + 1) for n in ids):
            raise UserError(f"expected motifs with the same ids in a row for each number of inputs in the space "
                            f"{space.name}, got ids {ids} for {inputs} inputs: add those that are missing")  # fmt: skip
        self._ids, self._inputs = (ids[0], ids[-1]), (inputs[0], inputs[-1])

    @property
    def length(self) -> int:
        """Number of genes."""
        return BLOCK * self.layers + 1

    @cached_property
    def lower(self) -> Genome:
        """The least legal value of each gene."""
        return (*self.layers * (self._ids[0], *(BLOCK - 1) * (0,)), self._inputs[0])

    @cached_property
    def upper(self) -> Genome:
        """The greatest legal value of each gene."""
        last = 2 if self.bounds == "released" else 1
        return (*self.layers * (self._ids[1], *(BLOCK - 2) * (1,), last), self._inputs[1])

    def check(self, genome: Sequence[int]) -> Genome:
        """Return the genome, or raise `UserError` for another length or a gene out of its bounds."""
        if len(genome) != self.length:
            raise UserError(f"expected a genome of {self.length} genes for {self.layers} cells, got {len(genome)}")
        for place, (gene, low, high) in enumerate(zip(genome, self.lower, self.upper, strict=True)):
            if isinstance(gene, bool) or not isinstance(gene, int) or not low <= gene <= high:
                raise UserError(f"expected gene {place} in {low}..{high} ({self.bounds} bounds), got {gene!r}: it is "
                                f"{self._meaning(place)}")  # fmt: skip
        return tuple(genome)

    def _meaning(self, place: int) -> str:
        if place == self.length - 1:
            return "how many earlier cells each cell reads"
        cell, offset = divmod(place, BLOCK)
        return f"a kernel of cell {cell}" if offset else f"the motif of cell {cell}"

    def decode(self, genome: Sequence[int], *, name: str, source: str) -> MotifGenotype:
        """Return what a genome stands for; it keeps the genome. Raises `UserError` if the genome is not legal."""
        genes = self.check(genome)
        cells = tuple(self._decoded(block, genes[-1]) for block in self._blocks(genes))
        return MotifGenotype(name=name, source=source, inputs=genes[-1], genome=genes, cells=cells)

    def canonical(self, genome: Sequence[int], reductions: frozenset[int]) -> Genome:
        """Return a legal genome with every gene that changes nothing at its least value; `reductions` hold no motif."""
        active = self.active(genome, reductions)
        return tuple(gene if i in active else low for i, (gene, low) in enumerate(zip(genome, self.lower, strict=True)))

    def active(self, genome: Sequence[int], reductions: frozenset[int]) -> frozenset[int]:
        """Return the places of the genes that decide something: all others are inert."""
        places = {self.length - 1}
        for cell, block in enumerate(self._blocks(genome)):
            if cell in reductions:
                continue
            motif = self._motifs[genome[-1], block[0]]
            kernels = (1 + i for i, (op, _) in enumerate(motif.links) if parse_link(op).kernel)
            places |= {BLOCK * cell + offset for offset in (0, *kernels)}
            if any(parse_link(op).kernel for op, _ in motif.feedback):
                places.add(BLOCK * cell + _feedback_place(motif))
        return frozenset(places)

    def _blocks(self, genome: Sequence[int]) -> Iterator[Sequence[int]]:
        for cell in range(self.layers):
            yield genome[BLOCK * cell : BLOCK * (cell + 1)]

    def _decoded(self, block: Sequence[int], inputs: int) -> Motif:
        motif = self._motifs[inputs, block[0]]
        places = iter(range(1, BLOCK))

        def forward(op: str, gene: int) -> str:
            link = parse_link(op)
            return Link(KERNELS[gene], link.sign).name if link.kernel else op

        def backward(op: str, gene: int) -> str:
            if not parse_link(op).kernel:
                return op
            return RELEASED_FEEDBACK[gene].name if self.bounds == "released" else forward(op, gene)

        nodes = tuple(
            tuple(Edge(forward(op, block[next(places)]), state) for op, state in node) for node in motif.nodes
        )
        shared = block[_feedback_place(motif)]
        feedback = tuple(Edge(backward(op, shared), state) for op, state in motif.feedback)
        return Motif(name=motif.name, nodes=nodes, feedback=feedback)


def _feedback_place(motif: Motif) -> int:
    return len(motif.links) + len(motif.feedback)
