"""Genotypes of motifs: which small circuit of excitation and inhibition stands in each cell. Loads no torch."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias

import tomli_w
from pydantic import ConfigDict, Field, field_validator, model_validator

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.records.base import GenotypeName, Record, Text, read_document
from robustbench_bio.records.genotype import MAX_NODES, Edge, Genotype
from robustbench_bio.records.kinds import kind_of

#: Links that hold no weights: no link at all, and the identity.
PLAIN_LINKS = ("none", "skip_connect")

#: All links. The suffix is the sign: p passes what is positive (excitation), n what is negative (inhibition).
LINKS = (*PLAIN_LINKS, *(f"conv_{k}x{k}{sign}" for k in (3, 5) for sign in ("_p", "_n", "")))

#: Largest number of cells of a network, and of earlier outputs that a cell reads.
MAX_CELLS, MAX_INPUTS = 24, 4

#: Largest integer of a genome; those of the space mse-nas end at a few.
MAX_GENE = 255

Gene = Annotated[int, Field(ge=0, le=MAX_GENE, strict=True)]

Coding = Literal["direct", "frames"]


class Link(NamedTuple):
    """A link in its parts: side of the convolution, 0 where there is none, and "p", "n" or ""."""

    kernel: int
    sign: str

    @property
    def name(self) -> str:
        """The name of a convolution, such as conv_3x3_p."""
        return f"conv_{self.kernel}x{self.kernel}" + (f"_{self.sign}" if self.sign else "")


def parse_link(op: str) -> Link:
    """Split a link's name: "conv_5x5_n" → (5, "n"); raises `UserError` for a name that does not exist."""
    if op not in LINKS:
        raise UserError(unknown("link", op, list(LINKS)))
    if op in PLAIN_LINKS:
        return Link(0, "")
    _, side, *sign = op.split("_")
    return Link(int(side[0]), sign[0] if sign else "")


def reduction_cells(layers: int, coding: Coding) -> frozenset[int]:
    """Return which cells halve the map and hold no motif: at the quarters for images, 1, 3, 5 and 7 for frames."""
    if coding == "frames":
        return frozenset({1, 3, 5, 7}) & frozenset(range(layers))
    return frozenset({layers // 4, layers // 2, 3 * layers // 4})


class Motif(Record):
    """A circuit: a node is the sum of its links, the output is the nodes side by side.

    With k inputs the inputs are states 0..k−1 and node i is state k + i. Feedback is one link for each node but
    the first: as soon as node i is there, its link adds to an earlier state, which only what comes later sees. It
    does not reach back in time.

    Attributes:
        nodes: for each node its links as (operation, state that it comes from), as many as the motif has inputs.
        feedback: (operation, state that it goes to) of nodes 1, 2, …; empty where nothing feeds back.
    """

    model_config = ConfigDict(strict=False)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")
    nodes: tuple[tuple[Edge, ...], ...] = Field(min_length=1, max_length=MAX_NODES)
    feedback: tuple[Edge, ...] = ()

    @property
    def inputs(self) -> int:
        """How many earlier outputs it reads."""
        return len(self.nodes[0])

    @property
    def links(self) -> tuple[Edge, ...]:
        """The links of all nodes in order."""
        return tuple(link for node in self.nodes for link in node)

    @model_validator(mode="after")
    def _check(self) -> Self:
        sizes = [len(node) for node in self.nodes]
        if len(set(sizes)) > 1 or not 2 <= sizes[0] <= MAX_INPUTS:
            raise ValueError(
                f"motif {self.name}: expected the same number of links for every node, one for each of 2 to "
                f"{MAX_INPUTS} inputs, got {sizes}: write a link that is not there as none"
            )
        for i, node in enumerate(self.nodes):
            self._known(node, self.inputs + i, f"node {i}", "come from")
        if len(self.feedback) not in {0, len(self.nodes) - 1}:
            raise ValueError(
                f"motif {self.name}: expected {len(self.nodes) - 1} feedback links, one for each node but the first, "
                f"or none at all, got {len(self.feedback)}: write one that is not there as none"
            )
        for i, link in enumerate(self.feedback, 1):
            self._known((link,), self.inputs + i, f"feedback of node {i}", "go to")
        return self

    def _known(self, links: tuple[Edge, ...], states: int, where: str, verb: str) -> None:
        for op, state in links:
            try:
                parse_link(op)
            except UserError as error:
                raise ValueError(f"motif {self.name}, {where}: {error}") from None
            if not 0 <= state < states:
                raise ValueError(
                    f"motif {self.name}, {where}: expected a link to {verb} a state in 0..{states - 1}, got {state}"
                )


class MotifGenotype(Record):
    """A motif for each cell of a network, with the kernels that evolution chose.

    Cells that halve the map hold no motif; which they are depends on the coding (`reduction_cells`), and what the
    genotype says of them is kept but decides nothing there.

    Attributes:
        kind: tells the file from one of cells.
        source: where it was published, or how it was found.
        inputs: how many earlier cell outputs each cell reads (the macro type), 2, 3 or 4.
        cells: their motifs.
        genome: the integers that it was decoded from, where it was; kept so that nothing of them is lost.
    """

    model_config = ConfigDict(strict=False)

    kind: Literal["motifs"] = "motifs"
    name: GenotypeName
    source: Text
    inputs: int = Field(ge=2, le=MAX_INPUTS, strict=True)
    genome: tuple[Gene, ...] = Field(default=(), max_length=20 * MAX_CELLS + 1)
    cells: tuple[Motif, ...] = Field(min_length=1, max_length=MAX_CELLS)

    @field_validator("cells")
    @classmethod
    def _same_inputs(cls, cells: tuple[Motif, ...], info: Any) -> tuple[Motif, ...]:
        inputs = info.data.get("inputs")
        for i, cell in enumerate(cells):
            if inputs is not None and cell.inputs != inputs:
                raise ValueError(f"expected motifs of {inputs} inputs, got {cell.name} of {cell.inputs} in cell {i}")
        return cells

    def to_toml(self) -> str:
        """Return the canonical text: every field, in order, one node a line."""

        def links(edges: tuple[Edge, ...]) -> str:
            return ", ".join(f'["{op}", {state}]' for op, state in edges)

        head = {"kind": self.kind, "name": self.name, "source": self.source, "inputs": self.inputs}
        lines = [tomli_w.dumps(head).rstrip()]
        if self.genome:
            lines.append(f"genome = {list(self.genome)}")
        for cell in self.cells:
            lines += ["", "[[cells]]", f'name = "{cell.name}"', "nodes = ["]
            lines += [f"    [{links(node)}]," for node in cell.nodes]
            lines += ["]", f"feedback = [{links(cell.feedback)}]"]
        return "\n".join(lines) + "\n"


AnyGenotype: TypeAlias = Genotype | MotifGenotype


def read_genotype(path: Path) -> AnyGenotype:
    """Read a genotype of either kind from a TOML file; raises `UserError` naming the file and the field."""
    document = read_document(path)
    kind = Genotype if kind_of(document) == "cells" else MotifGenotype
    return kind.read(document, f"{path}: ")
