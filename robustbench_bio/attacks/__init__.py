"""Attacks: each proposes perturbed inputs, none judges them."""

from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal, make
from robustbench_bio.attacks.oracle import AttackLoss, Oracle, rules_of

__all__ = ["ATTACKS", "Attack", "AttackLoss", "Oracle", "Proposal", "make", "rules_of"]
