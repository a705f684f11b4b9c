"""Learning rules, one file each with its options: attached to a plain network, they own its backward pass.

A rule of single layers (`Rule`) or of whole networks (`NetworkRule`) joins by a file with a registered class.
"""

from robustbench_bio.rules.assign import attach, check_options, initialise, resolve
from robustbench_bio.rules.base import RULES, InputGradient, Loss, NetworkRule, Rule, RuleSet
from robustbench_bio.rules.layers import LayerRules
from robustbench_bio.rules.options import RuleOptions, own_options

__all__ = [
    "RULES",
    "InputGradient",
    "LayerRules",
    "Loss",
    "NetworkRule",
    "Rule",
    "RuleOptions",
    "RuleSet",
    "attach",
    "check_options",
    "initialise",
    "own_options",
    "resolve",
]
