"""What there is, and what each thing is: the facts behind `list` and `show`."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from robustbench_bio.attacks import ATTACKS
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import Registry, unknown
from robustbench_bio.datasets import DATASETS, default_root, open_dataset
from robustbench_bio.datasets.base import Split
from robustbench_bio.datasets.tensors import load_data
from robustbench_bio.nets import NETS, firing
from robustbench_bio.nets import cost as measure
from robustbench_bio.nets.base import Net, weight_layers
from robustbench_bio.records.card import TrainedNet
from robustbench_bio.records.space import Space
from robustbench_bio.rules import RULES, RuleSet
from robustbench_bio.search.base import ENGINES
from robustbench_bio.zoo import catalog, measures
from robustbench_bio.zoo import loading as zoo

#: How much of the train split gradients are measured on, and in batches of which size.
EXAMPLES, BATCH_SIZE = 512, 64

#: How many of the first test images spikes are counted on.
SPIKE_EXAMPLES = 200

#: What `show` says of weights that are the trained ones.
TRAINED = "trained"

#: The field of a model that is a table of its own.
LAYERS = "layer by layer"

Progress = Callable[[int, int, str], None]


class _Data(NamedTuple):
    """Where a data set lies."""

    root: Path | None
    file: Path | None


def listing(kind: str) -> dict[str, str]:
    """Return name → one line for every member of a kind."""
    match kind:
        case "models":
            return {name: _model_line(name) for name in catalog.model_ids()}
        case "attacks":
            return {name: f"{_purpose(cls)} [{', '.join(sorted(cls.norms))}]" for name, cls in ATTACKS.items()}
        case "rules":
            return {name: _purpose(cls) for name, cls in RULES.items()}
        case "datasets":
            return {
                name: f"{len(cls.classes)} classes, {_times(cls.shape)}; {cls.licence}"
                for name, cls in DATASETS.items()
            }
        case "genotypes" | "presets" | "spaces" | "boards":
            return _file_lines(kind)
        case _:
            members: Registry[Any] = ENGINES if kind == "engines" else NETS
            return {name: _purpose(cls) for name, cls in members.items()}


def facts(
    name: str,
    dataset: str = "digits",
    *,
    data_root: Path | None = None,
    data_file: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return field → value for one thing, such as a model, attack, rule, data set, genotype, preset or board.

    Numbers are numbers, in the unit that the field or its key names. Of a model's network, `LAYERS` holds one row
    per layer (angles in degrees), and gradients are measured only with trained weights and data that is here; so are
    the spikes of a spiking network, on test images.

    Args:
        name: of the thing.
        dataset: which of a model's networks.
        data_root: folder of downloaded data.
        data_file: an .npz that stands in for the data set.
        progress: called with steps done, their total and a text, while gradients are measured.

    Raises:
        UserError: nothing is called that.
    """
    if name.endswith(".toml") or name in catalog.model_ids():
        found = _model_facts(name, dataset, _Data(data_root, data_file), progress)
        return found | ({"genotype of that name": _file_facts(name)} if name in catalog.genotype_names() else {})
    if name in ATTACKS:
        cls = ATTACKS.get(name)
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        return {
            "kind": "attack",
            "norms": sorted(cls.norms),
            "defaults": defaults,
            "about": inspect.getdoc(cls) or "",
        }
    if name in RULES:
        return {"kind": "rule", "about": inspect.getdoc(RULES.get(name)) or ""}
    if name in DATASETS:
        data = DATASETS.get(name)
        return {
            "kind": "dataset",
            "shape": list(data.shape),
            "classes": list(data.classes),
            "licence": data.licence,
        }
    files = [*catalog.genotype_names(), *catalog.preset_names(), *catalog.space_names(), *catalog.board_names()]
    if name in [*files, *ENGINES.names()]:
        return _file_facts(name)
    if name in NETS:
        return {"kind": "network", "about": inspect.getdoc(NETS.get(name)) or ""}
    known = [*catalog.model_ids(), *ATTACKS.names(), *RULES.names(), *DATASETS.names(), *files, *ENGINES.names()]
    raise UserError(unknown("name", name, known))


