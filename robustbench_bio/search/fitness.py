"""What makes a candidate good, as data: accuracy, loss, robust accuracy, or a weighted sum of them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_bio.attacks import Attack, WhiteBoxModel
from robustbench_bio.attacks.fgsm import FGSM
from robustbench_bio.attacks.pgd import PGD
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.nets.base import Net, eval_mode
from robustbench_bio.records.threat import Threat, check_eps, parse_eps

FitnessKind = Literal["accuracy", "loss", "robust"]

#: The attack of a plain `robust`.
ROBUST = "robust:fgsm:8/255"

SYNTAX = "terms such as accuracy=1,loss=0.1,robust:pgd5:8/255=0.5 (attack fgsm or pgdSTEPS, then eps)"

#: Loss of a candidate whose training diverged; it stands for infinity, which JSON cannot say.
DIVERGED = 1e6


@dataclass(frozen=True)
class Term:
    """One measure and its weight in the sum.

    Attributes:
        name: as scores call it: "accuracy", "loss" or "robust:ATTACK:EPS".
        weight: > 0; the loss is subtracted, all others are added.
        steps: of PGD; 0 is FGSM. For robust accuracy only.
        eps: radius of the linf ball, in input units. For robust accuracy only.
    """

    name: str
    weight: float
    steps: int = 0
    eps: float = 0.0

    @property
    def kind(self) -> FitnessKind:
        """Which of the three measures it is."""
        return cast("FitnessKind", self.name.partition(":")[0])


@dataclass(frozen=True)
class Fitness:
    """A weighted sum of measures, each of another name; the candidate with the largest value wins."""

    terms: tuple[Term, ...]

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a fitness: names with weights (1 by default), separated by commas; raises `UserError`."""
        terms = tuple(cls._term(part.strip()) for part in text.split(","))
        if len({term.name for term in terms}) < len(terms):
            raise UserError(f"expected each term of the fitness once, got {text!r}")
        return cls(terms)

    @staticmethod
    def _term(text: str) -> Term:
        name, weight = named_weight(text, SYNTAX)
        kind, _, rest = name.partition(":")
        if kind not in get_args(FitnessKind):
            raise UserError(f"{unknown('term of a fitness', kind, list(get_args(FitnessKind)))}; a fitness is {SYNTAX}")
        if kind != "robust":
            if rest:
                raise UserError(f"expected {kind} without {rest!r}: a fitness is {SYNTAX}")
            return Term(kind, weight)
        attack, _, radius = (rest or ROBUST.removeprefix("robust:")).partition(":")
        matched = re.fullmatch(r"fgsm|pgd([1-9][0-9]{0,2})", attack)
        if not matched:
            raise UserError(f"expected the attack fgsm or pgdSTEPS (1 to 999), got {attack!r}: a fitness is {SYNTAX}")
        eps = check_eps(parse_eps(radius), "linf") if radius else 8 / 255
        return Term(f"robust:{attack}:{radius or '8/255'}", weight, int(matched[1] or 0), eps)

    def __str__(self) -> str:
        return ",".join(f"{term.name}={term.weight:g}" for term in self.terms)

    @property
    def kinds(self) -> frozenset[FitnessKind]:
        """Which measures occur."""
        return frozenset(term.kind for term in self.terms)

    def value(self, scores: Mapping[str, float]) -> float:
        """Return the weighted sum of scores as `measure` returns them; larger is better."""
        signs = {"loss": -1.0}
        return sum(signs.get(term.kind, 1.0) * term.weight * scores[term.name] for term in self.terms)

    def worst(self) -> dict[str, float]:
        """Return the scores of a network that learnt nothing at all."""
        names = {"accuracy": 0.0, "loss": DIVERGED}
        return names | {term.name: 0.0 for term in self.terms if term.kind == "robust"}

    def measure(self, net: Net, x: Tensor, y: Tensor, *, seed: int) -> dict[str, float]:
        """Return name → value of accuracy and loss (always) and of the robust accuracies that are asked for.

        The net is judged in eval mode. Robust accuracy is the fraction that is right and stays right under the
        attack, which follows the exact gradient, never the rules' (see `WhiteBoxModel`) and starts by the seed. x is
        uint8 [N, C, H, W], at least one, y int64 [N]; the net stays as it is.
        """
        with eval_mode(net):
            white_box = WhiteBoxModel(net, traced=False)
            pixels = x.float() / 255
            logits = white_box.logits(pixels).float()
            scores = clean_scores(logits, y)
            right = logits.argmax(1) == y
            for term in self.terms:
                if term.kind == "robust":
                    scores[term.name] = _robust(white_box, pixels, y, right, term, seed)
        return scores


def clean_scores(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Return accuracy and mean cross-entropy of logits [N, K] for labels [N]."""
    loss = F.cross_entropy(logits.float(), y).item()
    return {
        "accuracy": (logits.argmax(1) == y).double().mean().item(),
        "loss": loss if math.isfinite(loss) else DIVERGED,
    }


def _robust(white_box: WhiteBoxModel, x: Tensor, y: Tensor, right: Tensor, term: Term, seed: int) -> float:
    rows = right.nonzero().flatten()
    if len(rows) == 0:
        return 0.0
    attack: Attack = PGD(steps=term.steps) if term.steps else FGSM()
    rng = ExampleRng(seed, rows.cpu(), "fitness")
    with torch.enable_grad():
        proposal = attack.perturb(white_box, x[rows], y[rows], Threat("linf", term.eps), rng)
    return 1 - (white_box.fooled(proposal.x_adv, y[rows]).sum().item() + len(y) - len(rows)) / len(y)


def named_weight(text: str, syntax: str) -> tuple[str, float]:
    """Read `NAME` or `NAME=WEIGHT` of a fitness, the weight > 0 and 1 by default; raises `UserError`."""
    name, separator, number = text.partition("=")
    try:
        weight = float(number) if separator else 1.0
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"expected a weight > 0 in the fitness, got {number.strip()!r}: a fitness is {syntax}")
    return name.strip(), weight
