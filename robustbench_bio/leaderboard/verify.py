"""Do the entries of a board hold? Every file is checked, and a random part of the outcomes is measured again."""

import contextlib
import math
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets import load_examples
from robustbench_bio.diagnosis.comparisons import contradictions
from robustbench_bio.diagnosis.grid import Work
from robustbench_bio.evaluation.store import Store
from robustbench_bio.leaderboard.entry_checks import checked, network
from robustbench_bio.leaderboard.folders import Folders, cells_of, named
from robustbench_bio.leaderboard.remeasure import Slice, differences
from robustbench_bio.nets.base import Net
from robustbench_bio.records.board import Board
from robustbench_bio.records.entry import Entry
from robustbench_bio.records.result import EvalSpec
from robustbench_bio.zoo import catalog

Progress = Callable[[int, int, str], None]
T = TypeVar("T")
A = TypeVar("A")

#: Examples that are measured again together: attacks take nearly as long for one as for so many, dear ones less so.
LOT, DEAR_LOT = 100, 25

#: Forward passes for one example from which an attack is dear.
DEAR = 2000

#: Outcomes of an entry that may differ where rounding or luck decides them: this part of those measured again, but at
#: least `FEWEST_CLOSE`.
CLOSE, FEWEST_CLOSE = 0.02, 2

#: The place of an entry's finding.
DIAGNOSIS = -1


class Task(NamedTuple):
    """Something to do again for one entry.

    Attributes:
        file: the entry.
        place: which of its measurements, or `DIAGNOSIS`.
        rows: places of the examples.
    """

    file: Path
    place: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What came of a task: lines on what does not hold, and on what differs but is forgiven."""

    task: Task
    faults: list[str]
    close: list[str]


@dataclass
class Report:
    """What was found on one board.

    Attributes:
        board: its name.
        entries: files that were looked at.
        outcomes: outcomes that these claim.
        again: of these, measured again.
        diagnoses: verdicts that were found again.
        faults: entry → what does not hold.
        close: entry → outcomes that differ here, but are forgiven.
        seconds: that it took.
    """

    board: str
    entries: int = 0
    outcomes: int = 0
    again: int = 0
    diagnoses: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    close: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    def add(self, answer: Answer) -> None:
        """Take note of what came of a task."""
        self.again += len(answer.task.rows)
        self.diagnoses += answer.task.place == DIAGNOSIS
        for kept, lines in ((self.faults, answer.faults), (self.close, answer.close)):
            if lines:
                kept.setdefault(answer.task.file.stem, []).extend(lines)

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
    progress: Progress | None = None,
) -> Report:
    """Check every entry of a board, and measure a random part of its outcomes again.

    Always checked, for every entry: the file's form and name, scores against outcomes, the card, its weights and its
    cells against the zoo, every measurement against the board, the clean answers, the gallery and the facts.

    Measured again is a sample of (entry, measurement, lot of examples), `fraction` of all outcomes but at least one lot
    of each entry, and the diagnosis of as large a part of the entries. Every outcome has a chance, the smaller the
    dearer its attack (`sample`). One that differs is a fault unless rounding or the draws' luck decides it
    (`replay.differences`); more than `CLOSE` of those are a fault, too.

    Args:
        board: which board.
        folders: zoo and boards.
        models: entries, by comma-separated patterns.
        fraction: of the outcomes, in (0, 1]; 1 proves every one.
        seed: of the sample.
        jobs: processes.
        progress: called with tasks done, their total and the last one.

    Raises:
        UserError: a fraction out of range, no such entry, data that is not here.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"expected a fraction in (0, 1], got {fraction:g}")
    started, report = time.perf_counter(), Report(board.name)
    files = folders.entry_files(board.name, models)
    cells, data = cells_of(board), Slice.of(board.dataset, board.n_examples)
    sound: dict[Path, Entry] = {}
    with _workers(min(jobs, len(files))) as work:
        for file, (found, faults) in work(
            partial(checked, board=board, cells=cells, data=data, folders=folders), files
        ):
            report.entries += 1
            if faults or found is None:
                report.faults[file.stem] = faults
            else:
                sound[file] = found
                report.outcomes += len(found.measurements) * found.n
        tasks = sample(sound, fraction, random.Random(f"{seed}|{board.name}"))  # noqa: S311
        done = 0
        for _, answers in work(partial(do, board, folders), errands(tasks, sound)):
            for answer in answers:
                report.add(answer)
                done += 1
                if progress:
                    progress(done, len(tasks), answer.task.file.stem)
    for name, lines in report.close.items():
        again = sum(len(task.rows) for task in tasks if task.file.stem == name)
        if len(lines) > max(FEWEST_CLOSE, CLOSE * again):
            line = f"{len(lines)} of {again} outcomes differ, though each is forgiven: too many to believe the rest"
            report.faults.setdefault(name, []).append(line)
    report.seconds = time.perf_counter() - started
    return report


