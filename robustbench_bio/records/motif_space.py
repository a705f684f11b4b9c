"""Search spaces of motifs: the circuits that a genome may name. Loads no torch by itself."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from robustbench_bio.core.errors import UserError
from robustbench_bio.records.base import Identifier, Record, Text, first_error, read_document
from robustbench_bio.records.genotype import Edge
from robustbench_bio.records.kinds import kind_of
from robustbench_bio.records.motifs import MAX_CELLS, Motif
from robustbench_bio.records.space import Space

#: Genes of a cell: its motif, then a kernel for each link, and one for all feedback.
BLOCK = 20


class ListedMotif(Record):
    """A motif as a space lists it.

    Attributes:
        id: the gene that stands for it among the motifs of as many inputs.
        nodes, feedback: as in `Motif`.
        malformed: why it cannot be built, for a motif that was published so; it is refused by name.
        ours: whether it was not published, but stands in for one that is malformed.
    """

    model_config = ConfigDict(strict=False)

    name: Text
    id: int = Field(ge=0, le=99)
    nodes: tuple[tuple[Edge, ...], ...] = Field(min_length=1)
    feedback: tuple[Edge, ...] = ()
    malformed: Text = ""
    ours: bool = False

    @property
    def motif(self) -> Motif:
        """The motif itself.

        Raises:
            UserError: it is malformed.
        """
        try:
            return Motif(name=self.name, nodes=self.nodes, feedback=self.feedback)
        except ValidationError as error:
            reason = self.malformed or first_error(error, Motif)
            raise UserError(f"motif {self.name} cannot be built: {reason}") from None


class MotifSpace(Record):
    """What an engine may choose from for spiking networks: motifs, kernels, and how far back each cell reads.

    No two motifs that can be built share inputs and id. `channels` and `layers` hold unless a search is told otherwise.
    """

    kind: Literal["motifs"]
    """Tells the file from a space of cells."""
    name: Identifier
    title: Text
    summary: Text = ""
    reference: Text = ""
    motifs: list[ListedMotif] = Field(min_length=2, max_length=100)
    channels: int = Field(default=48, ge=1, le=4096)
    layers: int = Field(default=6, ge=1, le=MAX_CELLS)

    @field_validator("motifs")
    @classmethod
    def _buildable_and_different(cls, motifs: list[ListedMotif]) -> list[ListedMotif]:
        seen: dict[tuple[int, int], str] = {}
        for listed in motifs:
            try:
                motif = listed.motif
            except UserError as error:
                if listed.malformed:
                    continue
                raise ValueError(str(error)) from None
            if listed.malformed:
                raise ValueError(f"expected motif {listed.name} to be malformed, as it says, got one that is not")
            if len(motif.links) + len(motif.feedback) >= BLOCK:
                raise ValueError(f"expected fewer than {BLOCK} links in motif {motif.name}, got more: leave some out")
            key = (motif.inputs, listed.id)
            if key in seen:
                raise ValueError(f"expected one motif {key[1]} of {key[0]} inputs, got {seen[key]} and {motif.name}")
            seen[key] = motif.name
        if len({listed.name for listed in motifs}) < len(motifs):
            raise ValueError("expected each name of a motif once")
        return motifs

    @property
    def buildable(self) -> dict[tuple[int, int], Motif]:
        """(inputs, id) → motif, of all that are not malformed."""
        motifs = [(listed.id, listed.motif) for listed in self.motifs if not listed.malformed]
        return {(motif.inputs, number): motif for number, motif in motifs}


def read_space(path: Path) -> Space | MotifSpace:
    """Read a search space of either kind from a TOML file; raises `UserError` naming the file and the field."""
    document = read_document(path)
    kind = Space if kind_of(document) == "cells" else MotifSpace
    return kind.read(document, f"{path}: ")
