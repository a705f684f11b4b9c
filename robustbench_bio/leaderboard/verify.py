"""Do the entries of a board hold? Every file is checked, and a random part of the outcomes is measured again."""

import contextlib
import multiprocessing
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.diagnosis.assess import probed, weighed
from robustbench_bio.evaluation.plan import Plan, Subject
from robustbench_bio.leaderboard.entry_checks import check_entry, check_named, subject_of
from robustbench_bio.leaderboard.folders import Folders, plan_of
from robustbench_bio.leaderboard.remeasure import differences, queries_fault, remeasure
from robustbench_bio.leaderboard.sampling import DIAGNOSIS, Remeasurement, sample, workloads
from robustbench_bio.leaderboard.submit import finding_of
from robustbench_bio.records.board import Board
from robustbench_bio.records.entry import Entry
from robustbench_bio.zoo import catalog

_NUMBERS = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")

T = TypeVar("T")
A = TypeVar("A")

#: Outcomes of an entry that may differ where rounding or luck decides them: this part of those measured again, but at
#: least `FEWEST_TOLERATED`.
TOLERATED, FEWEST_TOLERATED = 0.02, 2


@dataclass(frozen=True)
class Remeasured:
    """What came of measuring a part of an entry again.

    Attributes:
        faults: lines on what does not hold.
        within_tolerance: lines on what differs, but may.
    """

    part: Remeasurement
    faults: list[str]
    within_tolerance: list[str]


@dataclass
class Verification:
    """What a verification of one board came to.

    Attributes:
        entries: files that were looked at.
        outcomes: outcomes that these hold.
        again: of these, measured again.
        diagnoses: verdicts that were found again.
        faults: entry → what does not hold.
        within_tolerance: entry → outcomes that differ here, but are within tolerance.
    """

    board: str
    entries: int = 0
    outcomes: int = 0
    again: int = 0
    diagnoses: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    within_tolerance: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether no fault was noted."""
        return not self.faults

    def add(self, remeasured: Remeasured) -> None:
        """Take note of what came of a part."""
        part = remeasured.part
        self.again += len(part.rows)
        self.diagnoses += part.place == DIAGNOSIS
        for kept, noted in ((self.faults, remeasured.faults), (self.within_tolerance, remeasured.within_tolerance)):
            if noted:
                kept.setdefault(part.file.stem, []).extend(noted)

    def document(self) -> dict[str, object]:
        """Return the JSON document."""
        return {"holds": self.holds} | self.__dict__


def verify(
    board: Board,
    folders: Folders,
    *,
    models: str = "*",
    fraction: float = 0.1,
    seed: int = 0,
    jobs: int = 1,
    progress: Progress = silent,
) -> Verification:
    """Check every entry of a board, and measure a random part of its outcomes again.

    Always checked, for every entry: the file's form and name, scores against outcomes, the card, its weights and its
    cells against the zoo, every measurement against the board, the clean predictions, the gallery and the facts.

    Measured again is a sample of (entry, measurement, batch of examples), `fraction` of all outcomes but at least one
    batch of each entry, and the diagnosis of as large a part of the entries. Every outcome has a chance, the smaller
    the costlier its attack (`sampling.sample`). One that differs is a fault unless rounding or the draws' luck decides
    it (`remeasure.differences`); more than `TOLERATED` of those are a fault, too.

    `models` are comma-separated patterns, and `fraction` lies in (0, 1]: 1 proves every outcome. `progress` is called
    with parts done, their total and the last one.

    Raises:
        UserError: a fraction out of range, no such entry, data that is not here.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"expected a fraction in (0, 1], got {fraction:g}")
    started, report = time.perf_counter(), Verification(board.name)
    files = folders.entry_files(board.name, models)
    plan = plan_of(board, ())
    with _workers(min(jobs, len(files))) as spread:
        sound = _sound(spread(partial(check_entry, board=board, plan=plan, folders=folders), files), report)
        parts = sample(sound, fraction, random.Random(f"{seed}|{board.name}"))  # noqa: S311
        done = 0
        for _, finished in spread(partial(remeasured, board, plan, folders), workloads(parts, sound)):
            for one in finished:
                report.add(one)
                done += 1
                progress(done, len(parts), one.part.file.stem)
    _count_tolerated(report, parts)
    report.seconds = time.perf_counter() - started
    return report


