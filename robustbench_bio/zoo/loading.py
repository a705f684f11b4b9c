"""From a model card to a network, and from a trained network to its card."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from robustbench_bio import nets, rules
from robustbench_bio.attacks.transfer import SourceNetwork
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import parsing, read_file, write_atomically
from robustbench_bio.datasets import load_examples, open_dataset
from robustbench_bio.datasets.base import Dataset, Examples, Split
from robustbench_bio.nets.base import Inputs, Net
from robustbench_bio.records.card import ModelCard, TrainedNet
from robustbench_bio.records.motifs import AnyGenotype
from robustbench_bio.rules import RuleOptions
from robustbench_bio.zoo import catalog

#: Bytes that a weights file may hold besides the values: names and shapes.
HEADER = 1_000_000


@dataclass(frozen=True)
class DataSource:
    """A data set and where it lies.

    Attributes:
        dataset: name of a data set, or path of an .npz.
        root: where data sets lie, `default_root()` by default.
        file: an .npz that stands in for the data set.
    """

    dataset: str = "digits"
    root: Path | None = None
    file: Path | None = None

    def open(self) -> Dataset:
        """Return the data set; reads no images yet."""
        return open_dataset(self.dataset, self.file)

    def examples(self, split: Split, n: int | None = None) -> Examples:
        """Return the first n examples of a split, all by default."""
        return load_examples(self.dataset, split, n, data_root=self.root, data_file=self.file)

    def network(self, model: str, device: str | torch.device = "cpu") -> Net:
        """Return a network of the zoo, or of a card file, for this data set."""
        return load_model(model, self.dataset, device=str(device), data_file=self.file)

    def sigma(self) -> float:
        """Return the mean standard deviation, the unit of radii written with σ."""
        std = self.open().std
        return sum(std) / len(std)


def load_model(model: str, dataset: str = "digits", *, device: str = "cpu", data_file: Path | None = None) -> Net:
    """Return a network of the zoo with its trained weights, in eval mode.

    It takes x [N, C, H, W] in [0, 1], remembers its learning rules in `rules`, and differentiates exactly.

    Args:
        model: id of the zoo, or path of a card that ends in .toml (weights beside it).
        dataset: which of the card's networks.
        device: where the parameters shall be.
        data_file: an .npz that stands in for a data set without a name of its own.

    Raises:
        UserError: unknown model, nothing trained for this data set, weights missing, damaged or of another shape.
    """
    card = catalog.card(model)
    if dataset not in card.datasets:
        trained = ", ".join(sorted(card.datasets)) or "none"
        raise UserError(f"model {card.id} has no weights for dataset {dataset!r}, only for {trained}: train it first")
    entry = card.datasets[dataset]
    if entry.weights is None or entry.weights_sha256 is None:
        raise UserError(f"model {card.id} has a recipe for {dataset} but no weights yet: run biorobust train")
    net = network(card, entry, open_dataset(dataset, data_file))
    load_weights(net, catalog.weights_path(model, entry.weights), entry.weights_sha256)
    return net.eval().to(device)


def source_network(model: str, dataset: str) -> SourceNetwork:
    """Return a network of the zoo that lends its adversarial examples to the attack transfer."""
    net = load_model(model, dataset)
    return SourceNetwork(net, catalog.card(model).datasets[dataset].weights_sha256 or "")


def network(card: ModelCard, entry: TrainedNet, dataset: Dataset, cells: AnyGenotype | None = None) -> Net:
    """Return the untrained network of a card, its rules attached, its weights drawn from the entry's seed.

    `cells` stand in for the genotype that the card names, which then need not be in the catalog.
    """
    params: dict[str, Any] = {**card.net, **entry.net}
    name = str(params.pop("name", ""))
    for taken in {"inputs", "seed"} & params.keys():
        raise UserError(f"card {card.id}: field 'net.{taken}': no parameter of a network, remove it or move it out")
    described: dict[str, Any] = {"net": {**card.net, **entry.net}, "rule": card.rule, "options": card.rule_options}
    if "genotype" in params:
        params["genotype"] = cells or catalog.any_genotype(str(params["genotype"]))
        # Equal names are not equal cells, and how cells are wired shows in no weight.
        described["cells"] = params["genotype"].model_dump(mode="json", exclude={"name", "source"})
    inputs = Inputs(dataset.shape, len(dataset.classes), dataset.mean, dataset.std)
    net = nets.build(name, inputs, seed=entry.seed, **params)
    options = rule_options(card)
    rules.attach(net, card.rule, seed=entry.seed, options=options)
    if entry.recipe.init != "network":
        law = rules.own_options(RuleOptions, options)
        rules.initialise(net, law, entry.seed, which="all" if entry.recipe.init == "one-law" else "ruled")
    net.description = json.dumps(described, sort_keys=True)
    # The order of memory that CPU and GPU kernels prefer; values and shapes are the same.
    return net.to(memory_format=torch.channels_last)


def rule_options(card: ModelCard) -> dict[str, object]:
    """Return the options of a card's rules.

    Raises:
        UserError: an option that does not exist, or a value that it does not take.
    """
    try:
        return rules.check_options(card.rule_options)
    except UserError as error:
        raise UserError(f"card {card.id}: {error}") from None


def load_weights(net: Net, path: Path, sha256: str | None = None) -> None:
    """Fill a network from a safetensors file, after checking what the file is.

    Raises:
        UserError: no such file, larger than the network, another format, another hash, other names or shapes, NaN or
            infinity.
    """
    # Eight bytes a value are the most that a number takes; what is left is for the header.
    limit = 8 * sum(tensor.numel() for tensor in net.state_dict().values()) + HEADER
    data = read_file(path, limit)
    # The length of a safetensors header may look like the start of a pickle; then comes the header's brace.
    if data[:2] in {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"} and data[8:9] != b"{":
        raise UserError(f"expected safetensors in {path}, got a pickle, which could run code: convert it first")
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise UserError(f"weights {path} have sha256 {digest[:12]}…, the card says {sha256[:12]}…: not the same file")
    with parsing(f"expected safetensors in {path}, got something else", "write it anew"):
        tensors = load_safetensors(data)
    _fill(net, tensors, path)


def _fill(net: Net, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy tensors into a network, or raise `UserError` for one that does not fit; `path` is where they come from."""
    # Older files lack the batch norms' counters, which decide nothing in eval mode.
    counters = {name for name in net.state_dict() if name.endswith(".num_batches_tracked") and name not in tensors}
    own = {name: value for name, value in net.state_dict().items() if name not in counters}
    for name in [*own, *tensors]:
        if name not in tensors or name not in own:
            side = "lacks" if name in own else "has an extra"
            raise UserError(f"weights {path} do not fit the network: the file {side} {name!r}")
        if own[name].shape != tensors[name].shape:
            got, expected = tuple(tensors[name].shape), tuple(own[name].shape)
            raise UserError(f"weights {path} do not fit the network: expected {name!r} {expected}, got {got}")
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise UserError(f"weights {path} hold NaN or infinity in {name!r}")
    filled = {name: tensors[name].to(own[name].dtype) for name in own}
    net.load_state_dict(filled, strict=not counters)


