"""What there is, and what each thing is: the facts behind `list` and `show`."""

import dataclasses
import inspect
from typing import Any

from robustbench_bio import catalog, zoo
from robustbench_bio.attacks import ATTACKS
from robustbench_bio.datasets import DATASETS, open_dataset
from robustbench_bio.errors import UserError
from robustbench_bio.nets import NETS, measure
from robustbench_bio.nets.base import Net
from robustbench_bio.records import TrainedNet
from robustbench_bio.registry import unknown
from robustbench_bio.rules import RULES, RuleSet, predictive, rule_names


def listing(kind: str) -> dict[str, str]:
    """Return name → one line for every member of a kind."""
    match kind:
        case "models":
            return {name: _model_line(name) for name in catalog.model_ids()}
        case "attacks":
            return {name: f"{_purpose(cls)} [{', '.join(sorted(cls.norms))}]" for name, cls in ATTACKS.items()}
        case "rules":
            return {name: _purpose(_rule(name)) for name in rule_names()}
        case "datasets":
            return {
                name: f"{len(cls.classes)} classes, {_times(cls.shape)}; {cls.licence}"
                for name, cls in DATASETS.items()
            }
        case "genotypes" | "presets":
            return _file_lines(kind)
        case _:
            return {name: _purpose(cls) for name, cls in NETS.items()}


def facts(name: str, dataset: str = "digits") -> dict[str, Any]:
    """Return field → value for one thing: a model, attack, rule, data set, genotype, preset or network.

    Raises:
        UserError: nothing is called that.
    """
    if name.endswith(".toml") or name in catalog.model_ids():
        return _model_facts(name, dataset)
    if name in ATTACKS:
        cls = ATTACKS.get(name)
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        return {
            "kind": "attack",
            "norms": sorted(cls.norms),
            "defaults": defaults,
            "about": inspect.getdoc(cls) or "",
        }
    if name in rule_names():
        return {"kind": "rule", "about": inspect.getdoc(_rule(name)) or ""}
    if name in DATASETS:
        data = DATASETS.get(name)
        return {
            "kind": "dataset",
            "shape": list(data.shape),
            "classes": list(data.classes),
            "licence": data.licence,
        }
    if name in catalog.genotype_names() or name in catalog.preset_names():
        return _file_facts(name)
    if name in NETS:
        return {"kind": "network", "about": inspect.getdoc(NETS.get(name)) or ""}
    known = [
        *catalog.model_ids(),
        *ATTACKS.names(),
        *rule_names(),
        *DATASETS.names(),
        *catalog.genotype_names(),
        *catalog.preset_names(),
    ]
    raise UserError(unknown("name", name, known))


def _model_facts(model: str, dataset: str) -> dict[str, Any]:
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
        found |= _network_facts(
            zoo.network(card, card.datasets[dataset], open_dataset(dataset)), card.datasets[dataset]
        )
    return found


def _network_facts(net: Net, entry: TrainedNet) -> dict[str, Any]:
    assert isinstance(net.rules, RuleSet)  # noqa: S101
    shares = measure.shares(net, net.rules.assignment, net.inputs.shape)
    return {
        "trained on": entry.trained_on or "not trained yet",
        "held-out accuracy": "unknown" if entry.val_accuracy is None else f"{100 * entry.val_accuracy:.1f} %",
        "recipe": entry.recipe.model_dump(mode="json", exclude_defaults=True),
        "parameters": f"{measure.parameters(net):,}",
        "MACs per example": f"{sum(share.macs for share in shares.values()):,}",
        "weights under each rule": {rule: share.weights for rule, share in shares.items()},
        "feedback state": f"{sum(b.numel() for b in net.rules.buffers()):,} numbers",
    }


def _model_line(name: str) -> str:
    card = catalog.card(name)
    trained = ", ".join(sorted(d for d, entry in card.datasets.items() if entry.weights))
    return f"{card.title} [{trained or 'no weights'}]"


def _file_lines(kind: str) -> dict[str, str]:
    if kind == "genotypes":
        return {name: catalog.genotype(name).source for name in catalog.genotype_names()}
    presets = [catalog.preset(name) for name in catalog.preset_names()]
    return {p.name: f"{p.title} [{', '.join(dict.fromkeys(cell.attack for cell in p.cells))}]" for p in presets}


def _file_facts(name: str) -> dict[str, Any]:
    if name in catalog.genotype_names():
        return {"kind": "genotype", **catalog.genotype(name).model_dump(mode="json")}
    return {"kind": "preset", **catalog.preset(name).model_dump(mode="json", exclude_defaults=True)}


def _rule(name: str) -> type:
    return predictive.PredictiveCoding if name == predictive.NAME else RULES.get(name)


def _purpose(thing: type) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
