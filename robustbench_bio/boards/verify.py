"""Do the entries of a board hold? Every file is checked, and a random part of the outcomes is measured again."""

import math
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from robustbench_bio import catalog
from robustbench_bio.boards.claims import checked
from robustbench_bio.boards.entry import Board, Entry
from robustbench_bio.boards.folders import Folders, cells_of, named
from robustbench_bio.boards.replay import Slice, differences
from robustbench_bio.datasets import load_data
from robustbench_bio.errors import UserError
from robustbench_bio.grid import Work
from robustbench_bio.nets.base import Net
from robustbench_bio.store import Store
from robustbench_bio.verdicts import contradictions

Progress = Callable[[int, int, str], None]

#: Examples that are measured again together: attacks take nearly as long for one as for so many.
LOT = 100

#: Outcomes of an entry that rounding may decide: this part of those measured again, but at least `FEWEST_CLOSE`.
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
    """What came of a task: lines on what does not hold, and on what rounding decides."""

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
        close: entry → outcomes that differ here, but that rounding decides.
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

    Measured again is a sample of (entry, measurement, lot of examples) in which every outcome has the same chance,
    `fraction`, but at least one of each entry; and the diagnosis of as large a part of the entries. An outcome that
    differs is a fault unless rounding decides it (`replay.differences`), and more than `CLOSE` of those are one, too.

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
    for file in files:
        found, faults = checked(file, board, cells, data, folders)
        report.entries += 1
        if faults or found is None:
            report.faults[file.stem] = faults
        else:
            sound[file] = found
            report.outcomes += len(found.measurements) * found.n
    tasks = sample(sound, fraction, random.Random(f"{seed}|{board.name}"))  # noqa: S311
    for done, answer in enumerate(_answers(board, folders, tasks, jobs), 1):
        name = answer.task.file.stem
        report.again += len(answer.task.rows)
        report.diagnoses += answer.task.place == DIAGNOSIS
        for kept, lines in ((report.faults, answer.faults), (report.close, answer.close)):
            if lines:
                kept.setdefault(name, []).extend(lines)
        if progress:
            progress(done, len(tasks), name)
    for name, lines in report.close.items():
        again = sum(len(task.rows) for task in tasks if task.file.stem == name)
        if len(lines) > max(FEWEST_CLOSE, CLOSE * again):
            line = f"rounding decides {len(lines)} of {again} outcomes: too many to believe the rest"
            report.faults.setdefault(name, []).append(line)
    report.seconds = time.perf_counter() - started
    return report


def sample(entries: dict[Path, Entry], fraction: float, rng: random.Random) -> list[Task]:
    """Return what to do again: every outcome with the same chance, each entry at least once.

    Args:
        entries: by file.
        fraction: of the outcomes.
        rng: what draws.
    """
    files = sorted(entries)
    rng.shuffle(files)
    places = max((len(entry.measurements) for entry in entries.values()), default=0)
    columns = [_column(entries, files, place, rng) for place in rng.sample(range(places), places)]
    units = sum(map(len, columns))
    share = max(fraction, len(files) / max(1, units))
    chosen: dict[tuple[Path, int], list[int]] = {}
    seen, taken, start = 0, 0, rng.random()
    for column in columns:
        seen += len(column)
        wanted = math.floor(share * seen + start) - taken
        # Each measurement goes on with the entries where the one before stopped, so that all have their turn.
        for unit in (column[i % len(column)] for i in range(taken, taken + wanted)):
            chosen.setdefault(unit[:2], []).extend(unit.rows)
        taken += wanted
    for file in [file for file in files if file not in {file for file, _ in chosen}]:
        first = next(unit for column in columns for unit in column if unit.file == file)
        chosen[first[:2]] = list(first.rows)
    tasks = [Task(file, place, tuple(sorted(rows))) for (file, place), rows in chosen.items()]
    judged = [file for file in files if entries[file].finding is not None]
    tasks += [Task(file, DIAGNOSIS, ()) for file in rng.sample(judged, math.ceil(fraction * len(judged)))]
    return sorted(tasks, key=lambda task: _dear(task, entries), reverse=True)


def _column(entries: dict[Path, Entry], files: Sequence[Path], place: int, rng: random.Random) -> list[Task]:
    """Return one measurement of all entries in lots of random examples; one lot of each before a second of any."""
    rows = {
        file: rng.sample(range(entries[file].n), entries[file].n)
        for file in files if place < len(entries[file].measurements)
    }  # fmt: skip
    most = max(map(len, rows.values()), default=0)
    return [
        Task(file, place, tuple(found[i : i + LOT])) for i in range(0, most, LOT) for file, found in rows.items()
        if i < len(found)
    ]  # fmt: skip


def _dear(task: Task, entries: dict[Path, Entry]) -> float:
    """Return a guess at the cost, which is not the claimed one; the dearest first keeps all processes busy."""
    if task.place == DIAGNOSIS:
        return math.inf
    return float(entries[task.file].measurements[task.place].spec.params.get("queries") or 0)


def _answers(board: Board, folders: Folders, tasks: Sequence[Task], jobs: int) -> Iterator[Answer]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from (do(board, folders, task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(do, board, folders, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def do(board: Board, folders: Folders, task: Task) -> Answer:
    """Measure again what a task names."""
    entry = catalog.entry(task.file)
    net = folders.network(entry.card, board.dataset)
    if task.place == DIAGNOSIS:
        return Answer(task, diagnosed(entry, net, board), [])
    measured = entry.measurements[task.place]
    found = differences(net, measured, Slice.of(board.dataset, board.n_examples), task.rows)
    lines = {
        difference.row: f"{named(measured.spec)}: example {difference.row}: claimed that it {difference.claimed}, "
        f"here it {difference.found}"
        for difference in found
    }
    return Answer(
        task,
        [lines[difference.row] for difference in found if not difference.close],
        [lines[difference.row] for difference in found if difference.close],
    )


def diagnosed(entry: Entry, net: Net, board: Board) -> list[str]:
    """Probe a network again and return what its entry's verdict says otherwise."""
    examples = load_data(board.dataset, board.split, board.n_examples)
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
    found += [f"{name}: rounding decides: {line}" for name, close in report.close.items() for line in close]
    state = "holds" if report.holds else f"does not hold: {len(report.faults)} entries with faults"
    part = f"{report.again:,} of {report.outcomes:,} outcomes and {report.diagnoses} verdicts measured again"
    return [*found, f"{report.board}: {report.entries} entries, {part}, {report.seconds:.0f} s: {state}"]