def _sound(checks: Iterator[tuple[Path, tuple[Entry | None, list[str]]]], report: Verification) -> dict[Path, Entry]:
    """Return the entries that hold as far as the entry checks go, and report the others."""
    sound: dict[Path, Entry] = {}
    for file, (entry, faults) in checks:
        report.entries += 1
        if faults or entry is None:
            report.faults[file.stem] = faults
        else:
            sound[file] = entry
            report.outcomes += len(entry.measurements) * entry.n
    return sound


def _count_tolerated(report: Verification, parts: Sequence[Remeasurement]) -> None:
    """Verification entries of which more outcomes differ than rounding and luck explain."""
    for name, noted in report.within_tolerance.items():
        again = sum(len(part.rows) for part in parts if part.file.stem == name)
        if len(noted) > max(FEWEST_TOLERATED, TOLERATED * again):
            line = f"{len(noted)} of {again} outcomes differ, though each is within tolerance"
            report.faults.setdefault(name, []).append(f"{line}: too many to believe the rest")


class _Spread(Protocol):
    """Apply a function to every item, in any order: pairs of item and what it returned."""

    def __call__(self, function: Callable[[T], A], items: Sequence[T]) -> Iterator[tuple[T, A]]: ...


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[_Spread]:
    """Yield what works in this process if `jobs` is 1, else in so many processes of one thread each."""
    if jobs <= 1:
        yield lambda function, items: ((item, function(item)) for item in items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def spread(function: Callable[[T], A], items: Sequence[T]) -> Iterator[tuple[T, A]]:
            futures = {pool.submit(function, item): item for item in items}
            for future in as_completed(futures):
                yield futures[future], future.result()

        try:
            yield spread
        finally:
            pool.shutdown(cancel_futures=True)


def remeasured(board: Board, plan: Plan, folders: Folders, workload: Sequence[Remeasurement]) -> list[Remeasured]:
    """Measure again the parts of one entry that a workload names."""
    entry = catalog.entry(workload[0].file)
    subject = subject_of(entry, board.dataset, folders)
    return [_remeasured(board, entry, subject, plan, part) for part in workload]


def _remeasured(board: Board, entry: Entry, subject: Subject, plan: Plan, part: Remeasurement) -> Remeasured:
    if part.place == DIAGNOSIS:
        return Remeasured(part, verdict_faults(entry, subject, board, plan), [])
    measured = entry.measurements[part.place]
    faults: list[str] = []
    tolerated: list[str] = []
    again = remeasure(subject, measured.spec, plan.examples, part.rows)
    if fault := queries_fault(measured, part.rows, again):
        faults.append(f"{measured.spec.title}: {fault}")
    for difference in differences(subject, measured, plan.examples, part.rows, again):
        line = f"{measured.spec.title}: example {difference.row}: claimed that it {difference.claimed}, measured again "
        line += f"it {difference.measured}"
        (tolerated if difference.within_tolerance else faults).append(line)
    return Remeasured(part, faults, tolerated)


def verdict_faults(entry: Entry, subject: Subject, board: Board, plan: Plan) -> list[str]:
    """Diagnose a network again and return what contradicts its entry's verdict."""
    diagnosis = probed(plan, subject, board.rank_by, catalog.preset(board.preset).probe_examples)
    if diagnosis is None or entry.finding is None:
        return []
    diagnosis = weighed(diagnosis, [measured.result() for measured in entry.measurements])
    claimed, again = entry.finding, finding_of(diagnosis)
    pairs = (claimed.verdict, again.verdict), (claimed.number, again.number)
    if faults := [f"finding: claimed {one}, diagnosed again it is {other}" for one, other in pairs if one != other]:
        return faults
    # Remarks that imply nothing may come and go with rounding, and so may the digits of a reason.
    remarks = {check.name for check in diagnosis.checks if check.implies in ("", "weak")}
    if differing := ({*claimed.flags} ^ {*again.flags}) - remarks:
        return [f"finding: flags: {', '.join(sorted(differing))}: diagnosed again it is otherwise"]
    for one, other in ((claimed.reason, again.reason), (claimed.number_reason, again.number_reason)):
        # Of two checks with nearly the same gap, rounding decides which is named.
        same = check_named(one) == check_named(other) or check_named(one) not in again.flags
        if same and _NUMBERS.sub("", one) != _NUMBERS.sub("", other):
            return [f"finding: reason: claimed {one!r}, diagnosed again it is {other!r}"]
    return []