def sample(entries: dict[Path, Entry], fraction: float, rng: random.Random) -> list[Task]:
    """Return what to do again: `fraction` of the outcomes, each entry at least once.

    Outcomes of one measurement have the same chance in all entries. Between measurements it falls with the root of the
    price, which for a given time finds the most (Neyman's allocation): AutoAttack costs hundreds of PGDs, and with the
    same chance for all would take nearly all of the time for a few of the outcomes.

    Args:
        entries: by file.
        fraction: of the outcomes; 1 is all of them.
        rng: what draws.
    """
    files = sorted(entries)
    rng.shuffle(files)
    columns = _columns(entries, files, rng)
    rng.shuffle(columns)
    chances = _chances([(column.price, column.outcomes) for column in columns], fraction)
    chosen: dict[tuple[Path, int], list[int]] = {}
    taken, seen = 0, rng.random()
    for column, chance in zip(columns, chances, strict=True):
        seen += chance * len(column.units)
        wanted = math.floor(seen + 1e-9) - taken
        # Each measurement goes on with the entries where the one before stopped, so that all have their turn.
        for unit in (column.units[i % len(column.units)] for i in range(taken, taken + wanted)):
            chosen.setdefault(unit[:2], []).extend(unit.rows)
        taken += wanted
    cheapest = sorted(columns, key=lambda column: column.price)
    for file in [file for file in files if file not in {file for file, _ in chosen}]:
        first = next(unit for column in cheapest for unit in column.units if unit.file == file)
        chosen[first[:2]] = list(first.rows)
    tasks = [Task(file, place, tuple(sorted(rows))) for (file, place), rows in chosen.items()]
    judged = [file for file in files if entries[file].finding is not None]
    return tasks + [Task(file, DIAGNOSIS, ()) for file in rng.sample(judged, math.ceil(fraction * len(judged)))]


class _Column(NamedTuple):
    """One measurement of all entries that have it, in lots of random examples."""

    price: float
    units: list[Task]

    @property
    def outcomes(self) -> int:
        return sum(len(unit.rows) for unit in self.units)


def _columns(entries: dict[Path, Entry], files: Sequence[Path], rng: random.Random) -> list[_Column]:
    """Return the measurements of all entries; in each, one lot of every entry comes before a second of any."""
    places: dict[tuple[str, str], dict[Path, int]] = {}
    for file in files:
        for place, measured in enumerate(entries[file].measurements):
            asked = named(measured.spec), str(sorted(measured.spec.params.items()))
            places.setdefault(asked, {})[file] = place
    columns = []
    for where in places.values():
        price = max(_price(entries[file].measurements[place].spec) for file, place in where.items())
        lot = DEAR_LOT if price >= DEAR else LOT
        rows = {file: rng.sample(range(entries[file].n), entries[file].n) for file in where}
        starts = range(0, max(map(len, rows.values())), lot)
        units = [
            Task(file, where[file], tuple(found[i : i + lot])) for i in starts for file, found in rows.items()
            if i < len(found)
        ]  # fmt: skip
        columns.append(_Column(price, units))
    return columns


def _price(spec: EvalSpec) -> float:
    """Return a guess at the forward passes for one example, from what is asked: the claimed seconds may be a lie."""
    params = {name: value for name, value in spec.params.items() if isinstance(value, int | float)}
    walks = 28 if spec.attack == "autoattack" else params.get("targets", 1)
    climbing = 3 * params.get("steps", 0) * params.get("restarts", 1) * walks
    return 1 + climbing + params.get("queries", 0) + params.get("population", 0) * params.get("generations", 0)


