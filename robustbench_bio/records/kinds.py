"""Cells or motifs: which of the two a genotype or a search space is of."""

from typing import Literal

Kind = Literal["cells", "motifs"]


def kind_of(record: object) -> Kind:
    """Tell what a genotype or a search space is of, from the record or from the document of its file.

    Only those of motifs name their kind: cells came first, and their files are as they were.
    """
    kind = record.get("kind") if isinstance(record, dict) else getattr(record, "kind", None)
    return "cells" if kind is None else "motifs"
