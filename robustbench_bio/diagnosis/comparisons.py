"""Two attacks on the same examples, held against each other."""

from collections.abc import Sequence

from robustbench_bio.core.stats import mcnemar
from robustbench_bio.records.diagnosis import Check, Implies
from robustbench_bio.records.result import Result

#: A difference between two attacks on the same examples counts if its one-sided exact McNemar p is below this …
SIGNIFICANT = 0.01
#: … and it is at least this large, as a fraction of the examples.
NOTABLE = 0.03
#: With fewer examples than this nothing can be called sound: a gap of a seventh of them could go unnoticed.
ENOUGH = 50

#: Attacks that follow a gradient, for comparisons between finished measurements.
WHITE_BOX = frozenset({"fgsm", "pgd", "mi-fgsm", "tpgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t"})


def compare(
    name: str, weak: Sequence[bool], strong: Sequence[bool], weak_name: str, strong_name: str, implies: Implies
) -> Check:
    """Return a check that fires if notably and significantly more examples stand under the first of two attacks.

    Args:
        name: of the check.
        weak: which examples stand under the attack that should leave more.
        strong: the same for the other, in the same order.
        weak_name: what the first is called.
        strong_name: what the other is called.
        implies: what it means. Where that is "masked", a gap of twice `NOTABLE` that is not significant is
            inconclusive.
    """
    gap, p = (sum(weak) - sum(strong)) / len(weak), mcnemar(weak, strong)
    left, fewer = (f"{100 * sum(stands) / len(stands):.1f} %" for stands in (weak, strong))
    detail = f"{weak_name} leaves {left}, {strong_name} {fewer} (gap {100 * gap:+.1f} points, p = {p:.2g})"
    significant = p < SIGNIFICANT
    if implies == "masked" and gap >= 2 * NOTABLE and not significant:
        return Check(name=name, fired=True, implies="inconclusive", detail=f"{detail}: too few examples to tell",
                    values={"gap": gap, "p": p})  # fmt: skip
    fired = gap >= NOTABLE and significant
    return Check(name=name, fired=fired, implies=implies, detail=detail, values={"gap": gap, "p": p})


def contradictions(results: Sequence[Result]) -> list[Check]:
    """Return the checks that finished measurements of one network on the same examples allow, fired or not.

    Within each threat model: the same attack through the rule and through the exact gradient; FGSM beside attacks of
    many steps; Square or transfer beside all that follow the exact gradient. Only native results count.
    """
    found: list[Check] = []
    native = [result for result in results if result.spec.backend == "native"]
    for norm, eps in dict.fromkeys((result.spec.norm, result.spec.eps) for result in native):
        here = [result for result in native if (result.spec.norm, result.spec.eps) == (norm, eps)]
        white = [result for result in here if result.spec.gradient != "rule" and result.spec.attack in WHITE_BOX]
        found += _rule_against_exact(here)
        many = [result for result in white if result.spec.attack != "fgsm"]
        for result in white:
            if result.spec.attack == "fgsm" and many:
                found.append(_beats("one-step-beats-many", _all(many), result, "the best attack of many steps"))
        for attack in ("square", "transfer"):
            found += [
                _beats(f"{attack}-beats-white-box", _all(white), result, "the best white-box attack")
                for result in here if result.spec.attack == attack and white
            ]  # fmt: skip
    return found


def _rule_against_exact(results: Sequence[Result]) -> list[Check]:
    climbing = [result for result in results if result.spec.attack in {*WHITE_BOX, "autoattack"}]
    exact = {_asked(result): result for result in climbing if result.spec.gradient == "exact"}
    pairs = [(result, exact.get(_asked(result))) for result in climbing if result.spec.gradient == "rule"]
    return [
        compare(
            "rule-far-above-exact", rule.outcomes_record.robust_correct(), twin.outcomes_record.robust_correct(),
            f"{rule.spec.attack} through the rule", "through the exact gradient", "masked",
        )
        for rule, twin in pairs if twin is not None
    ]  # fmt: skip


def _asked(result: Result) -> tuple[str, str]:
    return result.spec.attack, repr(sorted(result.spec.params.items()))


def _all(results: Sequence[Result]) -> list[bool]:
    columns = [result.outcomes_record.robust_correct() for result in results]
    return [all(row) for row in zip(*columns, strict=True)]


def _beats(name: str, stands: list[bool], result: Result, what: str) -> Check:
    """Return the check whether `result` turns examples that stand under all of `what`."""
    both = [a and b for a, b in zip(stands, result.outcomes_record.robust_correct(), strict=True)]
    if name == "one-step-beats-many":
        both = result.outcomes_record.robust_correct()
    other = result.spec.attack if name == "one-step-beats-many" else f"with {result.spec.attack} it is"
    return compare(name, stands, both, what, other, "masked")
