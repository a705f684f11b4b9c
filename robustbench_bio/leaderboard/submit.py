"""From a card and its weights to an entry of a board: checked, measured, and only then written."""

import hashlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import default_home, read_file, write_atomically
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.diagnosis.assess import Assessment, assess
from robustbench_bio.diagnosis.classifier import classifies
from robustbench_bio.evaluation.plan import Slice, Subject
from robustbench_bio.evaluation.planning import models_like, pick_device
from robustbench_bio.evaluation.store import Store
from robustbench_bio.leaderboard.folders import MAX_WEIGHTS, Folders, measurements_of, plan_of
from robustbench_bio.leaderboard.remeasure import facts_of, gallery
from robustbench_bio.leaderboard.submission import CheckedNetwork, SubmissionOptions, from_file, from_zoo
from robustbench_bio.nets.base import Net
from robustbench_bio.records.base import MAX_TEXT
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import ModelCard
from robustbench_bio.records.diagnosis import Diagnosis
from robustbench_bio.records.entry import Entry, Finding, Measured, scored
from robustbench_bio.records.motifs import AnyGenotype
from robustbench_bio.records.result import Provenance
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import DataSource


@dataclass(frozen=True)
class Submitted:
    """An entry and the files that were written."""

    entry: Entry
    paths: list[Path]


def submit(
    models: Sequence[str],
    board_name: str,
    folders: Folders,
    options: SubmissionOptions | None = None,
    *,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> list[Submitted]:
    """Measure networks as a board asks and write their entries; results that are in the store are not measured again.

    All networks are checked before the first attack. Of a network nothing is written before all of it is measured.

    `models` are paths of cards that end in .toml, ids of the zoo, and patterns with *.

    Raises:
        UserError: unknown names, a card, genotype or weights that are not what they should be.
    """
    options, board, where = options or SubmissionOptions(), folders.board(board_name), pick_device(device)
    measurements_of(board)  # complains now of a preset that does not fit
    paths = [model for model in models if model.endswith(".toml")]
    ids = [model for model in models if not model.endswith(".toml")]
    if len(paths) + len(ids) != 1 and (options.weights or options.genotype):
        raise UserError(f"expected one card with --weights or --genotype, got {len(models)}: submit them one by one")
    known = models_like(",".join(ids), catalog.model_ids(folders.models)) if ids else []
    if options.weights and not (paths or options.train):
        raise UserError("expected a card's path with --weights, got an id: the zoo has its weights")
    store = Store(out or default_home() / "results")
    candidates = [from_file(Path(path), board, folders, options, progress) for path in paths]
    candidates += [from_zoo(model, board, folders, options, progress) for model in known]
    if not candidates:
        raise UserError("expected a card or a model to submit, got none")
    subjects = [Subject(candidate.card.id, candidate.net.to(where)) for candidate in candidates]
    plan = plan_of(board, subjects, where)
    for subject in subjects:
        check = classifies(subject.net, plan.examples.x.to(where), plan.examples.y.to(where))
        if check.fired:
            raise UserError(f"{subject.label} is no classifier: {check.detail}")
    n_probe = catalog.preset(board.preset).probe_examples
    submitted = []
    assessed = assess(plan, board.rank_by, n_probe=n_probe, store=store, progress=progress)
    for candidate, assessment in zip(candidates, assessed, strict=True):
        entry = entry_of(candidate.card, candidate.net.cpu(), candidate.cells, assessment, board)
        submitted.append(Submitted(entry, _write(entry, candidate, board, folders)))
    return submitted


def entry_of(card: ModelCard, net: Net, cells: AnyGenotype | None, assessment: Assessment, board: Board) -> Entry:
    """Return the entry of a network that was measured."""
    measurements = [Measured.of(result) for result in assessment.measured]
    own = card.model_copy(update={"datasets": {board.dataset: card.datasets[board.dataset]}})
    sources = [result.provenance for result in assessment.measured]
    latest = max(sources, key=lambda source: source.created)
    diagnosis = assessment.diagnosis
    weights_sha256 = card.datasets[board.dataset].weights_sha256
    assert weights_sha256 is not None  # noqa: S101
    return Entry(
        board=board.name,
        model=card.id,
        card=own,
        card_sha256=own.sha256(),
        genotype=cells,
        weights_sha256=weights_sha256,
        measurements=measurements,
        finding=None if diagnosis is None else finding_of(diagnosis),
        gallery=gallery(net, Slice.load(DataSource(board.dataset), board.n_examples), board.rank_by, board.seed),
        facts=facts_of(net),
        rank_by=board.rank_by,
        scores=scored(measurements, board.rank_by),
        provenance=Provenance(
            seconds=round(sum(source.seconds for source in sources), 1),
            device=latest.device,
            created=latest.created,
            packages=latest.packages,
            notices=list(dict.fromkeys(" ".join(one.split())[:500] for source in sources for one in source.notices)),
        ),
        commit=_commit(),
    )  # fmt: skip


def finding_of(diagnosis: Diagnosis) -> Finding:
    """Return what an entry keeps of a diagnosis."""
    kept = diagnosis.summary()
    texts = {name: " ".join(kept[name].split())[:MAX_TEXT] for name in ("reason", "number_reason")}
    return Finding.read({name: kept[name] for name in Finding.model_fields} | texts)


def entry_text(entry: Entry) -> str:
    """Return an entry as its file holds it: JSON that a diff can show."""
    return json.dumps(entry.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def _write(entry: Entry, network: CheckedNetwork, board: Board, folders: Folders) -> list[Path]:
    paths: list[Path] = []

    def put(path: Path, data: bytes) -> None:
        write_atomically(path, data)
        paths.append(path)

    text = entry_text(entry).encode()
    if len(text) > catalog.MAX_ENTRY:
        raise UserError(f"expected an entry of at most {catalog.MAX_ENTRY:,} bytes, got {len(text):,}: fewer examples")
    if network.weights is not None:
        data = read_file(network.weights, MAX_WEIGHTS)
        if hashlib.sha256(data).hexdigest() != entry.weights_sha256:
            raise UserError(f"{network.weights} changed while it was measured: submit it again")
        put(folders.weights(network.card, board.dataset), data)
        if network.own_cells and network.cells is not None:
            put(folders.models / "genotypes" / f"{network.cells.name}.toml", network.cells.to_toml().encode())
        put(folders.models / f"{network.card.id}.toml", network.card.to_toml().encode())
    put(folders.entry_path(board.name, entry.model), text)
    return paths


def _commit() -> str:
    """Return the commit of the checkout that runs, marked if files were changed; "" where there is no checkout."""
    root = catalog.data_folder("leaderboards").parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
