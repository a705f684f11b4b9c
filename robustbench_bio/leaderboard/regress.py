"""Did a change make networks less robust? Paired tests against a baseline of entries, example by example."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.core.registry import unknown
from robustbench_bio.core.stats import all_of, discordant, mcnemar
from robustbench_bio.evaluation.plan import Slice, Subject
from robustbench_bio.leaderboard.folders import Folders
from robustbench_bio.leaderboard.remeasure import remeasure
from robustbench_bio.records.entry import Entry, Measured
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import DataSource

#: What is asked of each network.
CLEAN, WORST = "clean", "worst case"


@dataclass(frozen=True)
class Limits:
    """When a drop is a regression: where it is both significant and notable.

    Attributes:
        alpha: chance of a false alarm over all tests of a call (Holm 1979).
        min_drop: smallest drop that counts, in points of accuracy.
    """

    alpha: float = 0.05
    min_drop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError(f"expected alpha in (0, 1), got {self.alpha:g}")
        if not 0 <= self.min_drop <= 100:
            raise UserError(f"expected min-drop in points, 0 to 100, got {self.min_drop:g}")


@dataclass(frozen=True)
class Pair:
    """The same examples before and after a change.

    Attributes:
        question: `CLEAN` or `WORST`.
        before: which examples were robust in the baseline.
        after: which are now.
    """

    model: str
    question: str
    before: list[bool]
    after: list[bool]


@dataclass(frozen=True)
class Change:
    """What became of one network in one respect.

    Attributes:
        p: one-sided exact McNemar p for "was robust more often before", after Holm's correction over all tests.
        regression: whether the drop is significant and notable.
    """

    pair: Pair
    p: float
    regression: bool

    @property
    def before(self) -> float:
        """Accuracy in the baseline."""
        return sum(self.pair.before) / len(self.pair.before)

    @property
    def after(self) -> float:
        """Accuracy now."""
        return sum(self.pair.after) / len(self.pair.after)

    @property
    def lost(self) -> int:
        """Examples that were robust before and are not now."""
        return sum(b and not a for b, a in zip(self.pair.before, self.pair.after, strict=True))

    @property
    def won(self) -> int:
        """Examples that are robust now and were not before."""
        return sum(a and not b for b, a in zip(self.pair.before, self.pair.after, strict=True))

    def line(self) -> str:
        """Return what changed in one line."""
        return (
            f"{self.pair.model}: {self.pair.question} {100 * self.before:.1f} % to {100 * self.after:.1f} % "
            f"(n = {len(self.pair.before)}, {self.lost} lost, {self.won} won, p = {self.p:.2g})"
        )


@dataclass(frozen=True)
class Comparison:
    """All changes of a call.

    Attributes:
        changes: two for each network.
        left_out: network → why it was not compared.
    """

    changes: list[Change]
    limits: Limits
    left_out: dict[str, str]

    @property
    def regressions(self) -> list[Change]:
        """The changes that are regressions."""
        return [change for change in self.changes if change.regression]


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected, highest = [1.0] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected


def judged(pairs: Sequence[Pair], limits: Limits, left_out: dict[str, str] | None = None) -> Comparison:
    """Return which drops are regressions.

    Raises:
        UserError: nothing to compare.
    """
    if not pairs:
        reasons = "; ".join(f"{model}: {reason}" for model, reason in (left_out or {}).items())
        raise UserError(f"expected a network on both sides, got none{': ' if reasons else ''}{reasons}")
    values = holm([mcnemar(*discordant(pair.before, pair.after)) for pair in pairs])
    changes = []
    for pair, p in zip(pairs, values, strict=True):
        drop = 100 * (sum(pair.before) - sum(pair.after)) / len(pair.before)
        changes.append(Change(pair, p, p < limits.alpha and drop >= limits.min_drop - 1e-9))
    return Comparison(changes, limits, left_out or {})


@dataclass(frozen=True)
class Part:
    """Which part of a baseline is compared.

    Attributes:
        attacks: comma-separated patterns of attacks, of those at the board's radius.
        fraction: a random part of the examples, instead.
        seed: of that part.
    """

    attacks: str = "*"
    n_examples: int | None = None
    fraction: float | None = None
    seed: int = 0

    def rows(self, n: int) -> list[int]:
        """Return places of the examples to compare, of n."""
        if self.n_examples is not None and self.fraction is not None:
            raise UserError("expected one of --n-examples and --fraction, got both")
        if self.fraction is not None:
            if not 0 < self.fraction <= 1:
                raise UserError(f"expected a fraction in (0, 1], got {self.fraction:g}")
            draw = random.Random(f"{self.seed}|rows")  # noqa: S311
            return sorted(draw.sample(range(n), max(1, round(self.fraction * n))))
        if self.n_examples is not None and not 1 <= self.n_examples <= n:
            raise UserError(f"expected n-examples in 1..{n}, as many as the baseline has, got {self.n_examples}")
        return list(range(self.n_examples or n))

    def measurements(self, entry: Entry) -> list[Measured]:
        """Return the measurements of an entry to compare, those that rank it.

        Raises:
            UserError: no attack is called that.
        """
        ranking = [m for m in entry.measurements if m.spec.threat == entry.rank_by]
        patterns = [part.strip() for part in self.attacks.split(",")]
        chosen = [m for m in ranking if any(fnmatchcase(m.spec.attack, pattern) for pattern in patterns)]
        if not chosen:
            known = sorted({m.spec.attack for m in ranking})
            raise UserError(unknown(f"attack of {entry.model}'s entry", self.attacks, known))
        return chosen


def read_entries(folder: Path, models: str = "*") -> dict[str, Entry]:
    """Return model → entry for the files of a folder whose names match comma-separated patterns.

    Raises:
        UserError: no such folder, no such entry, or one that is not valid.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"expected a folder of entries such as leaderboards/digits-linf, got {folder} without any")
    chosen = [f for f in files if any(fnmatchcase(f.stem, part.strip()) for part in models.split(","))]
    if not chosen:
        raise UserError(unknown("entry", models, [file.stem for file in files]))
    return {file.stem: catalog.entry(file) for file in chosen}


