"""What an entry claims, held against board and zoo: all that can be checked without an attack."""

import functools
from collections.abc import Sequence
from pathlib import Path

from robustbench_bio.attacks import make
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.version import __version__
from robustbench_bio.diagnosis.comparisons import contradictions
from robustbench_bio.diagnosis.grid import Cell
from robustbench_bio.evaluation.judge import fingerprint
from robustbench_bio.leaderboard.folders import Folders, asked_of, file_hash, named
from robustbench_bio.leaderboard.remeasure import Slice, certain_answers, facts_of, gallery_faults, same_facts
from robustbench_bio.nets.base import Net
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import ModelCard
from robustbench_bio.records.diagnosis import verdict_on
from robustbench_bio.records.entry import Entry
from robustbench_bio.records.result import EvalSpec
from robustbench_bio.records.threat import Threat
from robustbench_bio.zoo import catalog


def network(entry: Entry, dataset: str, folders: Folders) -> Net:
    """Return an entry's network, in one process always the same: to build and to trace it takes seconds."""
    cells = "" if entry.genotype is None else entry.genotype.model_dump_json()
    return _network(folders, dataset, entry.card.canonical(), cells)


@functools.lru_cache(maxsize=32)
def _network(folders: Folders, dataset: str, card: str, cells: str) -> Net:
    del cells  # read from the zoo, where they are the entry's: part of the key only
    return folders.network(ModelCard.from_json(card, "card"), dataset)


def checked(
    file: Path, board: Board, cells: Sequence[Cell], data: Slice, folders: Folders
) -> tuple[Entry | None, list[str]]:
    """Return the entry in a file and what does not hold of it, a line each; None for what is no entry.

    Args:
        file: the entry.
        board: which it stands on.
        cells: what the board asks for.
        data: what the board measures on.
        folders: of the zoo.
    """
    try:
        entry = catalog.entry(file)
        faults = [*_board_faults(entry, board), *_zoo_faults(entry, board, folders)]
        if faults:
            return entry, faults
        net = network(entry, board.dataset, folders)
        faults = [*_spec_faults(entry, board, cells, data, net)]
        if not faults:
            faults = [*_answer_faults(entry, data, net)]
    except UserError as error:
        return None, [str(error)]
    return entry, faults


def _board_faults(entry: Entry, board: Board) -> list[str]:
    faults = []
    if entry.board != board.name:
        faults.append(f"board: expected {board.name}, got {entry.board}")
    if entry.rank_by != board.rank_by:
        faults.append(f"rank_by: expected {board.rank_by.canonical()}, got {entry.rank_by.canonical()}")
    return faults


def _zoo_faults(entry: Entry, board: Board, folders: Folders) -> list[str]:
    card = folders.card(entry.model)
    if card is None or board.dataset not in card.datasets:
        return [f"model: expected {entry.model} with a network for {board.dataset} in the zoo, got none"]
    own = card.model_copy(update={"datasets": {board.dataset: card.datasets[board.dataset]}})
    faults = []
    if own != entry.card:
        faults.append("card: not the zoo's card of this id: renew the entry with biorobust submit")
    found = file_hash(folders.weights(card, board.dataset))
    if found != entry.weights_sha256:
        faults.append(
            f"weights_sha256: expected {found[:12]}… of the file in the zoo, got {entry.weights_sha256[:12]}…"
        )
    if folders.cells(card, board.dataset) != entry.genotype:
        faults.append("genotype: not the one that the card names")
    return faults


def _spec_faults(entry: Entry, board: Board, cells: Sequence[Cell], data: Slice, net: Net) -> list[str]:
    wanted = [spec_of(cell, entry.model, net, board, data) for cell in asked_of(net, cells)]
    faults, odd = [], []
    for spec in (measured.spec for measured in entry.measurements):
        if _minor(spec.version) != _minor(__version__):
            faults.append(f"{named(spec)}: measured by version {spec.version}, this is {__version__}: renew the entry")
        today = spec.model_copy(update={"version": __version__})
        if today in wanted:
            wanted.remove(today)
        else:
            odd.append(spec)
    for spec in odd:
        twin = next((one for one in wanted if named(one) == named(spec)), None)
        if twin is None:
            faults.append(f"{named(spec)}: the board does not ask for it")
            continue
        wanted.remove(twin)
        for name, expected in twin.model_dump(exclude={"version"}).items():
            if (got := getattr(spec, name)) != expected:
                faults.append(f"{named(spec)}: {name}: expected {expected!r}, got {got!r}")
    return faults + [f"{named(spec)}: is missing" for spec in wanted]


def spec_of(cell: Cell, model: str, net: Net, board: Board, data: Slice) -> EvalSpec:
    """Return what a board asks of a network: everything that decides an outcome."""
    return EvalSpec(
        model=model, weights_sha256=fingerprint(net), dataset=board.dataset, split=board.split, n=board.n_examples,
        data_sha256=data.sha256(), attack=cell.attack, params=make(cell.attack, cell.norm, dict(cell.params)).params,
        norm=cell.norm, eps=cell.eps, gradient=cell.gradient, precision="float32", seed=board.seed,
    )  # fmt: skip


def _minor(version: str) -> str:
    """Return the part of a version within which attacks do not change."""
    return ".".join(version.split(".")[:2])


def _answer_faults(entry: Entry, data: Slice, net: Net) -> list[str]:
    faults = []
    answers = certain_answers(net, data)
    for measured in entry.measurements:
        pairs = zip(measured.clean_correct(), answers, strict=True)
        wrong = [row for row, (claimed, right) in enumerate(pairs) if right is not None and claimed != right]
        if wrong:
            faults.append(f"{named(measured.spec)}: clean answers of examples {wrong[:5]} are not the network's")
    threat = Threat(entry.rank_by.norm, entry.rank_by.value())
    if entry.gallery is not None:
        faults += gallery_faults(net, entry.gallery, data, threat)
    if not same_facts(entry.facts, facts_of(net)):
        faults.append("facts: not those of the network")
    return faults + _finding_faults(entry)


def _finding_faults(entry: Entry) -> list[str]:
    """Return what the outcomes alone say against the verdict; the rest of it needs the probe."""
    norms = {measured.spec.norm for measured in entry.measurements}
    if entry.finding is None:
        return ["finding: is missing"] if norms & {"linf", "l2"} else []
    flags = contradictions([measured.result() for measured in entry.measurements])
    if entry.finding.verdict == "sound" and any(flag.fired and flag.implies for flag in flags):
        return [f"finding: claimed sound, the outcomes say {verdict_on(flags)[0]}"]
    return []
