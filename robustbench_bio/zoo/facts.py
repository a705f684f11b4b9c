"""What a network is and measures: cost, firing, alignment of its layers' feedback, its gradients."""

import dataclasses
from typing import Any, NamedTuple

from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress
from robustbench_bio.datasets import default_root, tensors
from robustbench_bio.datasets.base import Split
from robustbench_bio.nets import cost, firing
from robustbench_bio.nets.base import Net, weight_layers
from robustbench_bio.records.card import TrainedNet
from robustbench_bio.rules import RuleSet
from robustbench_bio.zoo import catalog, measures
from robustbench_bio.zoo.loading import DataSource, load_weights, network

#: How much of the train split gradients are measured on, and in batches of which size.
EXAMPLES, BATCH_SIZE = 512, 64

#: How many of the first test images spikes are counted on.
SPIKE_EXAMPLES = 200

#: What the facts say of weights that are the trained ones.
TRAINED = "trained"

#: The field of a model that is a table of its own.
LAYERS = "layer by layer"


class NetworkCost(NamedTuple):
    """What a network costs; energy and feedback memory are estimates: see `nets.cost`.

    Attributes:
        macs: of one example's forward pass.
        feedback_bytes: what rules store in training besides the weights.
        weights: rule → weights under it.
    """

    parameters: int
    macs: int
    picojoules: float
    feedback_bytes: int
    weights: dict[str, int]

    def percent_of_weights(self) -> dict[str, float]:
        """Return rule → percent of all parameters that are under it."""
        return {rule: 100 * weights / self.parameters for rule, weights in self.weights.items()}


def network_cost(net: Net) -> NetworkCost:
    """Return what a network with rules costs."""
    assert isinstance(net.rules, RuleSet)  # noqa: S101
    shares = cost.shares(net, net.rules.assignment, net.inputs.shape)
    macs, weights = (
        sum(share.macs for share in shares.values()),
        {rule: share.weights for rule, share in shares.items()},
    )
    energy = round(cost.energy_picojoules(macs), 1)
    return NetworkCost(cost.parameters(net), macs, energy, cost.feedback_bytes(net.rules), weights)


def model_facts(model: str, source: DataSource, progress: Progress | None = None) -> dict[str, Any]:
    """Return field → value for the card of an id or of a path, and for its network for a data set.

    Numbers are numbers, in the unit that the field or its key names. `LAYERS` holds one row per layer (angles in
    degrees). Gradients, and the spikes of a spiking network, are measured only with trained weights, on data that is
    on disk.

    Raises:
        UserError: no such model.
    """
    card = catalog.card(model)
    facts = {
        "kind": "model",
        "title": card.title,
        "summary": card.summary,
        "reference": card.reference,
        "rules": card.rule,
        "datasets": ", ".join(sorted(card.datasets)),
    }
    if source.dataset in card.datasets:
        entry = card.datasets[source.dataset]
        net = network(card, entry, source.open()).eval()
        weights = _filled(net, model, entry)
        facts |= _network_facts(net, entry) | {"weights": weights}
        if firing.spiking(net):
            facts |= _spiking_facts(net, _examples(source, "test", SPIKE_EXAMPLES, weights))
        facts |= _layer_facts(net, _examples(source, "train", EXAMPLES, weights), progress)
    return facts


def _filled(net: Net, model: str, entry: TrainedNet) -> str:
    """Load a network's trained weights if they are there; say which weights it has now."""
    if entry.weights is None:
        return "initial: not trained yet"
    try:
        load_weights(net, catalog.weights_path(model, entry.weights), entry.weights_sha256)
    except UserError as error:
        return f"initial: {error}"
    return TRAINED


def _examples(source: DataSource, split: Split, most: int, weights: str) -> tuple[Tensor, Tensor] | str:
    """Return the first examples of a split, or why nothing is measured on them; downloads nothing."""
    if weights != TRAINED:
        return "nothing: no trained weights"
    root = source.root or default_root()
    if source.file is None and not source.open().is_local(root):
        return f"nothing: {source.dataset} is not in {root}"
    try:
        return tensors(source.examples(split, most))
    except UserError as error:
        return f"nothing: {error}"


