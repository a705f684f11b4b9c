"""Attacks: each proposes perturbed inputs, none judges them.

One module for each attack: a frozen dataclass with the paper's defaults and one method, registered in `ATTACKS`. What
several share has a module of its own (`losses`, `runs`). `access/` is all that an attack may ask of a network,
`external/` runs the attacks of other libraries.
"""

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel, rules_of
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal, make

__all__ = ["ATTACKS", "Attack", "AttackLoss", "Proposal", "WhiteBoxModel", "make", "rules_of"]