def _model_facts(model: str, dataset: str, data: _Data, progress: Progress | None) -> dict[str, Any]:
    card = catalog.card(model)
    found = {
        "kind": "model",
        "title": card.title,
        "summary": card.summary,
        "reference": card.reference,
        "rules": card.rule,
        "datasets": ", ".join(sorted(card.datasets)),
    }
    if dataset in card.datasets:
        entry = card.datasets[dataset]
        net = zoo.network(card, entry, open_dataset(dataset, data.file)).eval()
        weights = _filled(net, model, entry)
        found |= _network_facts(net, entry) | {"weights": weights}
        if firing.spiking(net):
            found |= _spiking_facts(net, _examples(dataset, data, "test", SPIKE_EXAMPLES, weights))
        found |= _measured(net, _examples(dataset, data, "train", EXAMPLES, weights), progress)
    return found


def _filled(net: Net, model: str, entry: TrainedNet) -> str:
    """Load a network's trained weights if they are there; say which weights it has now."""
    if entry.weights is None:
        return "initial: not trained yet"
    try:
        zoo.load_weights(net, catalog.weights_path(model, entry.weights), entry.weights_sha256)
    except UserError as error:
        return f"initial: {error}"
    return TRAINED


def _examples(dataset: str, data: _Data, split: Split, most: int, weights: str) -> tuple[Tensor, Tensor] | str:
    """Return the first examples of a split, or why nothing is measured on them; downloads nothing."""
    if weights != TRAINED:
        return "nothing: no trained weights"
    if data.file is None and not open_dataset(dataset).is_local(data.root or default_root()):
        return f"nothing: {dataset} is not in {data.root or default_root()}"
    try:
        return load_data(dataset, split, most, data_root=data.root, data_file=data.file)
    except UserError as error:
        return f"nothing: {error}"


def _network_facts(net: Net, entry: TrainedNet) -> dict[str, Any]:
    assert isinstance(net.rules, RuleSet)  # noqa: S101
    shares = measure.shares(net, net.rules.assignment, net.inputs.shape)
    parameters, macs = measure.parameters(net), sum(share.macs for share in shares.values())
    return {
        "trained on": entry.trained_on or "not trained yet",
        "held-out accuracy": "unknown" if entry.val_accuracy is None else entry.val_accuracy,
        "recipe": entry.recipe.model_dump(mode="json", exclude_defaults=True),
        "parameters": parameters,
        "MACs per example": macs,
        "energy per inference": {
            "picojoules": round(measure.energy_picojoules(macs), 1),
            "picojoules_per_mac": measure.MAC_PICOJOULES,
            "how": f"estimate: {measure.MAC_PICOJOULES} pJ per MAC, float32 at 45 nm, Horowitz 2014; no memory traffic"
            + ("; as if every synapse multiplied at every time step, spike or no spike" if firing.spiking(net) else ""),
        },
        "weights under each rule": {rule: share.weights for rule, share in shares.items()},
        "percent of weights": {rule: 100 * share.weights / parameters for rule, share in shares.items()},
        "feedback memory": {
            "bytes": measure.feedback_bytes(net.rules),
            "how": "estimate: what rules store in training besides the weights",
        },
    }


def _spiking_facts(net: Net, examples: tuple[Tensor, Tensor] | str) -> dict[str, Any]:
    """Return how often neurons fire and what that costs, beside the same network with ReLU."""
    if isinstance(examples, str):
        return {"spikes measured on": examples}
    found = firing.firing(net, examples[0])
    return {
        "spikes measured on": {"split": "test", "examples": found.examples, "steps": found.steps},
        "firing rate": {
            "mean": found.rate,
            "layers": {layer.layer: layer.rate for layer in found.neurons},
            "how": "share of neurons × time steps that spike",
        },
        "spikes per example": {
            "spikes": found.spikes,
            "neurons": sum(layer.size for layer in found.neurons),
            "layers": {layer.layer: layer.spikes for layer in found.neurons},
        },
        "synaptic operations per example": {
            "accumulates": found.accumulates,
            "macs": found.macs,
            "repeated_macs": found.repeated,
            "relu_macs": found.relu_macs,
            "layers": {layer.layer: {"accumulates": layer.accumulates, "macs": layer.macs} for layer in found.synapses},
            "how": "accumulates: spikes × fan-out; macs: layers that are given other numbers than spikes, the first "
            "ones at every time step",
        },
        "energy with spikes": {
            "picojoules": round(found.picojoules, 1),
            "relu_picojoules": round(found.relu_macs * measure.MAC_PICOJOULES, 1),
            "repeated_picojoules": round(found.repeated * measure.MAC_PICOJOULES, 1),
            "picojoules_per_accumulate": measure.ACCUMULATE_PICOJOULES,
            "picojoules_per_mac": measure.MAC_PICOJOULES,
            "how": f"estimate: {measure.ACCUMULATE_PICOJOULES} pJ per accumulate, {measure.MAC_PICOJOULES} pJ per MAC, "
            "float32 at 45 nm, Horowitz 2014; no memory traffic, no upkeep of neurons",
        },
    }


