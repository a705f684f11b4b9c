"""What is submitted to a board, checked: cards, cells and weights are data that nobody has to trust."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustbench_bio import nets
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress
from robustbench_bio.datasets import open_dataset
from robustbench_bio.leaderboard.folders import Folders, file_hash
from robustbench_bio.nets.base import Inputs, Net
from robustbench_bio.records.base import read_toml
from robustbench_bio.records.board import Board
from robustbench_bio.records.card import ModelCard, TrainedNet
from robustbench_bio.records.motifs import AnyGenotype, read_genotype
from robustbench_bio.training import run as runs
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo import loading as zoo

#: Parameters of a network that is submitted; those of ImageNet's largest ResNet are half as many.
MAX_PARAMETERS = 120_000_000

#: The largest number that a submitted card may set under `[net]`, and how many in a list.
MAX_NUMBER, MAX_LIST = 4096, 64


@dataclass(frozen=True)
class SubmissionOptions:
    """What a submission brings besides cards.

    Attributes:
        weights: safetensors of the one card; beside the card by default.
        genotype: cells or motifs of the one card; beside the card by default.
        train: follow the recipe of a card without weights first.
        replace: put another network in the place of one of the same id.
    """

    weights: Path | None = None
    genotype: Path | None = None
    train: bool = False
    replace: bool = False


@dataclass(frozen=True)
class CheckedNetwork:
    """A network that was checked and is to be measured.

    Attributes:
        card: as the zoo shall hold it, with the networks for other data sets that it holds already.
        net: with its weights, in eval mode.
        cells: its genotype; None where it has none.
        weights: file to copy into the zoo; None where the zoo has it.
        own_cells: whether the genotype has to be written into the zoo.
    """

    card: ModelCard
    net: Net
    cells: AnyGenotype | None
    weights: Path | None = None
    own_cells: bool = False


def from_zoo(
    model: str, board: Board, folders: Folders, options: SubmissionOptions, progress: Progress
) -> CheckedNetwork:
    """Return a network that the zoo holds, trained first if it has no weights and the options say so."""
    card = folders.card(model)
    if card is None:
        raise UserError(f"no card {model}.toml in {folders.models}")
    entry = folders.trained(card, board.dataset)
    if entry.weights is None and options.train:
        return from_file(folders.models / f"{model}.toml", board, folders, options, progress)
    net = folders.network(card, board.dataset)
    return CheckedNetwork(card, net, folders.genotype(card, board.dataset))


def from_file(
    path: Path, board: Board, folders: Folders, options: SubmissionOptions, progress: Progress
) -> CheckedNetwork:
    """Check a card file, its cells and its weights, none of which may be trusted."""
    card = _read_card(path)
    entry = folders.trained(card, board.dataset)
    cells, cells_file = _read_cells(card, entry, path, folders, options.genotype)
    if cells is not None and cells_file is not None:
        card, entry = _renamed(card, entry, cells.name)
        _name_is_free(cells, folders)
    _affordable(card, entry, board, cells)
    weights = options.weights or path.parent / (entry.weights or "")
    if options.weights is None and entry.weights is None:
        if not options.train:
            raise UserError(f"card {card.id}: expected weights for {board.dataset}, got none: name them with "
                            "--weights, or train them with --train")  # fmt: skip
        weights, entry = _trained(card, entry, board, cells_file, progress)
    net = zoo.network(card, entry, open_dataset(board.dataset), cells)
    weights_sha256 = file_hash(weights)
    zoo.load_weights(net, weights, entry.weights_sha256 or weights_sha256)
    named = {"weights": f"{card.id}-{board.dataset}.safetensors", "weights_sha256": weights_sha256}
    entry = entry.model_copy(update=named)
    card = card.model_copy(update={"datasets": {board.dataset: entry}})
    card = _joined(card, board, folders, options.replace)
    return CheckedNetwork(card, net.eval(), cells, weights, own_cells=cells_file is not None)


def _read_card(path: Path) -> ModelCard:
    card = read_toml(ModelCard, path)
    for net in (card.net, *(entry.net for entry in card.datasets.values())):
        for name, value in net.items():
            numbers = value if isinstance(value, list) else [value]
            large = any(not isinstance(v, str) and abs(v) > MAX_NUMBER for v in numbers)
            if large or len(numbers) > MAX_LIST:
                raise UserError(
                    f"card {card.id}: field 'net.{name}': expected at most {MAX_LIST} numbers of at most {MAX_NUMBER}, "
                    "got more: take a smaller network"
                )
    return card


def _read_cells(
    card: ModelCard, entry: TrainedNet, path: Path, folders: Folders, given: Path | None
) -> tuple[AnyGenotype | None, Path | None]:
    """Return the cells or motifs of a submitted card, and their file; None for the file where the zoo has them."""
    name = {**card.net, **entry.net}.get("genotype")
    if given is None and name is None:
        return None, None
    if given is None and not str(name).endswith(".toml"):
        return catalog.any_genotype(str(name), folders.models), None
    if given is None and Path(str(name)).name != str(name):
        raise UserError(f"card {card.id}: field 'net.genotype': expected a name or a file beside the card, "
                        f"got {str(name)[:80]!r}: name the file with --genotype")  # fmt: skip
    file = given or path.parent / str(name)
    return read_genotype(file), file


def _name_is_free(cells: AnyGenotype, folders: Folders) -> None:
    taken = {file.stem for file in (folders.models / "genotypes").glob("*.toml")} | {*catalog.genotype_names()}
    if cells.name in taken and _wiring(catalog.any_genotype(cells.name, folders.models)) != _wiring(cells):
        raise UserError(f"genotype {cells.name!r} is in the zoo already, as another one: rename it in its file")


def _wiring(cells: AnyGenotype) -> dict[str, Any]:
    return cells.model_dump(exclude={"name", "source"})


def _renamed(card: ModelCard, entry: TrainedNet, cells: str) -> tuple[ModelCard, TrainedNet]:
    """Return card and entry that call their genotype as the zoo will."""
    nets_ = [dict(card.net), dict(entry.net)]
    for net in nets_:
        if "genotype" in net:
            net["genotype"] = cells
    return card.model_copy(update={"net": nets_[0]}), entry.model_copy(update={"net": nets_[1]})


def _affordable(card: ModelCard, entry: TrainedNet, board: Board, cells: AnyGenotype | None) -> None:
    """Raise `UserError` for a network of too many parameters, before any memory is taken for them."""
    params: dict[str, Any] = {**card.net, **entry.net}
    name = str(params.pop("name", ""))
    if cells is not None:
        params["genotype"] = cells
    if taken := {"inputs", "seed"} & params.keys():
        raise UserError(f"card {card.id}: field 'net.{min(taken)}': no parameter of a network, remove it")
    data = open_dataset(board.dataset)
    with torch.device("meta"):
        net = nets.build(name, Inputs(data.shape, len(data.classes), data.mean, data.std), seed=0, **params)
    if (count := sum(tensor.numel() for tensor in net.parameters())) > MAX_PARAMETERS:
        raise UserError(
            f"card {card.id}: expected at most {MAX_PARAMETERS:,} parameters, got {count:,}: make it smaller"
        )


def _trained(
    card: ModelCard, entry: TrainedNet, board: Board, genotype: Path | None, progress: Progress
) -> tuple[Path, TrainedNet]:
    """Follow the recipe of a card and return the weights' file and what the training tells."""
    if genotype is not None:
        card, entry = _renamed(card, entry, str(genotype.resolve()))
    card = card.model_copy(update={"datasets": {board.dataset: entry}})
    run = runs.train_card(card, board.dataset, Path("runs") / f"{card.id}-{board.dataset}", progress=progress)
    done = run.card.datasets[board.dataset]
    assert done.weights is not None  # noqa: S101
    kept = {name: getattr(done, name) for name in ("trained_on", "val_accuracy", "weights_sha256")}
    return run.folder / done.weights, entry.model_copy(update=kept)


def _joined(card: ModelCard, board: Board, folders: Folders, replace: bool) -> ModelCard:
    """Return the card with the networks for other data sets that the zoo holds of it, or raise `UserError`."""
    old = folders.card(card.id)
    if old is None:
        return card
    same = (old.rule, old.rule_options, old.net) == (card.rule, card.rule_options, card.net)
    present, own = old.datasets.get(board.dataset), card.datasets[board.dataset]
    kept = present is None or present.weights is None or present.weights_sha256 == own.weights_sha256
    if not (same and kept) and not replace:
        raise UserError(f"model {card.id} is in the zoo already, as another network: rename the card, "
                        "or put it in that one's place with --replace")  # fmt: skip
    others = {name: entry for name, entry in old.datasets.items() if name != board.dataset}
    if others and not same:
        raise UserError(f"model {card.id} has networks for {', '.join(others)} too, which are others: rename the card")
    return card.model_copy(update={"datasets": {**others, **card.datasets}})
