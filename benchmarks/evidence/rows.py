"""Rows of the page: for each claim and family what was measured, what is missing, and the word on it."""

import itertools
import statistics
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evidence.judging import (
    HOLDS,
    UNKNOWN,
    Difference,
    Estimate,
    all_above,
    as_good,
    difference,
    estimate,
    of_pairs,
    robust,
)
from evidence.records import SIGMA, SMALL, USUAL, Claim, Evidence, Family, Noise, Published


class Compared(NamedTuple):
    """Two networks, by id, and a − b."""

    a: str
    b: str
    difference: Difference


@dataclass(frozen=True)
class Row:
    """What is known about a claim from one family.

    Attributes:
        missing: ids of the networks that the claim asks for and that were not measured.
        accuracies: id → clean accuracy.
        noise: id → gradient noise over signal, the mean over draws of batches.
        compared: what the verdict follows from.
    """

    claim: Claim
    family: Family
    verdict: str
    missing: Sequence[str]
    accuracies: Mapping[str, Estimate]
    noise: Mapping[str, Noise]
    compared: Sequence[Compared]


@dataclass(frozen=True)
class RobustRow:
    """What is known about a claim of robustness from one family, at one radius.

    Attributes:
        rule, exact: what the attack leaves of the mixed network through each gradient; both None if not measured,
            rule None for an attack that follows no gradient.
        bp: what it leaves of the network under bp, through the exact gradient.
        gap: rule − exact.
        verdict, by_rule: through the exact gradient, and as it would be through the rule's.
        as_released: what the released code would report at this radius in its own unit, through the rule and by its
            meter, a fraction; None at another radius.
    """

    claim: Claim
    family: Family
    verdict: str
    missing: Sequence[str]
    radius: str
    rule: Estimate | None = None
    exact: Estimate | None = None
    bp: Estimate | None = None
    gap: Difference | None = None
    by_rule: str = UNKNOWN
    as_released: float | None = None


class Quirk(NamedTuple):
    """A quirk of the published evaluation and the robust accuracy with it, as fractions.

    Attributes:
        name: what it is; of the first of all, what there is without any.
        alone: with this quirk and no other.
        together: with this one and all before it.
    """

    name: str
    alone: float
    together: float


def claim_rows(published: Published, evidence: Evidence) -> list[Row]:
    """Return the rows of all claims that are not about robustness."""
    return [
        _row(claim, family, evidence)
        for claim in published.claims
        for family in published.families
        if claim.kind != "robust" and claim.concerns(family)
    ]


def robust_rows(published: Published, evidence: Evidence) -> list[RobustRow]:
    """Return the rows of the claims about robustness: at the small radius, and at the one of the released code."""
    return [
        _robust_row(claim, family, radius, evidence)
        for family in published.families
        for claim in published.claims
        if claim.kind == "robust"
        for radius in radii(claim, evidence)
    ]


def radii(claim: Claim, evidence: Evidence) -> list[str]:
    """Return the radii at which a claim of robustness is tested; a pixel has no smaller one."""
    released = evidence.released[claim.attack]
    return [released] if gradient_free(claim) else list(dict.fromkeys([SMALL, released]))


def gradient_free(claim: Claim) -> bool:
    """Tell whether the attack of a claim of robustness asks for answers only."""
    return claim.attack == "one-pixel"


def _row(claim: Claim, family: Family, evidence: Evidence) -> Row:
    ids = [f"{rule}-{family.id}" for rule in claim.rules(family)]
    known: Mapping[str, object] = evidence.noise if claim.kind == "variance" else evidence.networks
    missing = [model for model in ids if model not in known]
    compared = list(_compared(claim, family, evidence, known))
    if claim.kind == "as-good":
        verdict = as_good(compared[0].difference if compared else None, claim.margin / 100)
    else:
        verdict = all_above([pair.difference for pair in compared], missing)
    return Row(
        claim,
        family,
        verdict,
        missing,
        {} if claim.kind == "variance" else {m: estimate(evidence.clean(m)) for m in ids if m in known},
        {m: _mean_noise(_draws(evidence, m)) for m in ids if m in known} if claim.kind == "variance" else {},
        compared,
    )


def _compared(claim: Claim, family: Family, evidence: Evidence, known: Mapping[str, object]) -> Iterator[Compared]:
    """Yield the comparisons of a claim, each so that it expects a − b above zero."""

    def clean(a: str, b: str) -> Difference:
        return difference(evidence.clean(a), evidence.clean(b))

    def less_noise(a: str, b: str) -> Difference:
        return _noise_difference(evidence, a, b)

    measure: Callable[[str, str], Difference] = less_noise if claim.kind == "variance" else clean
    for a, b in _pairs(claim, family, known):
        if a in known and b in known:
            swapped = claim.kind == "variance"  # less of it is claimed
            yield Compared(*((b, a) if swapped else (a, b)), measure(*((b, a) if swapped else (a, b))))


