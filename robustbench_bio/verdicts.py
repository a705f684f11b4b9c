"""From checks to a verdict: does a measured robustness stand up?"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from robustbench_bio.records import Record, Result
from robustbench_bio.stats import mcnemar

Verdict = Literal["sound", "masked", "inconclusive"]
Says = Literal["masked", "inconclusive", ""]

#: A difference between two attacks on the same examples counts if its one-sided exact McNemar p is below this …
SIGNIFICANT = 0.01
#: … and it is at least this large, as a fraction of the examples.
NOTABLE = 0.03
#: With fewer examples than this nothing can be called sound: a gap of a seventh of them could go unnoticed.
ENOUGH = 50

#: Attacks that follow a gradient, for comparisons between finished measurements.
WHITE_BOX = frozenset({"fgsm", "pgd", "mi-fgsm", "tpgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t"})


class Flag(Record):
    """One check."""

    name: str
    fired: bool
    says: Says
    """What it means if it fired; "" for a remark."""
    detail: str
    """What was measured, in one line."""
    values: dict[str, float] = Field(default_factory=dict)


class Diagnosis(Record):
    """What the checks found on one network."""

    verdict: Verdict
    """sound: no check fired. masked: an accuracy measured through this network's own or its rules' gradient overstates
    its robustness, or hides it from gradients altogether. inconclusive: some check could not tell."""
    reason: str
    """One line; names the largest gap where the verdict is masked."""
    checks: list[Flag]
    n: int
    """Examples that were looked at, correctly classified ones."""
    seconds: float

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the checks that fired."""
        return tuple(dict.fromkeys(check.name for check in self.checks if check.fired))

    def summary(self) -> dict[str, object]:
        """Return verdict, reason and flags, for a document that holds other things as well."""
        return {"verdict": self.verdict, "reason": self.reason, "flags": list(self.flags), "n": self.n}

    def document(self) -> dict[str, object]:
        """Return the JSON document of the diagnosis."""
        checks = [check.model_dump(mode="json") for check in self.checks]
        return self.summary() | {"seconds": self.seconds, "checks": checks}

    def joined(self, more: Sequence[Flag]) -> "Diagnosis":
        """Return the diagnosis with further checks, and the verdict on all.

        A check gives way to one of the same name that saw more examples, unless it has found masking.
        """
        newer = {check.name for check in more}
        kept = [c for c in self.checks if c.name not in newer or (c.fired and c.says == "masked")]
        checks = [*kept, *more]
        verdict, reason = verdict_on(checks)
        return self.model_copy(update={"checks": checks, "verdict": verdict, "reason": reason})


def verdict_on(checks: Sequence[Flag]) -> tuple[Verdict, str]:
    """Return the verdict that the checks give, and its reason in one line."""
    for verdict in ("masked", "inconclusive"):
        fired = [check for check in checks if check.fired and check.says == verdict]
        if fired:
            worst = max(fired, key=lambda check: check.values.get("gap", 0.0))
            return verdict, f"{worst.name}: {worst.detail}"
    return "sound", "no check fired"


def compare(
    name: str, weak: Sequence[bool], strong: Sequence[bool], weak_name: str, strong_name: str, says: Says
) -> Flag:
    """Return a check that fires if notably and significantly more examples stand under the first of two attacks.

    Args:
        name: of the check.
        weak: which examples stand under the attack that should leave more.
        strong: the same for the other, in the same order.
        weak_name: what the first is called.
        strong_name: what the other is called.
        says: what it means. Where that is "masked", a gap of twice `NOTABLE` that is not significant is inconclusive.
    """
    gap, p = (sum(weak) - sum(strong)) / len(weak), mcnemar(weak, strong)
    left, fewer = (f"{100 * sum(stands) / len(stands):.1f} %" for stands in (weak, strong))
    detail = f"{weak_name} leaves {left}, {strong_name} {fewer} (gap {100 * gap:+.1f} points, p = {p:.2g})"
    significant = p < SIGNIFICANT
    if says == "masked" and gap >= 2 * NOTABLE and not significant:
        return Flag(name=name, fired=True, says="inconclusive", detail=f"{detail}: too few examples to tell",
                    values={"gap": gap, "p": p})  # fmt: skip
    fired = gap >= NOTABLE and significant
    return Flag(name=name, fired=fired, says=says, detail=detail, values={"gap": gap, "p": p})


def contradictions(results: Sequence[Result]) -> list[Flag]:
    """Return the checks that finished measurements of one network on the same examples allow, fired or not.

    Within each threat model: the same attack through the rule and through the exact gradient; FGSM beside attacks of
    many steps; Square or transfer beside all that follow the exact gradient. Only native results count.
    """
    found: list[Flag] = []
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


def _rule_against_exact(results: Sequence[Result]) -> list[Flag]:
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


def _beats(name: str, stands: list[bool], result: Result, what: str) -> Flag:
    """Return the check whether `result` turns examples that stand under all of `what`."""
    both = [a and b for a, b in zip(stands, result.outcomes_record.robust_correct(), strict=True)]
    if name == "one-step-beats-many":
        both = result.outcomes_record.robust_correct()
    other = result.spec.attack if name == "one-step-beats-many" else f"with {result.spec.attack} it is"
    return compare(name, stands, both, what, other, "masked")
