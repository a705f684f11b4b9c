"""Entry checks: what an entry states, held against board and zoo, as far as it goes without an attack."""

import functools
import math
from pathlib import Path
from typing import cast

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.version import __version__
from robustbench_bio.diagnosis.classifier import classifies
from robustbench_bio.diagnosis.comparisons import contradictions
from robustbench_bio.evaluation.plan import Plan, Slice, Subject, prepare
from robustbench_bio.leaderboard.folders import Folders, file_hash
from robustbench_bio.leaderboard.remeasure import certain_answers, facts_of, gallery_faults, gallery_size, same_facts
from robustbench_bio.nets.base import Net
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import ModelCard
from robustbench_bio.records.diagnosis import SOUND, belief_on, verdict_on
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
        faults = _spec_faults(entry, plan, subject) or [
            *_sum_faults(entry),
            *_answer_faults(entry, plan.examples, subject),
            *_finding_faults(entry, catalog.preset(board.preset).probe_examples),
        ]
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


def _sum_faults(entry: Entry) -> list[str]:
    """Return which numbers of an entry do not follow from its others."""
    faults = []
    for measured in entry.measurements:
        queries = measured.queries_mean * sum(measured.clean_correct())
        if not math.isclose(queries, round(queries), rel_tol=1e-9, abs_tol=1e-6):
            faults.append(f"{measured.spec.title}: queries_mean: expected the mean of whole numbers, got {queries:g}")
    seconds = sum(measured.seconds for measured in entry.measurements)
    if not math.isclose(entry.provenance.seconds, seconds, rel_tol=1e-6, abs_tol=0.06):
        faults.append(f"provenance.seconds: expected the sum {seconds:.1f}, got {entry.provenance.seconds:g}")
    return faults


def _zoo_faults(entry: Entry, board: Board, folders: Folders) -> list[str]:
    card = folders.card(entry.model)
    if card is None or board.dataset not in card.datasets:
        return [f"model: expected {entry.model} with a network for {board.dataset} in the zoo, got none"]
    own = card.model_copy(update={"datasets": {board.dataset: card.datasets[board.dataset]}})
    faults = []
    if own.canonical() != entry.card.canonical():  # not ==, to which 1, 1.0 and true are the same
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
    asked = [prepare(subject, one, plan.examples, plan.settings).spec for one in plan.applicable(subject)]
    wanted = {spec.key(): spec for spec in asked}  # 1, 1.0 and true are equal, their keys are not
    faults, odd = [], []
    for spec in (measured.spec for measured in entry.measurements):
        if _minor(spec.version) != _minor(__version__):
            faults.append(f"{spec.title}: measured by version {spec.version}, this is {__version__}: renew the entry")
        today = spec.model_copy(update={"version": __version__})
        if today.key() in wanted:
            del wanted[today.key()]
        else:
            odd.append(spec)
    for spec in odd:
        same = next((one for one in wanted.values() if one.title == spec.title), None)
        if same is None:
            faults.append(f"{spec.title}: the board does not ask for it")
            continue
        del wanted[same.key()]
        faults += _other_fields(spec, same)
    return faults + [f"{spec.title}: is missing" for spec in wanted.values()]


def _other_fields(spec: EvalSpec, expected: EvalSpec) -> list[str]:
    """Return the fields in which a spec is not what the board asks for."""
    pairs = [
        (name, getattr(expected, name), getattr(spec, name)) for name in EvalSpec.model_fields if name != "version"
    ]
    return [
        f"{spec.title}: {name}: expected {one!r}, got {other!r}"
        for name, one, other in pairs
        if repr(one) != repr(other)
    ]


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
    shown = gallery_size(answers, data, entry.rank_by)
    if (0 if entry.gallery is None else len(entry.gallery.ids)) != shown:
        faults.append(f"gallery: expected {shown} examples, got another number: renew the entry")
    elif entry.gallery is not None:
        faults += gallery_faults(net, entry.gallery, data, entry.rank_by)
    if not same_facts(entry.facts, facts_of(net)):
        faults.append("facts: not those of the network")
    return faults


def check_named(reason: str) -> str:
    """Return the name of the check that the reason of an answer begins with (`Check.line`)."""
    return reason.partition(": ")[0].partition(" at ")[0].replace(" ", "-")


def _finding_faults(entry: Entry, probe_examples: int) -> list[str]:
    """Return what the outcomes alone tell against the verdict; the rest of it needs another diagnosis."""
    norms = {measured.spec.threat.norm for measured in entry.measurements}
    if entry.finding is None:
        return ["finding: is missing"] if norms & {"linf", "l2"} else []
    flags = contradictions([measured.result() for measured in entry.measurements])
    if unsaid := {flag.name for flag in flags if flag.fired} - {*entry.finding.flags}:
        return [f"finding: flags: the outcomes raise {', '.join(sorted(unsaid))} as well"]
    right = min(probe_examples, sum(entry.measurements[0].clean_correct()))
    if all(measured.spec.draws == 1 for measured in entry.measurements) and entry.finding.n != right:
        return [f"finding: n: expected {right} right examples, got {entry.finding.n}"]
    finding = entry.finding
    for claimed, reason, told in (
        (finding.verdict, finding.reason, verdict_on(flags).word),
        (finding.number, finding.number_reason, belief_on(flags).word),
    ):
        if check_named(reason) not in ([SOUND.replace(" ", "-")] if claimed == "sound" else finding.flags):
            return [f"finding: reason: expected the name of a check that fired, got {reason[:80]!r}"]
        if claimed == "sound" != told:
            return [f"finding: claimed sound, the outcomes say {told}"]
    return []
