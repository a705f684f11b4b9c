"""Which layer learns by which rule."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import torch

from robustbench_bio.errors import UserError
from robustbench_bio.nets.base import Net, weight_layers
from robustbench_bio.registry import unknown
from robustbench_bio.rng import torch_generator
from robustbench_bio.rules import predictive
from robustbench_bio.rules.base import RULES, Draw, LayerRules, RuleOptions, RuleSet

#: What `random:SEED` draws from: the rules of the BioNAS search space.
RANDOM_RULES = ("usf", "brsf", "frsf", "fa")

SYNTAX = "a rule, `genotype`, `random:SEED[:rule+rule…]` or `layer-pattern=rule`, separated by commas"


def rule_names() -> list[str]:
    """Return every rule that can be assigned, in alphabetical order."""
    return sorted([*RULES.names(), predictive.NAME])


def resolve(net: Net, assignment: str) -> dict[str, str]:
    """Turn an assignment into layer name → rule name, without the layers that stay with bp.

    Terms are applied from left to right, a later one overrides:

    - `usf`: this rule on every slot of the network (for cell networks: the operations that carry weights;
      otherwise every weight layer). dfa and the Hebbian rules leave the output layer to bp.
    - `genotype`: what the architecture prescribes.
    - `random:3`: one rule per slot, drawn uniformly from usf, brsf, frsf and fa with seed 3;
      `random:3:usf+bp` draws from those named.
    - `layer1.*=frsf`: this rule on the layers whose names match the pattern.

    Raises:
        UserError: unknown rule, malformed term, pattern that matches nothing, or rules that cannot be mixed.
    """
    layers = list(weight_layers(net))
    rules: dict[str, str] = {}
    for term in assignment.split(","):
        rules.update(_term(net, term.strip(), layers))
    rules = {name: rules[name] for name in layers if rules.get(name, "bp") != "bp"}
    _check_mixture(rules, layers)
    return rules


def _term(net: Net, term: str, layers: list[str]) -> Mapping[str, str]:
    if "=" in term:
        pattern, _, rule = (part.strip() for part in term.partition("="))
        matched = {name: _known(rule) for name in layers if fnmatchcase(name, pattern)}
        if not matched:
            raise UserError(f"expected a pattern that matches a layer, got {pattern!r}: layers are {_some(layers)}")
        return matched
    if term == "genotype":
        return net.genotype_rules()
    if term.startswith("random:"):
        return _random(net, term)
    rule = _known(term)
    slots = [name for names in net.rule_slots().values() for name in names]
    if rule not in (predictive.NAME, "bp") and _leaves_output_alone(rule):
        slots = [name for name in slots if name != layers[-1]]
    return dict.fromkeys(slots, rule)


def _random(net: Net, term: str) -> dict[str, str]:
    _, seed, *choice = term.split(":")
    if not seed.isdigit() or len(choice) > 1:
        raise UserError(f"expected random:SEED or random:SEED:rule+rule, got {term!r}")
    rules = [_known(rule) for rule in choice[0].split("+")] if choice else list(RANDOM_RULES)
    slots = net.rule_slots()
    draws = torch.randint(len(rules), (len(slots),), generator=torch_generator(int(seed), "assignment")).tolist()
    return {name: rules[i] for i, names in zip(draws, slots.values(), strict=True) for name in names}


def _known(rule: str) -> str:
    if rule not in rule_names():
        raise UserError(f"{unknown('rule', rule, rule_names())}; an assignment is {SYNTAX}")
    return rule


def _leaves_output_alone(rule: str) -> bool:
    return rule == "dfa" or RULES.get(rule).local


def _check_mixture(rules: Mapping[str, str], layers: list[str]) -> None:
    if predictive.NAME in rules.values() and (set(rules.values()) != {predictive.NAME} or len(rules) < len(layers)):
        raise UserError("expected pc on every layer or on none, got a mixture: pc relaxes the whole chain at once")
    output = rules.get(layers[-1])
    if output is not None and output != predictive.NAME and _leaves_output_alone(output):
        raise UserError(f"expected a rule that sees labels on the output layer {layers[-1]!r}, got {output}: use bp")


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" … ({len(names)} in all)" if len(names) > 6 else "")


def attach(
    net: Net, assignment: str | Mapping[str, str], *, seed: int = 0, options: RuleOptions | None = None
) -> RuleSet:
    """Give a network its learning rules; `net.rules` remembers them, forward passes stay as they were.

    Args:
        net: the network; its weights are not changed.
        assignment: see `resolve`, or its result.
        seed: of feedback matrices.
        options: switches of the rules.

    Returns:
        The rule set, also stored as `net.rules`.
    """
    options = options or RuleOptions()
    rules = resolve(net, assignment) if isinstance(assignment, str) else dict(assignment)
    if predictive.NAME in rules.values():
        net.rules = predictive.PredictiveCoding(net, options)
    else:
        net.rules = LayerRules(net, rules, options, seed, net.inputs.classes)
    return net.rules


def initialise(net: Net, options: RuleOptions, seed: int, *, which: Literal["all", "ruled"] = "all") -> None:
    """Draw weights anew from the law of the feedback matrices, biases zero.

    Args:
        net: the network, rules attached.
        options: `init` and `fan` name the law.
        seed: of the draw.
        which: "all" weight layers (one law for the whole network), or only the "ruled" ones, as in the
            released BioNAS code, where bp layers keep PyTorch's default.
    """
    assert isinstance(net.rules, RuleSet)  # noqa: S101
    for name, layer in weight_layers(net).items():
        if which == "ruled" and name not in net.rules.assignment:
            continue
        with torch.no_grad():
            layer.weight.copy_(Draw(seed, name, options).like_weight(layer, "weight"))
            if layer.bias is not None:
                layer.bias.zero_()
