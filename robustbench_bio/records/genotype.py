"""Genotypes: which operation, under which learning rule, stands on each edge of a cell. Loads no torch."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import tomli_w
from pydantic import ConfigDict, Field, Strict, ValidationInfo, field_validator

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import Registry, unknown
from robustbench_bio.records.base import GenotypeName, Record, Text

#: Largest number of intermediate nodes of a cell; a guard against a file that would build for minutes.
MAX_NODES = 12

#: Operation → whether it holds convolutions that a rule may own. Genotypes are read without torch, so those of DARTS
#: are known before `nets.operations` builds them; any other is looked up there.
OPERATIONS = Registry(
    "operation",
    "robustbench_bio.nets",
    group="robustbench_bio.networks",
    known=dict.fromkeys(("none", "max_pool_3x3", "avg_pool_3x3"), False)
    | dict.fromkeys(("skip_connect", *(f"sep_conv_{k}x{k}" for k in (3, 5, 7))), True)
    | dict.fromkeys(("dil_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7"), True),
)

#: Rule → suffix of a primitive's name; a name without suffix means bp. Those of BioNAS are known without torch; any
#: other rule declares its own, and the first one to be read imports the rules.
SUFFIXES = Registry(
    "rule of a primitive",
    "robustbench_bio.rules",
    group="robustbench_bio.rules",
    known={"usf": "u", "brsf": "br", "frsf": "fr", "fa": "fa", "bp": "bp"},
)

#: What `random:SEED` on a card draws from: the rules of the BioNAS search space.
RANDOM_RULES = ("usf", "brsf", "frsf", "fa")

#: BioNAS abbreviates two rules differently on skips; the long forms are understood there too.
SKIP_SUFFIXES = {"brsf": "b", "frsf": "f"}


def declare_suffix(rule: str, suffix: str) -> None:
    """Let genotypes write a rule as this suffix: lower-case letters and digits, and no other rule's."""
    if not re.fullmatch(r"[a-z0-9]+", suffix):
        raise ValueError(f"expected a suffix of lower-case letters and digits for the rule {rule}, got {suffix!r}")
    taken = [*SUFFIXES.registered().items(), *SKIP_SUFFIXES.items()]
    for owner, other in taken:
        if other == suffix and owner != rule:
            raise ValueError(f"expected a suffix of its own for the rule {rule}, got {suffix!r}, which is {owner}'s")
    SUFFIXES.register(rule)(suffix)


class Primitive(NamedTuple):
    """An operation, such as "sep_conv_3x3", and the rule under which its convolutions learn; "bp" if it has none."""

    operation: str
    rule: str

    @property
    def name(self) -> str:
        """The name in a genotype: the operation, then the suffix of its rule unless that is bp."""
        if self.rule == "bp" or not OPERATIONS.get(self.operation):
            return self.operation
        short = SKIP_SUFFIXES.get(self.rule) if self.operation == "skip_connect" else None
        return f"{self.operation}_{short or SUFFIXES.get(self.rule)}"


def _spellings(operations: Mapping[str, bool], suffixes: Mapping[str, str]) -> dict[str, Primitive]:
    """Return every primitive by every name that it may be written as."""
    spellings = {name: Primitive(name, "bp") for name in operations}
    for operation in (name for name, ruled in operations.items() if ruled):
        pairs = [*suffixes.items(), *(SKIP_SUFFIXES.items() if operation == "skip_connect" else ())]
        spellings |= {f"{operation}_{suffix}": Primitive(operation, rule) for rule, suffix in pairs}
    return spellings


#: What can be read without torch.
_KNOWN = _spellings(OPERATIONS.registered(), SUFFIXES.registered())


def parse_primitive(name: str) -> Primitive:
    """Split a primitive's name into operation and rule: "sep_conv_3x3_fr" → ("sep_conv_3x3", "frsf").

    Raises:
        UserError: no such operation, or a rule on an operation without weights.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    operations = dict(OPERATIONS.items())
    spellings = _spellings(operations, dict(SUFFIXES.items()))
    if name in spellings:
        return spellings[name]
    operation = name.rpartition("_")[0]
    if operations.get(operation) is False:
        raise UserError(f"expected no rule on {operation}, got {name!r}: it has no weights, write {operation}")
    raise UserError(unknown("operation", name, spellings))


class Edge(NamedTuple):
    """One edge of a cell: a primitive's name and a state, of which 0 and 1 are the cell's inputs, 2 the first node."""

    op: Annotated[str, Strict()]
    state: Annotated[int, Strict()]


def _all_nodes(kind: str) -> Any:
    def factory(data: dict[str, Any]) -> tuple[int, ...]:
        return tuple(range(2, len(data[kind]) // 2 + 2))

    return Field(default_factory=factory)


class Genotype(Record):
    """Two cells as in DARTS (Liu et al. 2019): edges 2i and 2i+1 enter node i, whose state is i + 2."""

    model_config = ConfigDict(strict=False)  # arrays of TOML become tuples
    form: ClassVar[str] = 'write an edge as ["sep_conv_3x3_u", 1], a concat as [2, 3]'

    name: GenotypeName
    source: Text
    """Where it was published, or how it was found."""
    normal: tuple[Edge, ...]
    reduce: tuple[Edge, ...]
    """Of the cell that halves the resolution; its edges from states 0 and 1 have stride 2."""
    normal_concat: tuple[Annotated[int, Strict()], ...] = _all_nodes("normal")
    """States that make the cell's output; all nodes by default."""
    reduce_concat: tuple[Annotated[int, Strict()], ...] = _all_nodes("reduce")

    @field_validator("normal", "reduce")
    @classmethod
    def _check_edges(cls, edges: tuple[Edge, ...]) -> tuple[Edge, ...]:
        if not edges or len(edges) % 2:
            raise ValueError(f"expected two edges for each node, got {len(edges)}: add or remove one")
        if len(edges) > 2 * MAX_NODES:
            raise ValueError(f"expected at most {MAX_NODES} nodes, got {len(edges) // 2}: remove some")
        for i, (op, state) in enumerate(edges):
            last = i // 2 + 1
            if not 0 <= state <= last:
                raise ValueError(
                    f"expected edge {i} to come from a state in 0..{last}, got {state}: "
                    f"its node is state {last + 1} and sees only earlier ones"
                )
            try:
                parse_primitive(op)
            except UserError as e:
                raise ValueError(f"edge {i}: {e}") from e
        return edges

    @field_validator("normal_concat", "reduce_concat")
    @classmethod
    def _check_concat(cls, concat: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        edges = info.data.get(str(info.field_name).removesuffix("_concat"))
        if edges is None:  # that field has its own error
            return concat
        last = len(edges) // 2 + 1
        if not concat or len(set(concat)) < len(concat) or not all(0 <= state <= last for state in concat):
            raise ValueError(
                f"expected one or more different states in 0..{last}, got {list(concat)}: "
                f"leave it out to take all nodes, 2..{last}"
            )
        return concat

    def to_toml(self) -> str:
        """Return the canonical text: every field, in order, one edge a line."""
        lines = [tomli_w.dumps({"name": self.name, "source": self.source}).rstrip()]
        for kind in ("normal", "reduce"):
            edges = (f'    ["{op}", {state}],' for op, state in getattr(self, kind))
            lines += [f"{kind} = [", *edges, "]"]
        lines += [f"{kind}_concat = {list(getattr(self, f'{kind}_concat'))}" for kind in ("normal", "reduce")]
        return "\n".join(lines) + "\n"
