"""Two attacks on the same examples, held against each other."""

from collections.abc import Sequence

from robustbench_bio.core.stats import all_of, discordant, mcnemar
from robustbench_bio.records.diagnosis import Check, Implies
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat

#: A difference between two attacks on the same examples counts if its one-sided exact McNemar p is below this …
SIGNIFICANT = 0.01
#: … and it is at least this large, as a fraction of the examples.
NOTABLE = 0.03
#: With fewer examples than this nothing can be called sound: a gap of a seventh of them could go unnoticed.
ENOUGH = 50

#: Attacks whose search needs no gradient, and so shows where one misleads. `coordinate` begins at the end of a short
#: ascent, which finds no more than the attacks that it is held against.
GRADIENT_FREE = ("coordinate", "square", "transfer")

#: Attacks that follow a gradient, for comparisons between finished measurements.
WHITE_BOX = frozenset({"fgsm", "pgd", "mi-fgsm", "tpgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "swift"})

#: Attacks of several losses, targets and restarts: what they leave is more than an upper bound by a single loss.
STRONG = frozenset({"autoattack", "swift"})


def compare(
    name: str, weak: Sequence[bool], strong: Sequence[bool], weak_name: str, strong_name: str, implies: Implies
) -> Check:
    """Return a check that fires if notably and significantly more examples are robust to the first of two attacks.

    `weak` are the examples that are robust to the attack that should leave more, `strong` the same for the other. Where
    it implies masked or hidden, a gap of twice `NOTABLE` that is not significant leaves the question open.
    """
    gap, p = (sum(weak) - sum(strong)) / len(weak), mcnemar(*discordant(weak, strong))
    left, fewer = (f"{100 * sum(robust) / len(robust):.1f} %" for robust in (weak, strong))
    detail = f"{weak_name} leaves {left}, {strong_name} {fewer} (gap {100 * gap:+.1f} points, p = {p:.2g})"
    significant, values = p < SIGNIFICANT, {"gap": gap, "p": p}
    if implies in ("masked", "hidden") and gap >= 2 * NOTABLE and not significant:
        detail += ": too few examples to tell"
        open_: Implies = "unclear" if implies == "masked" else "inconclusive"
        return Check(name=name, fired=True, implies=open_, detail=detail, values=values)
    return Check(name=name, fired=gap >= NOTABLE and significant, implies=implies, detail=detail, values=values)


def contradictions(results: Sequence[Result]) -> list[Check]:
    """Return the checks that finished measurements of one network on the same examples allow, fired or not.

    Within each threat model: the same attack through the exact gradient and through the rule or the network's own; FGSM
    beside attacks of many steps; `GRADIENT_FREE` beside all that follow the exact gradient. Only native results count.
    """
    native = [result for result in results if result.spec.backend == "native"]
    checks: list[Check] = []
    for threat in dict.fromkeys(result.spec.threat for result in native):
        within = [result for result in native if result.spec.threat == threat]
        where = {"threat": threat, "n": within[0].n}
        checks += [check.model_copy(update=where) for check in _within(within)]
    return checks


def strongly_attacked(results: Sequence[Result], threat: Threat | None) -> bool:
    """Tell whether an attack of `STRONG` is among results within a threat model, through the best gradient there is."""
    followed = [r.spec for r in results if r.spec.threat == threat and r.spec.gradient.source in ("exact", "surrogate")]
    return any(spec.attack in STRONG for spec in followed)


def _within(results: Sequence[Result]) -> list[Check]:
    """Return the checks that results of one threat model allow."""
    white = [result for result in results if not result.spec.gradient.claimed and result.spec.attack in WHITE_BOX]
    many = [result for result in white if result.spec.attack != "fgsm"]
    checks = _claimed_against_exact(results)
    if many:
        checks += [_one_step_beats_many(many, result) for result in white if result.spec.attack == "fgsm"]
    if white:
        checks += [
            _beats_white_box(white, one) for attack in GRADIENT_FREE for one in results if one.spec.attack == attack
        ]
    return checks


#: Source of a claimed gradient → the check that holds it against the exact one, and how the network says it.
_CLAIMS = {"rule": ("rule-far-above-exact", "the rule"), "own": ("false-own-gradient", "the network's own gradient")}


def _claimed_against_exact(results: Sequence[Result]) -> list[Check]:
    followers = [result for result in results if result.spec.attack in {*WHITE_BOX, *STRONG}]
    checks = []
    for result in followers:
        same = {one.spec.gradient: one for one in followers if _attack_of(one) == _attack_of(result)}
        exact = result.spec.gradient.held_against(same)
        if exact is not None:
            name, source = _CLAIMS[result.spec.gradient.source]
            names = f"{result.spec.attack} through {source}", "through the exact gradient"
            claimed, true = _robust(result), _robust(same[exact])
            checks.append(compare(name, claimed, true, *names, "masked"))
            if result.spec.gradient.source == "own":
                names = f"{result.spec.attack} through the exact gradient", f"through {source}"
                checks.append(compare("own-beats-exact", true, claimed, *names, "doubtful"))
    return checks


def _attack_of(result: Result) -> tuple[str, str]:
    return result.spec.attack, repr(sorted(result.spec.params.items()))


def _robust(result: Result) -> list[bool]:
    return result.outcomes_record.robust_correct()


def _one_step_beats_many(many: Sequence[Result], fgsm: Result) -> Check:
    """Return the check whether a single step fools what the best attack of many steps does not."""
    best = all_of(map(_robust, many))
    return compare("one-step-beats-many", best, _robust(fgsm), "the best attack of many steps", "fgsm", "hidden")


def _beats_white_box(white: Sequence[Result], result: Result) -> Check:
    """Return the check whether an attack without gradients fools what is robust to all that follow one."""
    best, attack = all_of(map(_robust, white)), result.spec.attack
    both = all_of([best, _robust(result)])
    return compare(
        f"{attack}-beats-white-box", best, both, "the best white-box attack", f"with {attack} it is", "hidden"
    )