def packed(net: Net) -> bytes:
    """Return weights, buffers and feedback as safetensors: floats as float16 if they fit, the rest as it is."""

    def half(tensor: Tensor) -> Tensor:
        fits = tensor.is_floating_point() and bool((tensor.abs() <= torch.finfo(torch.float16).max).all())
        return (tensor.half() if fits else tensor).cpu().contiguous()

    return save_safetensors({name: half(tensor) for name, tensor in net.state_dict().items()})


def save_trained(
    card: ModelCard, dataset: str, entry: TrainedNet, net: Net, folder: Path, weights_folder: Path
) -> ModelCard:
    """Write a trained network's weights, then the card that names their hash; return that card.

    The card goes to `folder/<id>.toml`, weights to `weights_folder/<id>-<dataset>.safetensors`. `entry` holds seed,
    recipe and training summary; weights and hash are filled in.
    """
    data = packed(net)
    name = f"{card.id}-{Path(dataset).stem}.safetensors"
    write_atomically(weights_folder / name, data)
    entry = entry.model_copy(update={"weights": name, "weights_sha256": hashlib.sha256(data).hexdigest()})
    card = card.model_copy(update={"datasets": {**card.datasets, dataset: entry}})
    write_atomically(folder / f"{card.id}.toml", card.to_toml().encode())
    return card
