"""From entries to ranks: what is told apart by paired tests gets different ranks, the rest shares a range."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.stats import mcnemar
from robustbench_bio.records.entry import Entry

#: Two entries are told apart if their two-sided exact McNemar p is below this.
LEVEL = 0.05


@dataclass(frozen=True)
class RankedEntry:
    """One entry and its range of ranks.

    Attributes:
        best: 1 + number of entries that are significantly above it.
        worst: number of entries less those that are significantly below it.
    """

    entry: Entry
    best: int
    worst: int

    @property
    def rank(self) -> str:
        """The range as people read it: "1–3", or "2" where it is one rank."""
        return str(self.best) if self.best == self.worst else f"{self.best}–{self.worst}"


def rank_entries(entries: Sequence[Entry]) -> list[RankedEntry]:
    """Return entries with their ranks, largest worst case first, then larger clean accuracy, then by name.

    Raises:
        UserError: two entries of one model, or entries that were not measured on the same examples.
    """
    _comparable(entries)
    order = sorted(entries, key=lambda e: (-e.scores.worst_case, -e.scores.clean_accuracy, e.model))
    # Bits of one whole number: sums over n examples and n² pairs are then cheap.
    robust = [sum(bit << i for i, bit in enumerate(entry.robust_correct())) for entry in order]
    ranked = []
    for own, entry in zip(robust, order, strict=True):
        above = below = 0
        for other in robust:
            only_own, only_other = (own & ~other).bit_count(), (other & ~own).bit_count()
            if only_own != only_other and mcnemar(only_own, only_other, two_sided=True) < LEVEL:
                above, below = above + (only_other > only_own), below + (only_own > only_other)
        ranked.append(RankedEntry(entry, 1 + above, len(order) - below))
    return ranked


def _comparable(entries: Sequence[Entry]) -> None:
    names = [entry.model for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"expected each model once on a board, got {twice} twice: remove one entry")
    for entry in entries[1:]:
        first, spec = entries[0].measurements[0].spec, entry.measurements[0].spec
        if (spec.data_sha256, entry.rank_by) != (first.data_sha256, entries[0].rank_by):
            raise UserError(
                f"expected entries on the same examples and threat model, got {entries[0].model} and {entry.model} "
                "on different ones: measure one anew with biorobust submit"
            )
