"""What makes a spiking network good before or after a little training, as data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, final

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.search.fitness import Fitness, Term, named_weight
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
        fitness = super().read(text)
        if sum(term.name.startswith("trained") for term in fitness.terms) > 1:
            raise UserError(f"expected one length of training in a fitness, got {text!r}: leave one out")
        return fitness

    @staticmethod
    def _term(text: str) -> Term:
        name, weight = named_weight(text, SYNTAX)
        kind, colon, rest = name.partition(":")
        if kind not in KINDS:
            raise UserError(f"{unknown('term of a fitness', kind, list(KINDS))}; a fitness is {SYNTAX}")
        if kind == "rdm":
            return Term(f"rdm:{check_metric(rest if colon else METRIC)}", weight)
        if kind == "trained" and colon:
            if not re.fullmatch(r"[1-9][0-9]{0,3}", rest):
                raise UserError(f"expected trained:EPOCHS with 1 to 9999 epochs, got {text!r}")
            return Term(f"trained:{rest}", weight, int(rest))
        if colon:
            raise UserError(f"expected {kind} without {rest!r}: a fitness is {SYNTAX}")
        return Term(kind, weight)

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
        return [scores[term.name] if KINDS[term.name.partition(":")[0]] else -scores[term.name] for term in self.terms]

    def value(self, scores: Mapping[str, float]) -> float:
        return sum(term.weight * one for term, one in zip(self.terms, self.objectives(scores), strict=True))

    def worst(self) -> dict[str, float]:
        lowest = {"sahd": SINGULAR}
        return {term.name: lowest.get(term.name, 0.0) for term in self.terms}
