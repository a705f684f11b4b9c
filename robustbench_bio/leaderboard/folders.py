"""Where the networks and entries of boards lie, and how they are read: the catalog's folders or others."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import opened
from robustbench_bio.core.registry import unknown
from robustbench_bio.datasets import open_dataset
from robustbench_bio.evaluation.plan import Measurement, Plan, Settings, Slice, Subject, with_surrogates
from robustbench_bio.evaluation.planning import preset_measurements
from robustbench_bio.nets.base import Net
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import ModelCard, TrainedNet
from robustbench_bio.records.motifs import AnyGenotype
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo import loading as zoo
from robustbench_bio.zoo.loading import DataSource

#: Bytes of a file of weights: 120 million parameters of eight bytes, and as much again for feedback.
MAX_WEIGHTS = 2_000_000_000


@dataclass(frozen=True)
class Folders:
    """The folders of networks and boards.

    Attributes:
        models: cards, with `weights` and `genotypes` below.
        leaderboards: boards, with a folder of entries for each.
    """

    models: Path
    leaderboards: Path

    @classmethod
    def of(cls, zoo: Path | None = None, leaderboards: Path | None = None) -> Self:
        """Return the folders given, the catalog's where none is."""
        return cls(zoo or catalog.data_folder("models"), leaderboards or catalog.data_folder("leaderboards"))

    def card(self, model: str) -> ModelCard | None:
        """Return the card of a model; None where there is none."""
        return catalog.card(model, self.models) if model in catalog.model_ids(self.models) else None

    def genotype(self, card: ModelCard, dataset: str) -> AnyGenotype | None:
        """Return the genotype that a card's network for a data set names; None where it names none."""
        name = {**card.net, **card.datasets[dataset].net}.get("genotype")
        return None if name is None else catalog.any_genotype(str(name), self.models)

    def weights(self, card: ModelCard, dataset: str) -> Path:
        """Return where the weights of a card's network lie.

        Raises:
            UserError: the card names none.
        """
        entry = self.trained(card, dataset)
        if entry.weights is None:
            raise UserError(f"model {card.id} has a recipe for {dataset} but no weights yet: train it first")
        return self.models / "weights" / entry.weights

    def trained(self, card: ModelCard, dataset: str) -> TrainedNet:
        """Return a card's network for a data set, or raise `UserError`."""
        if dataset not in card.datasets:
            trained = ", ".join(sorted(card.datasets)) or "none"
            raise UserError(
                f"card {card.id}: expected a network for {dataset}, got {trained}: add [datasets.{dataset}]"
            )
        return card.datasets[dataset]

    def network(self, card: ModelCard, dataset: str) -> Net:
        """Return a card's network with its weights, in eval mode on the CPU."""
        path, entry = self.weights(card, dataset), self.trained(card, dataset)
        net = zoo.network(card, entry, open_dataset(dataset), self.genotype(card, dataset))
        zoo.load_weights(net, path, entry.weights_sha256)
        return net.eval()

    def board(self, name: str) -> Board:
        """Return a board by name."""
        return catalog.board(name, self.leaderboards)

    def boards(self, name: str | None = None) -> list[Board]:
        """Return one board by name, or all of them."""
        return [self.board(one) for one in ([name] if name else catalog.board_names(self.leaderboards))]

    def entry_files(self, board: str, models: str = "*") -> list[Path]:
        """Return the files of a board's entries whose model matches one of the comma-separated patterns.

        Raises:
            UserError: there are entries, but a pattern matches none.
        """
        files = catalog.entry_files(board, self.leaderboards)
        for pattern in (parts := [part.strip() for part in models.split(",")]):
            if files and not any(fnmatchcase(path.stem, pattern) for path in files):
                raise UserError(unknown(f"entry of board {board}", pattern, [path.stem for path in files]))
        return [path for path in files if any(fnmatchcase(path.stem, pattern) for pattern in parts)]

    def entry_path(self, board: str, model: str) -> Path:
        """Return where the entry of a model lies."""
        return self.leaderboards / board / f"{model}.json"


def measurements_of(board: Board) -> tuple[Measurement, ...]:
    """Return the measurements that a board asks for, each once: those of its preset, then those of its curve."""
    sigma = DataSource(board.dataset).sigma()
    presets = [board.preset, *([board.curve] if board.curve else [])]
    asked = [one for name in presets for one in preset_measurements(catalog.preset(name), sigma)]
    return tuple({(one.but_for_gradient(), one.gradient): one for one in asked}.values())


def plan_of(board: Board, subjects: Sequence[Subject], device: str = "cpu") -> Plan:
    """Return what a board asks of some networks: gradients in float32, surrogates where there are thresholds.

    Raises:
        UserError: the board's data is not here, or has fewer examples.
    """
    examples = Slice.load(DataSource(board.dataset), board.n_examples)
    settings = Settings(seed=board.seed, precision="float32", device=device)
    return Plan(examples, tuple(subjects), with_surrogates(measurements_of(board)), settings)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file of weights.

    Raises:
        UserError: it cannot be read, or is larger than any network's.
    """
    with opened(path, MAX_WEIGHTS) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
