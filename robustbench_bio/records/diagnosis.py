"""From checks to a verdict: does a measured robustness stand up?"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from robustbench_bio.records.base import Record

Verdict = Literal["sound", "masked", "inconclusive"]
Implies = Literal["masked", "inconclusive", ""]


class Check(Record):
    """One check."""

    name: str
    fired: bool
    implies: Implies
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
    checks: list[Check]
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

    def joined(self, further: Sequence[Check]) -> "Diagnosis":
        """Return the diagnosis with further checks, and the verdict on all.

        A check gives way to one of the same name that saw more examples, unless it has found masking.
        """
        newer = {check.name for check in further}
        kept = [c for c in self.checks if c.name not in newer or (c.fired and c.implies == "masked")]
        checks = [*kept, *further]
        verdict, reason = verdict_on(checks)
        return self.model_copy(update={"checks": checks, "verdict": verdict, "reason": reason})


def verdict_on(checks: Sequence[Check]) -> tuple[Verdict, str]:
    """Return the verdict that the checks give, and its reason in one line."""
    for verdict in ("masked", "inconclusive"):
        fired = [check for check in checks if check.fired and check.implies == verdict]
        if fired:
            worst = max(fired, key=lambda check: check.values.get("gap", 0.0))
            return verdict, f"{worst.name}: {worst.detail}"
    return "sound", "no check fired"
