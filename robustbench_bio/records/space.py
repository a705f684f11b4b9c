"""Search spaces: which operations, under which rules, may stand on the edges of a cell. Loads no torch by itself."""

from typing import Literal

from pydantic import Field, field_validator

from robustbench_bio.core.errors import UserError
from robustbench_bio.records.base import Identifier, Record, Text
from robustbench_bio.records.genotype import MAX_NODES, Primitive, parse_primitive


class Space(Record):
    """What an engine may choose from, and the network in which it searches.

    Attributes:
        primitives: names of operations with their rules' suffixes, no two alike. The order decides ties.
        nodes: intermediate nodes of a cell.
        stem: what stands before the cells; "cifar" keeps the resolution.
        partial: K of PC-DARTS (Xu et al. 2020): 1/K of the channels go through the operations.
        pool_norm: whether pools are followed by batch norm in the supernet, as in DARTS.
        channels, layers: C and cells of the supernet, unless told otherwise.
    """

    name: Identifier
    title: Text
    summary: Text = ""
    reference: Text = ""
    primitives: list[str] = Field(min_length=2, max_length=1000)
    nodes: int = Field(default=4, ge=1, le=MAX_NODES)
    stem: Literal["cifar"] = "cifar"
    partial: int = Field(default=1, ge=1, le=4096)
    pool_norm: bool = True
    channels: int = Field(default=16, ge=1, le=4096)
    layers: int = Field(default=8, ge=1, le=1000)

    @field_validator("primitives")
    @classmethod
    def _known_and_different(cls, names: list[str]) -> list[str]:
        seen: dict[Primitive, str] = {}
        for name in names:
            try:
                primitive = parse_primitive(name)
            except UserError as error:
                raise ValueError(str(error)) from None
            if primitive in seen:
                raise ValueError(f"expected each primitive once, got {name} after {seen[primitive]}: remove one")
            seen[primitive] = name
        return names

    @property
    def sources(self) -> tuple[int, ...]:
        """State that each edge comes from, in the order of DARTS: node i sees states 0..i+1, and so has i+2 edges."""
        return tuple(state for node in range(self.nodes) for state in range(node + 2))

    @property
    def parsed(self) -> tuple[Primitive, ...]:
        """Operation and rule of each primitive."""
        return tuple(parse_primitive(name) for name in self.primitives)

    @property
    def choices(self) -> tuple[str, ...]:
        """The primitives that may stand in a genotype: all but "none"."""
        pairs = zip(self.primitives, self.parsed, strict=True)
        return tuple(name for name, primitive in pairs if primitive.operation != "none")
