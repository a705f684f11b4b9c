"""Entries of the first schema, brought up to date without measuring anything again."""

import json
from pathlib import Path
from typing import Any

from robustbench_bio.core.documents import parse_json
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import read_text, write_atomically
from robustbench_bio.evaluation.fingerprint import fingerprint
from robustbench_bio.evaluation.migration import first_fingerprint, upgraded_spec
from robustbench_bio.evaluation.plan import Slice
from robustbench_bio.leaderboard.folders import Folders
from robustbench_bio.leaderboard.submit import entry_text
from robustbench_bio.records.board import Board
from robustbench_bio.records.entry import Entry
from robustbench_bio.records.threat import Threat
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import DataSource


def migrate(board: Board, folders: Folders) -> list[Path]:
    """Rewrite a board's entries of the first schema; return the files that changed.

    Outcomes are taken over as they are. A spec's fingerprint of the network is replaced only where the zoo's network
    has the fingerprint that the entry was measured with; the scores must follow from the outcomes as ever.

    Raises:
        UserError: an entry of another network than the zoo's, or one that contradicts itself; nothing is written then.
    """
    examples = Slice.load(DataSource(board.dataset), board.n_examples)
    read = ((path, _upgraded(path, board, folders, examples)) for path in folders.entry_files(board.name))
    upgraded = [(path, entry) for path, entry in read if entry is not None]
    for path, entry in upgraded:  # only now: a board is brought up to date as a whole or not at all
        write_atomically(path, entry_text(entry).encode())
    return [path for path, _ in upgraded]


def _upgraded(path: Path, board: Board, folders: Folders, examples: Slice) -> Entry | None:
    """Return the entry of the first schema in a file as one of today's; None for a file that is up to date."""
    document = _document(path)
    if type(document.get("schema_version")) is not int or document["schema_version"] != 1:
        return None
    card = folders.card(path.stem)
    if card is None:
        raise UserError(f"{path}: expected the zoo's network {path.stem}, got none: submit it, or remove the entry")
    net = folders.network(card, board.dataset)
    before, today = first_fingerprint(net), fingerprint(net, examples.x)
    try:
        measurements = [_measurement(one, path, before, today) for one in document["measurements"]]
        rank_by = Threat.read(document["rank_by"]).document()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: expected an entry of schema 1, got another document ({reason}): submit it") from None
    upgraded = document | {"schema_version": 2, "measurements": measurements, "rank_by": rank_by}
    return Entry.from_json(json.dumps(upgraded), str(path))


def _document(path: Path) -> dict[str, Any]:
    document = parse_json(read_text(path, catalog.MAX_ENTRY), str(path))
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected an entry as JSON, got a {type(document).__name__}: remove it")
    return document


def _measurement(document: dict[str, Any], path: Path, before: str, today: str) -> dict[str, Any]:
    spec = document["spec"]
    if spec["weights_sha256"] != before:
        raise UserError(
            f"{path}: expected a measurement of the zoo's network as torch prints it here, got one of another network "
            "or by another version of torch: submit it again"
        )
    if new := {"threat", "draws", "batch_size", "network_sha256"} & spec.keys():
        raise ValueError(f"the first schema has no field {min(new)}")
    return document | {"spec": upgraded_spec(spec, today)}