def _chances(columns: Sequence[tuple[float, int]], fraction: float) -> list[float]:
    """Return for each (price, outcomes) the chance of an outcome: `fraction` of all, ∝ 1/√price, at most 1."""
    wanted = fraction * sum(outcomes for _, outcomes in columns)
    certain: set[int] = set()
    while True:
        left = wanted - sum(columns[i][1] for i in certain)
        weight = sum(n / math.sqrt(price) for i, (price, n) in enumerate(columns) if i not in certain)
        chances = [
            1.0 if i in certain or weight == 0 else left / (math.sqrt(price) * weight)
            for i, (price, _) in enumerate(columns)
        ]
        over = {i for i, chance in enumerate(chances) if chance >= 1} - certain
        if not over:
            return chances
        certain |= over


def errands(tasks: Sequence[Task], entries: dict[Path, Entry]) -> list[list[Task]]:
    """Return the tasks in portions for one process each: dear ones alone and first, the others of an entry together."""
    prices = {
        task: math.inf if task.place == DIAGNOSIS else _price(entries[task.file].measurements[task.place].spec)
        for task in tasks
    }  # fmt: skip
    alone = sorted((task for task in tasks if prices[task] >= DEAR), key=lambda task: -prices[task])
    shared: dict[Path, list[Task]] = {}
    for task in tasks:
        if prices[task] < DEAR:
            shared.setdefault(task.file, []).append(task)
    return [[task] for task in alone] + sorted(shared.values(), key=lambda portion: -len(portion))


class _Work(Protocol):
    """Do something with every item, in any order: pairs of item and answer."""

    def __call__(self, what: Callable[[T], A], items: Sequence[T]) -> Iterator[tuple[T, A]]: ...


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[_Work]:
    """Yield what works in this process if `jobs` is 1, else in so many processes of one thread each."""
    if jobs <= 1:
        yield lambda what, items: ((item, what(item)) for item in items)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def work(what: Callable[[T], A], items: Sequence[T]) -> Iterator[tuple[T, A]]:
            futures = {pool.submit(what, item): item for item in items}
            for future in as_completed(futures):
                yield futures[future], future.result()

        try:
            yield work
        finally:
            pool.shutdown(cancel_futures=True)


def do(board: Board, folders: Folders, errand: Sequence[Task]) -> list[Answer]:
    """Measure again what tasks for one entry name."""
    entry = catalog.entry(errand[0].file)
    net = network(entry, board.dataset, folders)
    data = Slice.of(board.dataset, board.n_examples)
    return [_done(board, entry, net, data, task) for task in errand]


def _done(board: Board, entry: Entry, net: Net, data: Slice, task: Task) -> Answer:
    if task.place == DIAGNOSIS:
        return Answer(task, diagnosed(entry, net, board), [])
    measured = entry.measurements[task.place]
    faults, forgiven = [], []
    for difference in differences(net, measured, data, task.rows):
        line = f"{named(measured.spec)}: example {difference.row}: claimed that it {difference.claimed}, here it "
        line += str(difference.found)
        if difference.close:
            forgiven.append(line)
        else:
            faults.append(line)
    return Answer(task, faults, forgiven)


def diagnosed(entry: Entry, net: Net, board: Board) -> list[str]:
    """Checks a network again and return what its entry's verdict says otherwise."""
    examples = load_examples(board.dataset, board.split, board.n_examples)
    wanted = catalog.preset(board.preset).probe_examples
    with tempfile.TemporaryDirectory() as folder:
        work = Work(examples, board.dataset, board.seed, "cpu", Store(folder), wanted, None, 0)
        found = work.probe(entry.model, net, cells_of(board), entry.threat)
    if found is None or entry.finding is None:
        return []
    verdict = found.joined(contradictions([measured.result() for measured in entry.measurements])).verdict
    claimed = entry.finding.verdict
    return [] if verdict == claimed else [f"finding: claimed {claimed}, the probe here says {verdict}"]


def lines(report: Report) -> list[str]:
    """Return what a person wants to know of a report."""
    found = [f"{name}: {line}" for name, faults in report.faults.items() for line in faults]
    found += [f"{name}: rounding or luck decides: {line}" for name, close in report.close.items() for line in close]
    state = "holds" if report.holds else f"does not hold: {len(report.faults)} entries with faults"
    part = f"{report.again:,} of {report.outcomes:,} outcomes and {report.diagnoses} verdicts measured again"
    return [*found, f"{report.board}: {report.entries} entries, {part}, {report.seconds:.0f} s: {state}"]
