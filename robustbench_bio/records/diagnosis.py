"""From checks to two answers: may a number be believed, and would the usual way of measuring have told it?"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from robustbench_bio.records.base import Record
from robustbench_bio.records.threat import Threat

#: Would measuring through the network's own gradient have told the truth? masked: no, it overstates robustness.
Verdict = Literal["sound", "masked", "inconclusive"]

#: May this number be believed? doubtful: something found what the attacks behind the number did not.
Belief = Literal["sound", "doubtful", "inconclusive"]

#: What it means if a check fired. masked: the gradient that people would take overstates, a better one was followed.
#: hidden: no gradient tells the truth, neither theirs nor the best. weak: PGD alone finds less than other attacks along
#: the same gradient. doubtful: the number comes of an attack that is weak here. unclear: too few examples to call it
#: masked. untried: no attack behind the number is strong. inconclusive: neither question has an answer. "": a remark.
Implies = Literal["masked", "hidden", "weak", "doubtful", "unclear", "untried", "inconclusive", ""]

#: What counts against the usual way, and against the number, and what leaves either open.
_MASKS, _DOUBTS = ("masked", "hidden"), ("doubtful", "hidden")
_OPEN = {"masked": ("inconclusive", "unclear"), "doubtful": ("inconclusive", "untried")}

#: Why a number by a single loss is not called sound.
UNTRIED = "what a single loss leaves is an upper bound: swift, or autoattack, may find more"

#: What a sound answer rests on.
SOUND = "no check speaks against it"

#: The check before all others: one that fires leaves nothing to be sound or masked.
NO_CLASSIFIER = "no-classifier"

#: Checks after which no other means anything, if they leave both questions open.
_FIRST = (NO_CLASSIFIER, "random-output")


class Check(Record):
    """One check."""

    name: str
    fired: bool
    implies: Implies
    """What it means if it fired; "" for a remark."""
    detail: str
    """What was measured, in one line."""
    values: dict[str, float] = Field(default_factory=dict)
    threat: Threat | None = None
    """Within which it was measured; None where it has no radius."""
    n: int = 0
    """Examples that it rests on; 0 where it rests on none."""

    @property
    def line(self) -> str:
        """What was found, where and on how much, in one line."""
        name = "no classifier" if self.name == NO_CLASSIFIER else self.name
        where = f" at {self.threat}" if self.threat else ""
        images = f" on {self.n} images" if self.n else ""
        return f"{name}{where}{images}: {self.detail}"


class Answer(NamedTuple):
    """One of the two answers, and the check that decides it; None where it is sound."""

    word: str
    check: Check | None


class Diagnosis(Record):
    """What the checks found on one network.

    Two questions have two answers. `number`: may the robust accuracy be believed that was measured with the best
    gradient there is? `verdict`: would the usual way, through the network's own or its rules' gradient, have told it?
    """

    verdict: Verdict
    """sound: the usual way tells the truth as far as anybody can see. masked: a measurement through this network's own
    or its rules' gradient overstates its robustness. inconclusive: some check could not tell, or the
    network is no classifier."""
    reason: str
    """Of the verdict, in one line; names the largest gap where it is masked, the radius and the number of images."""
    number: Belief = "inconclusive"
    """sound: stronger attacks were tried and found no more. doubtful: they did, or every gradient misleads.
    inconclusive: some check could not tell."""
    number_reason: str = ""
    checks: list[Check]
    n: int
    """Examples that were looked at, correctly classified ones."""
    threat: Threat | None = None
    """Within which they were attacked."""
    seconds: float

    @classmethod
    def of(cls, checks: Sequence[Check], n: int, seconds: float, threat: Threat | None = None) -> "Diagnosis":
        """Return what checks say that were made on n correctly classified examples within a threat model."""
        diagnosis = cls(verdict="inconclusive", reason="", checks=[], n=n, seconds=seconds, threat=threat)
        return diagnosis.with_checks(checks)

    def with_checks(self, checks: Sequence[Check]) -> "Diagnosis":
        """Return the diagnosis that other checks give."""
        usual, number = verdict_on(checks), belief_on(checks)
        where = f" at {self.threat} on {self.n} images" if self.threat else ""
        reason, number_reason = (one.check.line if one.check else f"{SOUND}{where}" for one in (usual, number))
        said = {"verdict": usual.word, "reason": reason, "number": number.word, "number_reason": number_reason}
        return self.model_copy(update={"checks": list(checks), **said})

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the checks that fired."""
        return tuple(dict.fromkeys(check.name for check in self.checks if check.fired))

    @property
    def overstated_by(self) -> float:
        """By how much the usual way overstates the accuracy, a fraction; 0 where the verdict is not masked."""
        deciding = verdict_on(self.checks)
        return deciding.check.values.get("gap", 0.0) if deciding.check and deciding.word == "masked" else 0.0

    def summary(self) -> dict[str, Any]:
        """Return both answers and the flags, for a document that holds other things as well."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "overstated_by": self.overstated_by,
            "number": self.number,
            "number_reason": self.number_reason,
            "flags": list(self.flags),
            "n": self.n,
            "threat": self.threat and self.threat.document(),
        }

    def document(self) -> dict[str, Any]:
        """Return the JSON document of the diagnosis."""
        checks = [check.model_dump(mode="json") for check in self.checks]
        return self.summary() | {"seconds": self.seconds, "checks": checks}

    def joined(self, further: Sequence[Check], *, strong: bool = True) -> "Diagnosis":
        """Return the diagnosis with further checks, and the answers that all of them give.

        A check gives way to one of the same name and threat model that saw more examples, unless it alone fired.
        `strong` is False for a number that comes of a single loss: where PGD is weak it is doubtful, elsewhere open.
        """
        newer = {(check.name, check.threat): check for check in further}
        kept = [check for check in self.checks if not _gives_way(check, newer.get((check.name, check.threat)))]
        if not strong:
            kept = [
                check.model_copy(update={"implies": "doubtful"}) if check.implies == "weak" else check for check in kept
            ]
            kept.append(
                Check(name="no-strong-attack", fired=True, implies="untried", detail=UNTRIED, threat=self.threat)
            )
        return self.with_checks([*kept, *further])


def _gives_way(check: Check, newer: Check | None) -> bool:
    if newer is None:
        return False
    return newer.fired or not (check.fired and check.implies in (*_MASKS, *_DOUBTS))


def verdict_on(checks: Sequence[Check]) -> Answer:
    """Return what checks say about the usual way: "masked", "inconclusive" or "sound"."""
    return _answer(checks, "masked", _MASKS)


def belief_on(checks: Sequence[Check]) -> Answer:
    """Return what checks say about the number itself: "doubtful", "inconclusive" or "sound"."""
    return _answer(checks, "doubtful", _DOUBTS)


def _answer(checks: Sequence[Check], word: str, meaning: Sequence[str]) -> Answer:
    """Return the gravest that a check says that fired, and of equally grave ones that with the largest gap."""
    for check in checks:
        if check.fired and check.name in _FIRST and check.implies == "inconclusive":
            return Answer("inconclusive", check)
    for one, implied in ((word, meaning), ("inconclusive", _OPEN[word])):
        fired = [check for check in checks if check.fired and check.implies in implied]
        if fired:
            return Answer(one, max(fired, key=lambda check: check.values.get("gap", 0.0)))
    return Answer("sound", None)
