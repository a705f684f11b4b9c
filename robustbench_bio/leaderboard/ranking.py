"""From entries to ranks: what is told apart by paired tests gets different ranks, the rest shares a range."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from robustbench_bio.core.errors import UserError
from robustbench_bio.records.entry import Entry

#: Two rows are told apart if their two-sided exact McNemar p is below this.
LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """One entry and where it stands.

    Attributes:
        entry: the entry.
        best: 1 + number of rows that are significantly above it.
        worst: number of rows less those that are significantly below it.
    """

    entry: Entry
    best: int
    worst: int

    @property
    def rank(self) -> str:
        """The range as people read it: "1–3", or "2" where it is one rank."""
        return str(self.best) if self.best == self.worst else f"{self.best}–{self.worst}"


@lru_cache(maxsize=65536)
def paired_p(only_a: int, only_b: int) -> float:
    """Return the two-sided exact McNemar p-value (McNemar 1947) of two counts of examples.

    Args:
        only_a: examples that stand on one side alone.
        only_b: examples that stand on the other side alone.
    """
    n = only_a + only_b
    term = tail = 1
    for k in range(min(only_a, only_b)):  # C(n, k + 1) from C(n, k): far quicker than each from factorials
        term = term * (n - k) // (k + 1)
        tail += term
    return float(min(1.0, 2 * tail / 2**n))


def ranked(entries: Sequence[Entry]) -> list[Row]:
    """Return a row for each entry, largest worst case first, then larger clean accuracy, then by name.

    Raises:
        UserError: two entries of one model, or entries that were not measured on the same examples.
    """
    _comparable(entries)
    order = sorted(entries, key=lambda e: (-e.scores.worst_case, -e.scores.clean_accuracy, e.model))
    # Bits of one whole number: sums over n examples and n² pairs are then cheap.
    stands = [sum(bit << i for i, bit in enumerate(entry.stands())) for entry in order]
    rows = []
    for own, entry in zip(stands, order, strict=True):
        above = below = 0
        for other in stands:
            only_own, only_other = (own & ~other).bit_count(), (other & ~own).bit_count()
            if only_own != only_other and paired_p(only_own, only_other) < LEVEL:
                above, below = above + (only_other > only_own), below + (only_own > only_other)
        rows.append(Row(entry, 1 + above, len(order) - below))
    return rows


def _comparable(entries: Sequence[Entry]) -> None:
    names = [entry.model for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"expected each model once on a board, got {twice} twice: remove one entry")
    for entry in entries[1:]:
        first, spec = entries[0].measurements[0].spec, entry.measurements[0].spec
        if (spec.data_sha256, entry.threat) != (first.data_sha256, entries[0].threat):
            raise UserError(
                f"expected entries on the same examples and threat model, got {entries[0].model} and {entry.model} "
                "on different ones: measure one anew with biorobust submit"
            )
