"""Attacks: each proposes perturbed inputs, none judges them."""

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel, rules_of
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal, make

__all__ = ["ATTACKS", "Attack", "AttackLoss", "Proposal", "WhiteBoxModel", "make", "rules_of"]
