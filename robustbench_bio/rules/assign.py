"""Which layer learns by which rule."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Literal

import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets.base import Net, weight_layers
from robustbench_bio.records.genotype import RANDOM_RULES
from robustbench_bio.rules.base import RULES, Draw, NetworkRule, RuleSet
from robustbench_bio.rules.layers import LayerRules
from robustbench_bio.rules.options import RuleOptions, read_options

SYNTAX = "a rule, `genotype`, `random:SEED[:rule+rule…]` or `layer-pattern=rule`, separated by commas"


def resolve(net: Net, assignment: str) -> dict[str, str]:
    """Turn an assignment into layer name → rule name, without the layers that stay with bp.

    Terms are applied from left to right, a later one overrides:

    - `usf`: this rule on every slot of the network (for cell networks: the operations that carry weights;
      otherwise every weight layer); a rule of whole networks, such as pc, takes every weight layer.
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
    if _network_rules([term]):
        return dict.fromkeys(layers, term)
    slots = net.rule_slots()
    drawn = _drawn(term, len(slots)) if term.startswith("random:") else [_known(term)] * len(slots)
    rules = {name: rule for rule, names in zip(drawn, slots.values(), strict=True) for name in names}
    output = _output(layers)
    if not RULES.get(rules.get(output, "bp")).sees_labels:
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
    if not re.fullmatch("[0-9]{1,18}", seed) or len(choice) > 1:
        raise UserError(f"expected random:SEED or random:SEED:rule+rule, got {term[:80]!r}: at most 18 digits")
    rules = [_known(rule) for rule in choice[0].split("+")] if choice else list(RANDOM_RULES)
    draws = torch.randint(len(rules), (slots,), generator=torch_generator(int(seed), "assignment"))
    return [rules[i] for i in draws.tolist()]


def _known(rule: str) -> str:
    if rule not in RULES:
        raise UserError(f"{unknown('rule', rule, RULES.names())}; an assignment is {SYNTAX}")
    return rule


def _output(layers: list[str]) -> str:
    """Return the layer that yields the logits: the last one that is no part of the auxiliary head."""
    return next(name for name in reversed(layers) if not name.startswith("auxiliary_head."))


def _network_rules(rules: Iterable[str]) -> dict[str, type[NetworkRule]]:
    """Return those of the rules that own whole networks."""
    kinds = {rule: RULES.get(rule) for rule in rules if rule in RULES}
    return {rule: kind for rule, kind in kinds.items() if issubclass(kind, NetworkRule)}


def _checked(rules: Mapping[str, str], layers: list[str]) -> dict[str, str]:
    """Return the rules without bp, in the order of the layers, or raise `UserError`."""
    for name, rule in rules.items():
        _known(rule)
        if name not in layers:
            raise UserError(unknown("weight layer", name, layers))
    rules = {name: rules[name] for name in layers if rules.get(name, "bp") != "bp"}
    for rule in _network_rules(rules.values()):
        if set(rules.values()) != {rule} or len(rules) < len(layers):
            raise UserError(f"expected {rule} on every layer or on none, got a mixture: it rules the whole network")
    output = _output(layers)
    if not RULES.get(rules.get(output, "bp")).sees_labels:
        raise UserError(f"expected a rule that sees labels on the output layer {output!r}, got {rules[output]}: use bp")
    return rules


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" … ({len(names)} in all)" if len(names) > 6 else "")


def check_options(options: Mapping[str, object]) -> dict[str, object]:
    """Return the options of rules, as a card writes them, in the types of the rules; raises `UserError`."""
    return read_options(options, list(dict.fromkeys(kind.takes for _, kind in RULES.items())))


def attach(
    net: Net, assignment: str | Mapping[str, str], *, seed: int = 0, options: Mapping[str, object] | None = None
) -> RuleSet:
    """Give a network its learning rules; `net.rules` remembers them, forward passes stay as they were.

    Args:
        net: its weights are not changed.
        assignment: see `resolve`, or layer name → rule name.
        seed: of feedback matrices.
        options: of the rules, by the names that a card uses; each rule takes its own.

    Raises:
        UserError: unknown layer, rule or option, rules that cannot be mixed, or a network that the rule cannot own.
    """
    values = check_options(options or {})
    layers = list(weight_layers(net))
    rules = resolve(net, assignment) if isinstance(assignment, str) else _checked(assignment, layers)
    owners = _network_rules(rules.values())
    if owners:
        (owner,) = owners.values()  # checked to be alone
        net.rules = owner(net, rules, values)
    else:
        net.rules = LayerRules(net, rules, values, seed, net.inputs.classes)
    return net.rules


def initialise(net: Net, options: RuleOptions, seed: int, *, which: Literal["all", "ruled"] = "all") -> None:
    """Draw weights anew from the law of the feedback matrices, biases zero.

    `which` takes "all" weight layers (one law for the whole network), or only the "ruled" ones, as in the released
    BioNAS code, where bp layers keep PyTorch's default.
    """
    assert isinstance(net.rules, RuleSet)  # noqa: S101
    for name, layer in weight_layers(net).items():
        if which == "ruled" and name not in net.rules.assignment:
            continue
        with torch.no_grad():
            layer.weight.copy_(Draw(seed, name, options).like_weight(layer, "weight"))
            if layer.bias is not None:
                layer.bias.zero_()
