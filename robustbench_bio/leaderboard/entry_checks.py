"""Entry checks: what an entry states, held against board and zoo, as far as it goes without an attack."""

import functools
from pathlib import Path
from typing import cast

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.version import __version__
from robustbench_bio.diagnosis.classifier import classifies
from robustbench_bio.diagnosis.comparisons import contradictions
from robustbench_bio.evaluation.plan import Plan, Slice, Subject, prepare
from robustbench_bio.leaderboard.folders import Folders, file_hash
from robustbench_bio.leaderboard.remeasure import certain_answers, facts_of, gallery_faults, same_facts
from robustbench_bio.nets.base import Net
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import ModelCard
from robustbench_bio.records.diagnosis import belief_on, verdict_on
from robustbench_bio.records.entry import Entry
from robustbench_bio.records.result import EvalSpec
from robustbench_bio.zoo import catalog


def subject_of(entry: Entry, dataset: str, folders: Folders) -> Subject:
    """Return an entry's network, in one process always the same: to build and to trace it takes seconds."""
    cells = "" if entry.genotype is None else entry.genotype.model_dump_json()
    return _subject(folders, dataset, entry.card.canonical(), cells)


@functools.lru_cache(maxsize=32)
def _subject(folders: Folders, dataset: str, card: str, cells: str) -> Subject:
    del cells  # read from the zoo, where they are the entry's: part of the key only
    read = ModelCard.from_json(card, "card")
    return Subject(read.id, folders.network(read, dataset))


def check_entry(file: Path, board: Board, plan: Plan, folders: Folders) -> tuple[Entry | None, list[str]]:
    """Return the entry in a file and what does not hold of it, a line each; None for what is no entry."""
    try:
        entry = catalog.entry(file)
        faults = [*_board_faults(entry, board), *_zoo_faults(entry, board, folders)]
        if faults:
            return entry, faults
        subject = subject_of(entry, board.dataset, folders)
        faults = _spec_faults(entry, plan, subject) or _answer_faults(entry, plan.examples, subject)
    except UserError as error:
        return None, [str(error)]
    return entry, faults


def _board_faults(entry: Entry, board: Board) -> list[str]:
    faults = []
    if entry.board != board.name:
        faults.append(f"board: expected {board.name}, got {entry.board}")
    if entry.rank_by != board.rank_by:
        faults.append(f"rank_by: expected {board.rank_by}, got {entry.rank_by}")
    return faults


def _zoo_faults(entry: Entry, board: Board, folders: Folders) -> list[str]:
    card = folders.card(entry.model)
    if card is None or board.dataset not in card.datasets:
        return [f"model: expected {entry.model} with a network for {board.dataset} in the zoo, got none"]
    own = card.model_copy(update={"datasets": {board.dataset: card.datasets[board.dataset]}})
    faults = []
    if own != entry.card:
        faults.append("card: not the zoo's card of this id: renew the entry with biorobust submit")
    own_hash = file_hash(folders.weights(card, board.dataset))
    if own_hash != entry.weights_sha256:
        faults.append(
            f"weights_sha256: expected {own_hash[:12]}… of the file in the zoo, got {entry.weights_sha256[:12]}…"
        )
    if folders.genotype(card, board.dataset) != entry.genotype:
        faults.append("genotype: not the one that the card names")
    return faults


def _spec_faults(entry: Entry, plan: Plan, subject: Subject) -> list[str]:
    wanted = [prepare(subject, one, plan.examples, plan.settings).spec for one in plan.applicable(subject)]
    faults, odd = [], []
    for spec in (measured.spec for measured in entry.measurements):
        if _minor(spec.version) != _minor(__version__):
            faults.append(f"{spec.title}: measured by version {spec.version}, this is {__version__}: renew the entry")
        today = spec.model_copy(update={"version": __version__})
        if today in wanted:
            wanted.remove(today)
        else:
            odd.append(spec)
    for spec in odd:
        same = next((one for one in wanted if one.title == spec.title), None)
        if same is None:
            faults.append(f"{spec.title}: the board does not ask for it")
            continue
        wanted.remove(same)
        faults += _other_fields(spec, same)
    return faults + [f"{spec.title}: is missing" for spec in wanted]


def _other_fields(spec: EvalSpec, expected: EvalSpec) -> list[str]:
    """Return the fields in which a spec is not what the board asks for."""
    pairs = [
        (name, getattr(expected, name), getattr(spec, name)) for name in EvalSpec.model_fields if name != "version"
    ]
    return [f"{spec.title}: {name}: expected {one!r}, got {other!r}" for name, one, other in pairs if one != other]


def _minor(version: str) -> str:
    """Return the part of a version within which attacks do not change."""
    return ".".join(version.split(".")[:2])


def _answer_faults(entry: Entry, data: Slice, subject: Subject) -> list[str]:
    faults, net = [], cast("Net", subject.net)
    answers = certain_answers(net, data)
    check = classifies(net, data.x, data.y)
    if check.fired:
        faults.append(f"no classifier: {check.detail}")
    for measured in entry.measurements:
        pairs = zip(measured.clean_correct(), answers, strict=True)
        wrong = [row for row, (claimed, right) in enumerate(pairs) if right is not None and claimed != right]
        if wrong:
            faults.append(f"{measured.spec.title}: clean answers of examples {wrong[:5]} are not the network's")
    if entry.gallery is not None:
        faults += gallery_faults(net, entry.gallery, data, entry.rank_by)
    if not same_facts(entry.facts, facts_of(net)):
        faults.append("facts: not those of the network")
    return faults + _finding_faults(entry)


def _finding_faults(entry: Entry) -> list[str]:
    """Return what the outcomes alone tell against the verdict; the rest of it needs another diagnosis."""
    norms = {measured.spec.threat.norm for measured in entry.measurements}
    if entry.finding is None:
        return ["finding: is missing"] if norms & {"linf", "l2"} else []
    flags = contradictions([measured.result() for measured in entry.measurements])
    answers = (entry.finding.verdict, verdict_on(flags).word), (entry.finding.number, belief_on(flags).word)
    for claimed, told in answers:
        if claimed == "sound" != told:
            return [f"finding: claimed sound, the outcomes say {told}"]
    return []
