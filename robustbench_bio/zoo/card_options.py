"""From the options of `biorobust train` to a card of the same meaning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustbench_bio.core.errors import UserError
from robustbench_bio.records.card import ModelCard, Recipe
from robustbench_bio.records.kinds import kind_of
from robustbench_bio.records.threat import parse_eps
from robustbench_bio.zoo import catalog


def card_from_options(
    *,
    model: str | None,
    genotype: str | None,
    rule: str | None,
    dataset: str,
    name: str | None,
    seed: int | None,
    changes: Sequence[str],
) -> ModelCard:
    """Return the card to train: one of the zoo or one made from a genotype, with the changes applied.

    `rule` and `seed` replace those of the card. A change is `recipe.FIELD=VALUE`, `net.FIELD=VALUE` or
    `rules.FIELD=VALUE`.

    Raises:
        UserError: neither or both of model and genotype, or a change that does not fit.
    """
    if (model is None) == (genotype is None):
        raise UserError("expected one of --model and --genotype, got " + ("both" if model else "neither"))
    document = _from_genotype(genotype) if genotype else catalog.card(str(model)).model_dump(mode="json")
    entry = document["datasets"].setdefault(dataset, {"recipe": Recipe().model_dump(mode="json")})
    for field in ("weights", "weights_sha256", "val_accuracy", "trained_on"):
        entry.pop(field, None)
    document["datasets"] = {dataset: entry}
    if rule is not None:
        document["rule"] = rule
    if seed is not None:
        entry["seed"] = seed
    if name is not None:
        document["id"] = name
    targets = {"recipe": entry["recipe"], "net": entry.setdefault("net", {}), "rules": document["rule_options"]}
    for key, value in parse_pairs(changes).items():
        target, _, field = key.partition(".")
        if target not in targets or not field:
            raise UserError(f"expected recipe.FIELD, net.FIELD or rules.FIELD to set, got {key!r}")
        _put(targets[target], field, value)
    return ModelCard.read(document)


def _from_genotype(genotype: str) -> dict[str, Any]:
    chosen = catalog.any_genotype(genotype)
    kind = kind_of(chosen)
    return {
        "id": Path(genotype).stem,
        "title": f"{kind.capitalize()} {chosen.name}",
        "rule": "genotype",
        "rule_options": {},
        "net": {"name": kind, "genotype": genotype},
        "datasets": {},
    }


def _put(target: dict[str, Any], field: str, value: Any) -> None:
    """Set a field, `adversary.eps` creating the adversary that it belongs to."""
    first, _, rest = field.partition(".")
    if not rest:
        target[first] = value
        return
    if not isinstance(target.get(first), dict):
        target[first] = {}
    target[first][rest] = value


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` pairs: numbers, fractions, true, false, none and [lists] are understood, the rest is text.

    Raises:
        UserError: a pair without `=`, or a name that is given twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name:
            raise UserError(f"expected name=value, got {pair!r}")
        if name in values:
            raise UserError(f"expected each name once, got {name!r} twice")
        values[name] = _value(value)
    return values


def _value(text: str) -> Any:
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    if text.startswith("[") and text.endswith("]"):
        return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return parse_eps(text)
    except UserError:
        return text