def paired(entry: Entry, net: nn.Module, part: Part, report: Callable[[str], None] = lambda _: None) -> list[Pair]:
    """Measure a network again as an entry asks and return the examples before and after.

    `net` is what is to stand in the entry's place now, in eval mode; `report` is called with the name of each
    measurement before it starts.

    Raises:
        UserError: the data is not what the entry was measured on, or the network cannot be evaluated.
    """
    spec, subject = entry.measurements[0].spec, Subject(entry.model, net)
    examples, rows = Slice.load(DataSource(spec.dataset), entry.n), part.rows(entry.n)
    if examples.sha256 != spec.data_sha256:
        raise UserError(f"entry {entry.model} was measured on other examples of {spec.dataset}: renew the baseline")
    chosen = [one for one in part.measurements(entry) if one.spec.gradient.source != "rule" or subject.has_rules]
    if not chosen:
        raise UserError(f"expected an attack with the exact gradient on {entry.model}, which has no rules: got none")
    robust: list[list[bool]] = []
    for measured in chosen:
        report(measured.spec.title)
        outcomes = remeasure(subject, measured.spec, examples, rows)
        robust.append([outcome.robust for outcome in outcomes])
    before_clean, before = entry.measurements[0].clean_correct(), all_of(one.robust_correct() for one in chosen)
    return [
        Pair(entry.model, CLEAN, [before_clean[row] for row in rows], [outcome.clean for outcome in outcomes]),
        Pair(entry.model, WORST, [before[row] for row in rows], all_of(robust)),
    ]


def against_checkout(
    baseline: Path,
    folders: Folders,
    *,
    models: str = "*",
    part: Part | None = None,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Measure the networks of the zoo again and compare them with a baseline's entries.

    `models` are comma-separated patterns. Compared is by default everything that ranks.
    """
    part, limits = part or Part(), limits or Limits()
    entries = read_entries(baseline, models)
    pairs: list[Pair] = []
    left_out: dict[str, str] = {}
    for done, (model, entry) in enumerate(entries.items()):
        dataset = entry.measurements[0].spec.dataset
        card = folders.card(model)
        if card is None or dataset not in card.datasets:
            left_out[model] = "not in the zoo any more"
            continue

        def report(line: str, done: int = done, model: str = model) -> None:
            progress(done, len(entries), f"{model}: {line}")

        pairs += paired(entry, folders.network(card, dataset), part, report)
    return judged(pairs, limits, left_out)


def between(
    baseline: Path, candidate: Path, *, models: str = "*", part: Part | None = None, limits: Limits | None = None
) -> Comparison:
    """Compare two folders of entries; nothing is measured.

    Raises:
        UserError: entries that were not measured alike, or on other examples.
    """
    part, limits = part or Part(), limits or Limits()
    old, new = read_entries(baseline, models), read_entries(candidate, models)
    left_out = dict.fromkeys(old.keys() - new.keys(), "not in the candidate")
    left_out |= dict.fromkeys(new.keys() - old.keys(), "not in the baseline")
    pairs = [pair for model in old if model in new for pair in _between(old[model], new[model], part)]
    return judged(pairs, limits, dict(sorted(left_out.items())))


def _between(before: Entry, after: Entry, part: Part) -> Iterator[Pair]:
    """Yield the examples of one network in two entries, clean and in the worst case."""
    rows = part.rows(before.n)
    ours, theirs = (part.measurements(entry) for entry in (before, after))
    if sorted(map(_asked, ours)) != sorted(map(_asked, theirs)):
        raise UserError(f"entries of {before.model} were measured by different attacks or on other examples: renew one")
    clean = [entry.measurements[0].clean_correct() for entry in (before, after)]
    worst = [all_of(one.robust_correct() for one in measured) for measured in (ours, theirs)]
    for question, (was, now) in ((CLEAN, clean), (WORST, worst)):
        yield Pair(before.model, question, [was[row] for row in rows], [now[row] for row in rows])


def _asked(measured: Measured) -> str:
    spec = measured.spec
    return f"{spec.title} {sorted(spec.params.items())} {spec.data_sha256}"