def _pairs(claim: Claim, family: Family, known: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield the ids of what is claimed to be better, and of what it is better than.

    Of an order they are neighbours, those left out of which nothing is known.
    """
    if claim.kind == "order":
        groups = [[model for rule in group if (model := f"{rule}-{family.id}") in known] for group in claim.order]
        for above, below in itertools.pairwise(filter(None, groups)):
            yield from itertools.product(above, below)
    elif claim.kind == "as-good":
        yield f"random-{family.id}", f"{family.mixed}-{family.id}"
    else:
        for other in claim.than:
            yield f"{family.mixed}-{family.id}", f"{other}-{family.id}"


def _noise_difference(evidence: Evidence, a: str, b: str) -> Difference:
    """Return a − b, by the rules, over the common draws of batches, each a mean over the networks' seeds."""
    pairs = zip(_draws(evidence, a), _draws(evidence, b), strict=True)
    return of_pairs([one.rule - other.rule for one, other in pairs])


def _draws(evidence: Evidence, model: str) -> list[Noise]:
    return [_mean_noise(of_seeds) for of_seeds in zip(*evidence.noise[model].values(), strict=True)]


def _mean_noise(noise: Sequence[Noise]) -> Noise:
    return Noise(statistics.fmean(one.rule for one in noise), statistics.fmean(one.exact for one in noise))


def _robust_row(claim: Claim, family: Family, radius: str, evidence: Evidence) -> RobustRow:
    mixed, bp = f"{family.mixed}-{family.id}", f"bp-{family.id}"
    missing = [model for model in (mixed, bp) if model not in evidence.networks]
    if mixed in missing:
        return RobustRow(claim, family, UNKNOWN, missing, radius)
    exact = evidence.robust(mixed, claim.attack, radius, "exact")
    rule = evidence.robust(mixed, claim.attack, radius, "rule")
    under_bp = evidence.robust(bp, claim.attack, radius, "exact")
    chance = 1 / evidence.classes

    def word(left: Mapping[int, Sequence[bool]]) -> str:
        return robust(estimate(left), difference(left, under_bp) if under_bp else None, chance) if left else UNKNOWN

    return RobustRow(
        claim,
        family,
        word(exact),
        missing,
        radius,
        estimate(rule) if rule else None,
        estimate(exact) if exact else None,
        estimate(under_bp) if under_bp else None,
        difference(rule, exact) if rule and exact else None,
        word(rule),
        released_report(evidence, mixed, claim.attack) if radius == evidence.released[claim.attack] else None,
    )


def released_report(evidence: Evidence, model: str, attack: str) -> float | None:
    """Return what the released code would show of a network: the mean of clean and robust accuracy in its units."""
    released = evidence.released[attack]
    for eps, gradient in ((f"{released}{SIGMA}", "rule"), (released, "exact")):
        left = evidence.robust(model, attack, eps, gradient)
        if left:
            return (_mean(evidence.clean(model)) + _mean(left)) / 2
    return None


def quirks(evidence: Evidence, model: str) -> list[Quirk]:
    """Return the robust accuracy of a network as it is, and with each quirk of the published evaluation.

    The quirks: the rule's gradient, radii in units of the data's standard deviation, one step instead of many, the
    mean of clean and robust accuracy instead of the latter.
    """
    released, clean = f"{USUAL}{SIGMA}", _mean(evidence.clean(model))

    def left(attack: str, eps: str, gradient: str) -> float:
        return _mean(evidence.robust(model, attack, eps, gradient))

    true, false = left("pgd", USUAL, "exact"), left("fgsm", released, "rule")
    return [
        Quirk("none: exact gradient", true, true),
        Quirk("the rule's gradient", left("pgd", USUAL, "rule"), left("pgd", USUAL, "rule")),
        Quirk("the radius in normalised units", left("pgd", released, "exact"), left("pgd", released, "rule")),
        Quirk("a single step (FGSM)", left("fgsm", USUAL, "exact"), false),
        Quirk("one meter for clean and robust", (clean + true) / 2, (clean + false) / 2),
    ]


def _mean(outcomes: Mapping[int, Sequence[bool]]) -> float:
    return statistics.fmean(statistics.fmean(of_seed) for of_seed in outcomes.values())


def counts(rows: Sequence[RobustRow]) -> tuple[int, int, int]:
    """Return of how many measured rows about gradient attacks the claim holds by the rule, by the exact one, of all."""
    through = [row for row in rows if row.exact is not None and row.rule is not None]
    return (
        sum(row.by_rule == HOLDS for row in through),
        sum(row.verdict == HOLDS for row in through),
        len(through),
    )
