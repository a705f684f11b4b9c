"""What makes a spiking network good before or after a little training, as data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, final

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.search.fitness import Fitness, Term, parse_weight
from robustbench_bio.search.motifs.rdm import SINGULAR, check_metric

SYNTAX = "terms such as rdm=1,rdm:cosine=0.5,sahd=0.001,trained:10=1,spikes=0.01,parameters=0.01"

#: Kinds of terms → whether more is better. Spikes are thousands for an image, parameters thousands of weights.
KINDS: Mapping[str, bool] = {"rdm": True, "sahd": True, "trained": True, "spikes": False, "parameters": False}

#: The metric of a plain `rdm`.
METRIC = "hamming"


@final
@dataclass(frozen=True)
class MotifFitness(Fitness):
    """A weighted sum of measures of a spiking network, or one objective for each of them.

    Terms: `rdm:METRIC` and `sahd` need no training (see `rdm`); `trained:EPOCHS` is the accuracy on held-out images
    after so many epochs, `trained` after those of the engine; `spikes` and `parameters` count against it.
    """

    @classmethod
    def read(cls, text: str) -> Self:
        terms = tuple(_term(part.strip()) for part in text.split(","))
        if len({term.name for term in terms}) < len(terms):
            raise UserError(f"expected each term of the fitness once, got {text!r}")
        if sum(term.name.startswith("trained") for term in terms) > 1:
            raise UserError(f"expected one length of training in a fitness, got {text!r}: leave one out")
        return cls(terms)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of rdm that occur."""
        return tuple(term.name.partition(":")[2] for term in self.terms if term.name.startswith("rdm"))

    @property
    def trains(self) -> bool:
        """Whether candidates are trained."""
        return any(term.name.startswith("trained") for term in self.terms)

    def epochs(self, otherwise: int) -> int:
        """Return for how many epochs candidates are trained; `otherwise` where the fitness does not say."""
        told = [term.steps for term in self.terms if term.name.startswith("trained") and term.steps]
        return told[0] if told else otherwise

    def objectives(self, scores: Mapping[str, float]) -> list[float]:
        """Return one number for each term, larger is better, without weights."""
        return [scores[term.name] if KINDS[_kind(term.name)] else -scores[term.name] for term in self.terms]

    def value(self, scores: Mapping[str, float]) -> float:
        return sum(term.weight * one for term, one in zip(self.terms, self.objectives(scores), strict=True))

    def worst(self) -> dict[str, float]:
        lowest = {"sahd": SINGULAR}
        return {term.name: lowest.get(term.name, 0.0) for term in self.terms}


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _term(text: str) -> Term:
    name, separator, number = text.partition("=")
    value = parse_weight(number.strip()) if separator else 1.0
    kind, colon, rest = name.strip().partition(":")
    if kind not in KINDS:
        raise UserError(f"{unknown('term of a fitness', kind, list(KINDS))}; a fitness is {SYNTAX}")
    if kind == "rdm":
        return Term(f"rdm:{check_metric(rest if colon else METRIC)}", value)
    if kind == "trained" and colon:
        if not re.fullmatch(r"[1-9][0-9]{0,3}", rest):
            raise UserError(f"expected trained:EPOCHS with 1 to 9999 epochs, got {text!r}")
        return Term(f"trained:{rest}", value, int(rest))
    if colon:
        raise UserError(f"expected {kind} without {rest!r}: a fitness is {SYNTAX}")
    return Term(kind, value)
