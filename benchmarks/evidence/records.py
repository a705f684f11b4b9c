"""Published claims, and what was seen of networks: plain data that rows and page are functions of; loads no torch."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

#: What the attacks of the curve do: steps of PGD, and radii in input units.
STEPS = 20
RADII = ("0.25/255", "0.5/255", "1/255", "2/255", "4/255", "8/255")

#: The small radius at which claims of robustness are tested beside the released one, and the one of the quirks.
SMALL, USUAL = "1/255", "8/255"

#: What is written behind a radius in units of the data's standard deviation.
SIGMA = " σ"

_REPLICATE = re.compile(r"(?P<base>.+)-s(?P<seed>\d+)")


@dataclass(frozen=True)
class Family:
    """Networks of one architecture, told apart by their rules.

    Attributes:
        mixed: beginning of the id of the network that stands for mixed rules.
    """

    id: str
    title: str
    mixed: str

    def shown(self) -> list[str]:
        """Return the ids of the networks that the plot and the quirks are about, four of them."""
        rules = dict.fromkeys(["bp", "usf", self.mixed, "random", "fa"])
        return [f"{rule}-{self.id}" for rule in list(rules)[:4]]


@dataclass(frozen=True)
class Claim:
    """What a paper says, and what decides whether it is so.

    Attributes:
        kind: order, better, as-good, variance or robust.
        order: rules from the most accurate to the least; those of one group are not compared.
        than: rules that mixed ones are held against.
        margin: points that something as good may lose at most.
        attack: of a claim of robustness.
    """

    id: str
    kind: str
    title: str
    says: str
    source: str
    order: Sequence[Sequence[str]] = ()
    than: Sequence[str] = ()
    margin: float = 0.0
    attack: str = ""

    def rules(self, family: Family) -> list[str]:
        """Return the beginnings of the ids of the networks that decide the claim."""
        match self.kind:
            case "order":
                return [rule for group in self.order for rule in group]
            case "as-good":
                return [family.mixed, "random"]
            case "robust":
                return [family.mixed, "bp"]
            case _:
                return [family.mixed, *self.than]

    def concerns(self, family: Family) -> bool:
        """Tell whether a family can decide it: where mixed rules are drawn at random, nothing is left to compare."""
        return self.kind != "as-good" or family.mixed != "random"


@dataclass(frozen=True)
class Published:
    """All claims, the families that they are put to, and the preset of the released attacks."""

    reference: str
    preset: str
    families: Sequence[Family]
    claims: Sequence[Claim]

    @classmethod
    def load(cls) -> "Published":
        """Return what `claims.toml` beside this module says."""
        document: dict[str, Any] = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))
        families = [Family(**family) for family in document.pop("families")]
        return cls(families=families, claims=[Claim(**claim) for claim in document.pop("claims")], **document)

    def networks(self) -> list[str]:
        """Return the ids of all networks that the claims ask for, each once, families and rules in order."""
        ids = [
            f"{rule}-{family.id}"
            for family in self.families
            for claim in self.claims
            if claim.concerns(family)
            for rule in claim.rules(family)
        ]
        return list(dict.fromkeys(ids))


def replicate(model: str) -> tuple[str, int]:
    """Return the id without its seed and the seed: "usf-resnet20-s1" → ("usf-resnet20", 1); 0 without one."""
    found = _REPLICATE.fullmatch(model)
    return (found["base"], int(found["seed"])) if found else (model, 0)


class Ask(NamedTuple):
    """What was asked of a network: attack, radius as people write it, gradient ("rule" or "exact")."""

    attack: str
    eps: str
    gradient: str


class Seen(NamedTuple):
    """What came of an attack for each image: correct clean, and correct clean and under attack."""

    clean: Sequence[bool]
    robust: Sequence[bool]


class Noise(NamedTuple):
    """Gradient noise over signal: of what the rules hand down, and of the exact gradient."""

    rule: float
    exact: float


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes:
        classes: of the data set; a network that always answers the same is right on one image in so many.
        released: attack → radius at which the released code runs it, in input units.
        networks: id without seed → seed → what was asked → outcomes. Not measured: not a key.
        noise: id without seed → seed → once for each draw of the batches.
        settings: attack → its parameters, as people write them.
        cards: id → title of the network, and what it learned from.
        measured: day of the last measurement, "" before the first.
    """

    dataset: str
    n: int
    classes: int
    released: Mapping[str, str]
    networks: Mapping[str, Mapping[int, Mapping[Ask, Seen]]] = field(default_factory=dict)
    noise: Mapping[str, Mapping[int, Sequence[Noise]]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    cards: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    measured: str = ""

    def clean(self, model: str) -> dict[int, Sequence[bool]]:
        """Return seed → whether each image is classified correctly; empty for a network that was not measured."""
        return {seed: next(iter(seen.values())).clean for seed, seen in self.networks.get(model, {}).items() if seen}

    def robust(self, model: str, attack: str, eps: str, gradient: str) -> dict[int, Sequence[bool]]:
        """Return seed → robust or not for each image; empty where it was not measured.

        The gradient of bp, and of an attack that follows none, is the exact one: without an answer through the rule
        that stands for it.
        """
        outcomes = {}
        for seed, seen in self.networks.get(model, {}).items():
            found = seen.get(Ask(attack, eps, gradient))
            if found is None and not self.has_rules(model):
                found = seen.get(Ask(attack, eps, "exact"))
            if found is not None:
                outcomes[seed] = found.robust
        return outcomes

    def has_rules(self, model: str) -> bool:
        """Tell whether a network was attacked through a rule of its own."""
        return any(ask.gradient == "rule" for seen in self.networks.get(model, {}).values() for ask in seen)
