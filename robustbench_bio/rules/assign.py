"""Which layer learns by which rule."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets.base import Net, weight_layers
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
      otherwise every weight layer); pc takes every weight layer of any network.
    - `genotype`: what the architecture prescribes.
    - `random:3`: one rule per slot, drawn uniformly from usf, brsf, frsf and fa with seed 3;
      `random:3:usf+bp` draws from those named.
    - `layer1.*=frsf`: this rule on the layers whose names match the pattern.

    Where a rule's name or a draw would give the output layer to dfa or a Hebbian rule, it goes to bp.

    Raises:
        UserError: unknown rule, malformed term, pattern that matches nothing, `genotype` for a network that is
            not made from one, or rules that cannot be mixed.
    """
    layers = list(weight_layers(net))
    rules: dict[str, str] = {}
    for term in assignment.split(","):
        rules.update(_term(net, term.strip(), layers))
    return _checked(rules, layers)


def _term(net: Net, term: str, layers: list[str]) -> Mapping[str, str]:
    if "=" in term:
        return _matched(term, layers)
    if term == "genotype":
        if type(net).genotype_rules is Net.genotype_rules:
            kind = type(net).__name__
            raise UserError(f"expected a network made from a genotype, got a {kind}: name a rule, not `genotype`")
        return net.genotype_rules()
    if term == predictive.NAME:
        return dict.fromkeys(layers, predictive.NAME)
    slots = net.rule_slots()
    drawn = _drawn(term, len(slots)) if term.startswith("random:") else [_known(term)] * len(slots)
    rules = {name: rule for rule, names in zip(drawn, slots.values(), strict=True) for name in names}
    output = _output(layers)
    if _blind_to_labels(rules.get(output, "bp")):
        rules[output] = "bp"
    return rules


def _matched(term: str, layers: list[str]) -> dict[str, str]:
    pattern, _, rule = (part.strip() for part in term.partition("="))
    matched = {name: _known(rule) for name in layers if fnmatchcase(name, pattern)}
    if not matched:
        raise UserError(f"expected a pattern that matches a layer, got {pattern!r}: layers are {_some(layers)}")
    return matched


def _drawn(term: str, slots: int) -> list[str]:
    _, seed, *choice = term.split(":")
    if not seed.isdecimal() or len(choice) > 1:
        raise UserError(f"expected random:SEED or random:SEED:rule+rule, got {term!r}")
    rules = [_known(rule) for rule in choice[0].split("+")] if choice else list(RANDOM_RULES)
    draws = torch.randint(len(rules), (slots,), generator=torch_generator(int(seed), "assignment"))
    return [rules[i] for i in draws.tolist()]


def _known(rule: str) -> str:
    if rule not in rule_names():
        raise UserError(f"{unknown('rule', rule, rule_names())}; an assignment is {SYNTAX}")
    return rule


def _output(layers: list[str]) -> str:
    """Return the layer that yields the logits: the last one that is no part of the auxiliary head."""
    return next(name for name in reversed(layers) if not name.startswith("auxiliary_head."))


def _blind_to_labels(rule: str) -> bool:
    return rule == "dfa" or (rule in RULES and RULES.get(rule).local)


def _checked(rules: Mapping[str, str], layers: list[str]) -> dict[str, str]:
    """Return the rules without bp, in the order of the layers, or raise `UserError`."""
    for name, rule in rules.items():
        _known(rule)
        if name not in layers:
            raise UserError(unknown("weight layer", name, layers))
    rules = {name: rules[name] for name in layers if rules.get(name, "bp") != "bp"}
    if predictive.NAME in rules.values() and (set(rules.values()) != {predictive.NAME} or len(rules) < len(layers)):
        raise UserError("expected pc on every layer or on none, got a mixture: pc relaxes the whole chain at once")
    output = _output(layers)
    if _blind_to_labels(rules.get(output, "bp")):
        raise UserError(f"expected a rule that sees labels on the output layer {output!r}, got {rules[output]}: use bp")
    return rules


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" … ({len(names)} in all)" if len(names) > 6 else "")


def attach(
    net: Net, assignment: str | Mapping[str, str], *, seed: int = 0, options: RuleOptions | None = None
) -> RuleSet:
    """Give a network its learning rules; `net.rules` remembers them, forward passes stay as they were.

    Args:
        net: the network; its weights are not changed.
        assignment: see `resolve`, or layer name → rule name.
        seed: of feedback matrices.
        options: switches of the rules.

    Returns:
        The rule set, also stored as `net.rules`.

    Raises:
        UserError: unknown layer or rule, rules that cannot be mixed, or a network that pc cannot relax.
    """
    options = options or RuleOptions()
    layers = list(weight_layers(net))
    rules = resolve(net, assignment) if isinstance(assignment, str) else _checked(assignment, layers)
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
