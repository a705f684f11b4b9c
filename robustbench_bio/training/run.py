"""A training run from a card: network, data, loop, and the folder that holds what came of it."""

from dataclasses import dataclass
from pathlib import Path

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import write_atomically, write_csv
from robustbench_bio.core.progress import Progress
from robustbench_bio.datasets import load_examples, open_dataset
from robustbench_bio.nets.base import Net
from robustbench_bio.records.base import read_toml
from robustbench_bio.records.card import ModelCard, TrainedNet
from robustbench_bio.training.loop import Training, train
from robustbench_bio.zoo import loading as zoo


@dataclass(frozen=True)
class TrainingRun:
    """A training run and what it left; `folder` holds card, weights, history and checkpoint."""

    card: ModelCard
    """With weights and hash once the training is finished."""
    net: Net
    """In eval mode."""
    training: Training
    folder: Path
    dataset: str = "digits"


def train_card(
    card: ModelCard,
    dataset: str,
    folder: Path,
    *,
    data_root: Path | None = None,
    data_file: Path | None = None,
    max_minutes: float | None = None,
    device: str = "cpu",
    zoo_folder: Path | None = None,
    progress: Progress | None = None,
) -> TrainingRun:
    """Train the network that a card describes for one data set.

    Writes `checkpoint.safetensors` and `history.csv` into the folder, and when the recipe is finished `<id>.toml` and
    its weights, which `--model FOLDER/<id>.toml` then names.

    Recipe and seed are those of the card's entry for the data set. A checkpoint in the folder is continued. With
    `zoo_folder`, card and weights are written into that `models` folder as well. Raises `UserError` as `train` and
    `zoo.network` do.
    """
    if dataset not in card.datasets:
        raise UserError(f"card {card.id} has no entry for dataset {dataset!r}: add [datasets.{dataset}.recipe]")
    if zoo_folder is not None:
        _known(card, zoo_folder)  # complains now rather than after the work
    entry = card.datasets[dataset]
    net = zoo.network(card, entry, open_dataset(dataset, data_file))
    examples = load_examples(dataset, "train", data_root=data_root, data_file=data_file)
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.exists():
        write_atomically(folder / "card.toml", card.to_toml().encode())
    training = train(
        net,
        examples,
        entry.recipe,
        seed=entry.seed,
        checkpoint=checkpoint,
        max_minutes=max_minutes,
        device=device,
        progress=progress,
    )
    write_csv(training.history, folder / "history.csv")
    if training.finished:
        card = _save(card, dataset, entry, net, training, len(examples), folder, zoo_folder)
    return TrainingRun(card, net, training, folder, dataset)


def _save(
    card: ModelCard,
    dataset: str,
    entry: TrainedNet,
    net: Net,
    training: Training,
    n: int,
    folder: Path,
    zoo_folder: Path | None,
) -> ModelCard:
    trained_on = entry.trained_on or f"{dataset} train ({n:,} images)"
    entry = entry.model_copy(update={"trained_on": trained_on, "val_accuracy": training.val_accuracy})
    net.cpu()
    if zoo_folder is not None:
        whole = card.model_copy(update={"datasets": {**_known(card, zoo_folder), **card.datasets}})
        zoo.save_trained(whole, dataset, entry, net, zoo_folder, zoo_folder / "weights")
    return zoo.save_trained(card, dataset, entry, net, folder, folder)


def _known(card: ModelCard, zoo_folder: Path) -> dict[str, TrainedNet]:
    """Return what the zoo's card of this id holds already: its networks for other data sets must survive."""
    path = zoo_folder / f"{card.id}.toml"
    if not path.exists():
        return {}
    old = read_toml(ModelCard, path)
    same = (old.rule, old.rule_options, old.net) == (card.rule, card.rule_options, card.net)
    if not same and old.datasets.keys() - card.datasets.keys():
        raise UserError(f"{path} describes another network, also for other data sets: name this one with --id")
    return old.datasets
