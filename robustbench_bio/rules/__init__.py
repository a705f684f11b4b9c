"""Learning rules: attached to a plain network, they own its backward pass."""

from robustbench_bio.rules.assign import attach, initialise, resolve, rule_names
from robustbench_bio.rules.base import RULES, InputGradient, LayerRules, Loss, Rule, RuleOptions, RuleSet

__all__ = [
    "RULES",
    "InputGradient",
    "LayerRules",
    "Loss",
    "Rule",
    "RuleOptions",
    "RuleSet",
    "attach",
    "initialise",
    "resolve",
    "rule_names",
]