def _network_facts(net: Net, entry: TrainedNet) -> dict[str, Any]:
    costs = network_cost(net)
    return {
        "trained on": entry.trained_on or "not trained yet",
        "held-out accuracy": "unknown" if entry.val_accuracy is None else entry.val_accuracy,
        "recipe": entry.recipe.model_dump(mode="json", exclude_defaults=True),
        "parameters": costs.parameters,
        "MACs per example": costs.macs,
        "energy per inference": {
            "picojoules": costs.picojoules,
            "picojoules_per_mac": cost.MAC_PICOJOULES,
            "how": f"estimate: {cost.MAC_PICOJOULES} pJ per MAC, float32 at 45 nm, Horowitz 2014; no memory traffic"
            + ("; as if every synapse multiplied at every time step, spike or no spike" if firing.spiking(net) else ""),
        },
        "weights under each rule": costs.weights,
        "percent of weights": costs.percent_of_weights(),
        "feedback memory": {
            "bytes": costs.feedback_bytes,
            "how": "estimate: what rules store in training besides the weights",
        },
    }


def _spiking_facts(net: Net, examples: tuple[Tensor, Tensor] | str) -> dict[str, Any]:
    """Return how often neurons fire and what that costs, beside the same network with ReLU."""
    if isinstance(examples, str):
        return {"spikes measured on": examples}
    counts = firing.firing(net, examples[0])
    return {
        "spikes measured on": {"split": "test", "examples": counts.examples, "steps": counts.steps},
        "firing rate": {
            "mean": counts.rate,
            "layers": {layer.layer: layer.rate for layer in counts.neurons},
            "how": "share of neurons × time steps that spike",
        },
        "spikes per example": {
            "spikes": counts.spikes,
            "neurons": sum(layer.size for layer in counts.neurons),
            "layers": {layer.layer: layer.spikes for layer in counts.neurons},
        },
        "synaptic operations per example": {
            "accumulates": counts.total.accumulates,
            "macs": counts.total.macs,
            "repeated_macs": counts.total.repeated,
            "relu_macs": counts.total.relu_macs,
            "layers": {row.layer: {"accumulates": row.accumulates, "macs": row.macs} for row in counts.synapses},
            "how": "accumulates: spikes × fan-out; macs: layers that are given other numbers than spikes, the first "
            "ones at every time step",
        },
        "energy with spikes": {
            "picojoules": round(counts.picojoules, 1),
            "relu_picojoules": round(counts.total.relu_macs * cost.MAC_PICOJOULES, 1),
            "repeated_picojoules": round(counts.total.repeated * cost.MAC_PICOJOULES, 1),
            "picojoules_per_accumulate": cost.ACCUMULATE_PICOJOULES,
            "picojoules_per_mac": cost.MAC_PICOJOULES,
            "how": f"estimate: {cost.ACCUMULATE_PICOJOULES} pJ per accumulate, {cost.MAC_PICOJOULES} pJ per MAC, "
            "float32 at 45 nm, Horowitz 2014; no memory traffic, no upkeep of neurons",
        },
    }


def _layer_facts(net: Net, examples: tuple[Tensor, Tensor] | str, progress: Progress | None) -> dict[str, Any]:
    """Return what needs the weights' values: of each layer, and of the whole network."""
    layers = {aligned.layer: _alignment_facts(aligned) for aligned in measures.alignment(net)}
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
    for spread in variance.layers:
        layers[spread.layer]["gradient_variance"] = _pair(spread.by_rule, spread.exact)
    return {
        "gradients measured on": {
            "split": "train",
            "examples": len(x),
            "batches": measures.LEAST_BATCHES,
            "batch_size": BATCH_SIZE,
        },
        "gradient variance": _pair(variance.by_rule, variance.exact) | {"weights": variance.weights},
        LAYERS: list(layers.values()),
    }


def _alignment_facts(aligned: measures.LayerAlignment) -> dict[str, Any]:
    return {
        "layer": aligned.layer,
        "rule": aligned.rule,
        "angle": aligned.angle,
        "weight_ratio": aligned.ratio,
        "reasons": [aligned.reason] if aligned.reason else [],
    }


def _pair(rule: measures.Variance | None, exact: measures.Variance | None) -> dict[str, Any]:
    """Return the variances of the rules' and of the exact gradient; None where there is none."""
    return {
        side: None if variance is None else dataclasses.asdict(variance)
        for side, variance in (("rule", rule), ("exact", exact))
    }