def _measured(net: Net, examples: tuple[Tensor, Tensor] | str, progress: Progress | None) -> dict[str, Any]:
    """Return what needs the weights' values: of each layer, and of the whole network."""
    layers = {found.layer: _alignment_facts(found) for found in measures.alignment(net)}
    for name, layer in weight_layers(net).items():
        layers[name]["weights"] = layer.weight.numel()
    if isinstance(examples, str):
        return {"gradients measured on": examples, LAYERS: list(layers.values())}
    x, y = examples
    for angle in measures.gradient_angles(net, x[:BATCH_SIZE], y[:BATCH_SIZE]):
        row = layers[angle.layer] | {"gradient_angle": angle.angle}
        row["reasons"] += [angle.reason] if angle.reason else []
        layers[angle.layer] = row
    variance = measures.gradient_variance(net, x, y, batch_size=BATCH_SIZE, progress=progress)
    for found in variance.layers:
        layers[found.layer]["gradient_variance"] = _pair(found.by_rule, found.exact)
    return {
        "gradients measured on": {
            "split": "train", "examples": len(x), "batches": measures.LEAST_BATCHES, "batch_size": BATCH_SIZE,
        },
        "gradient variance": _pair(variance.by_rule, variance.exact) | {"weights": variance.weights},
        LAYERS: list(layers.values()),
    }  # fmt: skip


def _alignment_facts(found: measures.LayerAlignment) -> dict[str, Any]:
    return {
        "layer": found.layer,
        "rule": found.rule,
        "angle": found.angle,
        "weight_ratio": found.ratio,
        "reasons": [found.reason] if found.reason else [],
    }


def _pair(rule: measures.Variance | None, exact: measures.Variance | None) -> dict[str, Any]:
    return {
        side: None if found is None else dataclasses.asdict(found) for side, found in (("rule", rule), ("exact", exact))
    }


def _model_line(name: str) -> str:
    card = catalog.card(name)
    trained = ", ".join(sorted(d for d, entry in card.datasets.items() if entry.weights))
    return f"{card.title} [{trained or 'no weights'}]"


def _file_lines(kind: str) -> dict[str, str]:
    if kind == "genotypes":
        return {name: catalog.any_genotype(name).source for name in catalog.genotype_names()}
    if kind == "boards":
        boards = [catalog.board(name) for name in catalog.board_names()]
        return {board.name: f"{board.title} [{len(catalog.entry_files(board.name))} entries]" for board in boards}
    if kind == "spaces":
        spaces = [catalog.space(name) for name in catalog.space_names()]
        sizes = [
            f"{len(space.primitives)} primitives" if isinstance(space, Space) else f"{len(space.buildable)} motifs"
            for space in spaces
        ]
        return {space.name: f"{space.title} [{size}]" for space, size in zip(spaces, sizes, strict=True)}
    presets = [catalog.preset(name) for name in catalog.preset_names()]
    return {p.name: f"{p.title} [{', '.join(dict.fromkeys(one.attack for one in p.attacks))}]" for p in presets}


def _file_facts(name: str) -> dict[str, Any]:
    if name in catalog.genotype_names():
        return {**catalog.any_genotype(name).model_dump(mode="json"), "kind": "genotype"}
    if name in catalog.board_names():
        entries = [path.stem for path in catalog.entry_files(name)]
        found = catalog.board(name).model_dump(mode="json", exclude_none=True)
        return {"kind": "board", **found, "entries": ", ".join(entries) or "none yet"}
    if name not in catalog.preset_names():
        return _search_facts(name)
    return {"kind": "preset", **catalog.preset(name).model_dump(mode="json", exclude_defaults=True)}


def _search_facts(name: str) -> dict[str, Any]:
    """Return the facts of an engine, of a search space, or of both where they share a name."""
    found: dict[str, Any] = {}
    if name in ENGINES:
        cls = ENGINES.get(name)
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        found = {"kind": "engine", "defaults": defaults, "small images": dict(cls.small), "fitness": cls.fitness}
        found["about"] = inspect.getdoc(cls) or ""
    if name in catalog.space_names():
        space = {**catalog.space(name).model_dump(mode="json"), "kind": "space"}
        space |= {f"default {size}": space.pop(size) for size in ("channels", "layers")}
        found = found | {"space of that name": space} if found else space
    return found


def _purpose(thing: type) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
