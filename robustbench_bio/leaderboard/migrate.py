"""Entries of the first schema, brought up to date without measuring anything again."""

import json
from pathlib import Path
from typing import Any

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import write_atomically
from robustbench_bio.evaluation.fingerprint import fingerprint
from robustbench_bio.evaluation.migration import first_fingerprint, upgraded_spec
from robustbench_bio.evaluation.plan import Slice
from robustbench_bio.leaderboard.folders import Folders
from robustbench_bio.leaderboard.submit import entry_text
from robustbench_bio.records.board import Board
from robustbench_bio.records.entry import Entry
from robustbench_bio.records.threat import Threat
from robustbench_bio.zoo.loading import DataSource


def migrate(board: Board, folders: Folders) -> list[Path]:
    """Rewrite a board's entries of the first schema; return the files that changed.

    Outcomes are taken over as they are. A spec's fingerprint of the network is replaced only where the zoo's network
    has the fingerprint that the entry was measured with; the scores must follow from the outcomes as ever.

    Raises:
        UserError: an entry of another network than the zoo's, or one that contradicts itself.
    """
    examples = Slice.load(DataSource(board.dataset), board.n_examples)
    return [path for path in folders.entry_files(board.name) if _migrated(path, board, folders, examples)]


def _migrated(path: Path, board: Board, folders: Folders, examples: Slice) -> bool:
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict) or document.get("schema_version") != 1:
        return False
    card = folders.card(path.stem)
    if card is None:
        raise UserError(f"{path}: expected the zoo's network {path.stem}, got none: submit it, or remove the entry")
    net = folders.network(card, board.dataset)
    before, today = first_fingerprint(net), fingerprint(net, examples.x)
    measurements = [_measurement(one, path, before, today) for one in document["measurements"]]
    rank_by = Threat.read(document["rank_by"]).document()
    upgraded = document | {"schema_version": 2, "measurements": measurements, "rank_by": rank_by}
    entry = Entry.from_json(json.dumps(upgraded), str(path))
    write_atomically(path, entry_text(entry).encode())
    return True


def _measurement(document: dict[str, Any], path: Path, before: str, today: str) -> dict[str, Any]:
    if document["spec"]["weights_sha256"] != before:
        raise UserError(f"{path}: measured on another network than the zoo's: submit it again")
    return document | {"spec": upgraded_spec(document["spec"], today)}
