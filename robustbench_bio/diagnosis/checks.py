"""The checks of a diagnosis: what is tried on a network, and what it gives away."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.attacks import Attack, WhiteBoxModel, make, rules_of
from robustbench_bio.attacks.access.comparison import SAME, cosines
from robustbench_bio.attacks.access.mean_prediction import TOLERANCE
from robustbench_bio.attacks.access.surrogate import ATTACKED_BY, stepped
from robustbench_bio.attacks.access.white_box import ZERO_SHARE
from robustbench_bio.attacks.losses import cross_entropy
from robustbench_bio.attacks.mi_fgsm import MIFGSM
from robustbench_bio.attacks.pgd import PGD
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.core.stats import all_of
from robustbench_bio.diagnosis.comparisons import ENOUGH, compare
from robustbench_bio.diagnosis.differences import finite_difference_error
from robustbench_bio.evaluation.judge import judge
from robustbench_bio.records.diagnosis import Check, Implies
from robustbench_bio.records.gradient import OWN, Gradient
from robustbench_bio.records.threat import Threat

#: The surrogate that is tried on networks with thresholds.
SURROGATE = Gradient("surrogate", "arctan")


@dataclass(eq=False)
class Checks:
    """All checks on one network and its correctly classified examples.

    Args:
        judged: what decides whether an example is robust: the network, or its mean prediction if it is random.
        x: [n, C, H, W] in [0, 1].
        y: int64 [n], all of them answered correctly.
        logits: [n, K] at x.
        followed: gradient of the white-box attacks.
        draws: passes behind each answer.
    """

    model: nn.Module
    judged: nn.Module
    x: Tensor
    y: Tensor
    logits: Tensor
    threat: Threat
    followed: Gradient
    draws: int
    steps: int
    queries: int
    seed: int
    exact: WhiteBoxModel = field(init=False)
    gradient: Tensor = field(init=False)
    robust: list[bool] = field(init=False)
    longer: list[bool] = field(init=False)
    own_robust: list[bool] = field(init=False)
    """What is robust to PGD through the network's own gradient, as through the exact one where both are one."""
    found: list[list[bool]] = field(default_factory=list)
    """What each attack within the threat model left."""

    def __post_init__(self) -> None:
        self.exact = self.white_box(self.followed)
        self.gradient = self.exact.gradient(self.x, self.y, cross_entropy).gradient
        self.robust = self.own_robust = self.robust_to(self.exact, PGD(steps=self.steps))

    @property
    def kind(self) -> str:
        """What the reference gradient is called: exact, or the surrogate that stands in for it."""
        return str(self.followed) if self.followed.surrogate else "exact"

    def white_box(self, gradient: Gradient) -> WhiteBoxModel:
        """Return white-box access to the network through a gradient."""
        return WhiteBoxModel(self.model, gradient, draws=self.draws, seed=self.seed)

    def all(self, source: nn.Module | None, progress: Progress) -> list[Check]:
        """Run every check; cheap ones first."""
        checks: list[Callable[[], Check]] = [
            self.too_few_examples, self.untraceable, self.random_output, self.random_gradient, self.probabilities,
            self.few_classes, self.zero_gradient, self.finite_differences, self.flat_loss, self.one_step_beats_many,
            self.more_steps_lower, self.unbounded_eps_survivors, self.own_gradient,
            self.own_beats_exact,
        ]  # fmt: skip
        if rules_of(self.model) is not None:
            checks += [self.rule_gradient, self.rule_alignment]
        if self.has_steps():
            checks.append(self.surrogate_beats_exact)
        checked = []
        total = len(checks) + 1 + (source is not None)
        for i, check in enumerate(checks):
            progress(i, total, check.__name__.replace("_", " "))
            checked.append(check())
        white = self.best_white_box()
        if source is not None:
            progress(len(checks), total, "transfer beats white box")
            checked.append(self.transfer_beats_white_box(white, source))
        progress(total - 1, total, "square beats white box")
        checked += [self.square_beats_white_box(white), self.other_losses_lower(white)]
        checked = self.seen_through_own(checked)
        where = {"threat": self.threat, "n": len(self.y)}
        return [check.model_copy(update=where) if "gap" in check.values else check for check in checked]

    def robust_to(self, white_box: WhiteBoxModel, attack: Attack, threat: Threat | None = None) -> list[bool]:
        """Attack every example and judge which are robust."""
        threat = threat or self.threat
        rng = ExampleRng(self.seed, range(len(self.y)), "diagnosis")
        proposal = attack.perturb(white_box, self.x, self.y, threat, rng)
        robust = self.judged_robust(proposal.x_adv, threat)
        if threat == self.threat:
            self.found.append(robust)
        return robust

    def judged_robust(self, x_adv: Tensor, threat: Threat) -> list[bool]:
        predicted, _ = judge(self.judged, self.x, x_adv, self.y, threat)
        return (predicted == self.y).tolist()

    def too_few_examples(self) -> Check:
        n = len(self.y)
        return _check("too-few-examples", n < ENOUGH, "inconclusive", f"{n} examples, {ENOUGH} are the least", n=n)

    def untraceable(self) -> Check:
        notices = [notice for notice in self.exact.notices if notice.startswith("not traced")]
        detail = notices[0] if notices else "the forward pass was traced: gradients do not rest on the network's word"
        return _check("untraceable", bool(notices), "inconclusive", detail)

    def random_output(self) -> Check:
        with torch.no_grad():
            first, second = self.model(self.x), self.model(self.x)
        moved = (second - first).abs().amax().item() / (first.std().item() + 1e-12)
        detail = f"logits move by {moved:.2g} of their spread when asked again"
        judged = f", so that the mean prediction of {self.draws} passes is judged" if self.draws > 1 else ": try eot:20"
        fired = not moved <= TOLERANCE
        implies: Implies = "" if self.draws > 1 else "inconclusive"
        return _check("random-output", fired, implies, detail + (judged if fired else ""), moved=moved)

    def random_gradient(self) -> Check:
        """Tell whether a second gradient differs though the forward pass does not (brsf with redraws, say)."""
        mode = "rule" if rules_of(self.model) is not None else "own"
        white_box = WhiteBoxModel(self.model, mode)
        try:
            draws = [white_box.gradient(self.x, self.y, cross_entropy).gradient for _ in range(2)]
        except UserError as error:
            return _check("random-gradient", False, "", str(error))
        cosine = 1.0 if torch.equal(*draws) else cosines(*draws).mean().item()
        detail = f"two {mode} gradients of one input have cosine {cosine:.3f}"
        return _check("random-gradient", cosine < 0.999, "", detail, cosine=cosine)

    def probabilities(self) -> Check:
        inside = bool((self.logits.min() >= 0) & (self.logits.max() <= 1))
        fired = inside and bool((self.logits.sum(1) - 1).abs().max() < 1e-4)
        if fired and self.exact.behind_softmax:
            return _check("probabilities", True, "", "outputs are probabilities, attacked at the logits they come from")
        detail = "outputs are probabilities: losses on logits saturate" if fired else "outputs are logits"
        return _check("probabilities", fired, "inconclusive", detail)

    def few_classes(self) -> Check:
        classes = self.logits.shape[1]
        return _check("few-classes", classes < 4, "", f"{classes} classes", classes=classes)

    def zero_gradient(self) -> Check:
        # Of the loss that everybody takes, which float32 may round to zero where our attacks go on.
        gradient = self.exact.gradient(self.x, self.y, lambda z, y: F.cross_entropy(z, y, reduction="none")).gradient
        share, ours = ((one.flatten(1).abs().amax(1) == 0).float().mean().item() for one in (gradient, self.gradient))
        kind = "an exact gradient" if self.kind == "exact" else f"a gradient {self.kind}"
        detail = f"{share:.0%} of the examples have {kind} of zero"
        implies: Implies = "hidden" if ours > ZERO_SHARE else "masked"
        return _check("zero-gradient", share > ZERO_SHARE, implies, detail, share=share, ours=ours)

    def finite_differences(self) -> Check:
        error = finite_difference_error(self.model, self.x[:4], self.y[:4], self.seed)
        detail = f"exact gradient and central differences in float64 differ by {error:.2g} (relative, median)"
        return _check("finite-differences", not error < 0.02, "inconclusive", detail, error=error)

    def flat_loss(self) -> Check:
        """Tell whether a step along the gradient raises the loss more than a random step of equal size does."""
        rng = ExampleRng(self.seed, range(len(self.y)), "flat")
        noise = self.threat.steepest(rng.normal(self.x.shape[1:], self.x))
        along, random = (
            cross_entropy(self.exact.logits(self.threat.project(self.x, self.x + self.threat.eps * direction)), self.y)
            for direction in (self.threat.steepest(self.gradient), noise)
        )
        share = (along <= random).float().mean().item()
        detail = f"for {share:.0%} of the examples a random step raises the loss as much as the gradient step"
        return _check("flat-along-gradient", share > 0.25, "hidden", detail, share=share)

    def one_step_beats_many(self) -> Check:
        single = self.robust_to(self.exact, make("fgsm", self.threat.norm, {}))
        return compare("one-step-beats-many", self.robust, single, "PGD", "FGSM", "hidden")

    def more_steps_lower(self) -> Check:
        self.longer = self.robust_to(self.exact, PGD(steps=4 * self.steps))
        names = f"PGD-{self.steps}", f"PGD-{4 * self.steps}"
        return compare("more-steps-lower", self.robust, self.longer, *names, "weak")

    def other_losses_lower(self, white: list[bool]) -> Check:
        """Tell whether other losses and adaptive steps find what many steps on the cross-entropy do not."""
        names = f"PGD-{4 * self.steps}", "with APGD-CE and APGD-DLR it is"
        return compare("other-losses-lower", self.longer, all_of([self.longer, white]), *names, "weak")

    def unbounded_eps_survivors(self) -> Check:
        largest = {"linf": 1.0, "l2": self.x[0].numel() ** 0.5}[self.threat.norm]
        wide = Threat(self.threat.norm, largest, self.threat.bounds)
        attack = PGD(steps=2 * self.steps, step_size=largest / 4, restarts=2)
        share = _mean(self.robust_to(self.exact, attack, wide))
        detail = f"{share:.0%} of the examples withstand PGD with all inputs allowed"
        return _check("unbounded-eps-survivors", share > 0.02, "hidden", detail, share=share, gap=share)

    def best_white_box(self) -> list[bool]:
        """Return what is robust to PGD, APGD-CE and APGD-DLR; with surrogates, through each of `ATTACKED_BY` too."""
        others = [self.white_box(gradient) for gradient in ATTACKED_BY if gradient != self.followed]
        others = others if self.followed.surrogate else []
        robust = [self.robust, *(self.robust_to(other, PGD(steps=self.steps)) for other in others)]
        for name, white_box in itertools.product(("apgd-ce", "apgd-dlr"), [self.exact, *others]):
            robust.append(self.robust_to(white_box, make(name, self.threat.norm, {"steps": 2 * self.steps})))
        return all_of(robust)

    def square_beats_white_box(self, white: list[bool]) -> Check:
        """Tell whether an attack without gradients fools what the best of three with gradients cannot."""
        square = self.robust_to(self.exact, make("square", self.threat.norm, {"queries": self.queries}))
        names = "the best of PGD, APGD-CE and APGD-DLR", f"with Square-{self.queries} it is"
        return compare("square-beats-white-box", white, all_of([white, square]), *names, "hidden")

    def transfer_beats_white_box(self, white: list[bool], source: nn.Module) -> Check:
        """Tell whether another network's adversarial examples fool what this one's gradient cannot."""
        attack = MIFGSM(steps=self.steps, early_exit=False)
        rng = ExampleRng(self.seed, range(len(self.y)), "diagnosis")
        proposal = attack.perturb(WhiteBoxModel(source), self.x, self.y, self.threat, rng)
        both = all_of([white, self.judged_robust(proposal.x_adv, self.threat)])
        names = "the best of PGD, APGD-CE and APGD-DLR", "with transfer it is"
        return compare("transfer-beats-white-box", white, both, *names, "hidden")

    def own_gradient(self) -> Check:
        """Hold the network's own backward pass against the traced one.

        Where the trace has a surrogate in it there is no exact gradient: the network's own is another stand-in, not
        a false one. If it is the weaker of the two, numbers measured through it overstate robustness all the same.
        """
        own = WhiteBoxModel(self.model, OWN)
        try:
            theirs = own.gradient(self.x, self.y, cross_entropy).gradient
        except UserError as error:
            return _check("false-own-gradient", False, "", str(error))
        same = torch.equal(theirs, self.gradient)
        cosine = 1.0 if same else cosines(theirs, self.gradient).mean().item()
        if self.followed.surrogate:
            name, weak, strong = "weak-own-surrogate", "PGD through the network's own", f"through {self.kind}"
            detail = (
                f"steps have no exact gradient to follow: the network's own backward pass and {self.kind} are both "
                f"stand-ins, with cosine {cosine:.3f}"
            )
        else:
            name, weak, strong = "false-own-gradient", "PGD through it", "through the traced one"
            detail = f"the network's own gradient has cosine {cosine:.3f} with the traced one"
        if cosine > SAME or self.draws > 1:
            return _check(name, False, "masked", detail, cosine=cosine, gap=0.0)
        self.own_robust = self.robust_to(own, PGD(steps=self.steps))
        gap = compare(name, self.own_robust, self.robust, weak, strong, "masked")
        return gap.model_copy(update={"detail": f"{detail}; {gap.detail}"})

    def own_beats_exact(self) -> Check:
        """Tell whether the network's own gradient, made up as it may be, leads past what hides from the exact one."""
        names = f"PGD through the {self.kind} gradient", "through the network's own"
        return compare("own-beats-exact", self.robust, self.own_robust, *names, "doubtful")

    def seen_through_own(self, checked: list[Check]) -> list[Check]:
        """Let what hides from the exact gradient speak of the number alone, where the network's own does better.

        Straight-through rounding, say: whoever measures the usual way is told the truth, if no attack finds more.
        """
        if not any(check.name == "own-beats-exact" and check.fired for check in checked):
            return checked
        names = "PGD through the network's own gradient", "with all that was tried it is"
        overstates = compare("own-overstates", self.own_robust, all_of(self.found), *names, "masked")
        told = [c.model_copy(update={"implies": "doubtful"}) if c.implies == "hidden" else c for c in checked]
        return [*told, overstates]

    def rule_gradient(self) -> Check:
        through_rule = self.robust_to(WhiteBoxModel(self.model, "rule"), PGD(steps=self.steps))
        names = "PGD through the rule", f"through the {self.kind} gradient"
        return compare("rule-far-above-exact", through_rule, self.robust, *names, "masked")

    def rule_alignment(self) -> Check:
        rule = WhiteBoxModel(self.model, "rule").gradient(self.x, self.y, cross_entropy).gradient
        found = cosines(rule, self.gradient)
        low, mid, high = torch.quantile(found, found.new_tensor([0.1, 0.5, 0.9])).tolist()
        detail = f"cosine of rule and {self.kind} gradient: median {mid:.2f}, 10–90 % [{low:.2f}, {high:.2f}]"
        return _check("rule-misaligned", mid < 0.5, "", detail, median=mid, low=low, high=high)

    def has_steps(self) -> bool:
        """Tell whether the forward pass holds thresholds or roundings that a surrogate could stand in for."""
        return self.followed.source == "exact" and stepped(self.model, self.x[:2])

    def surrogate_beats_exact(self) -> Check:
        through = self.white_box(SURROGATE)
        through.scores(self.x[:2])  # traced where `has_steps` found the steps, not at the attack's first points
        soft = self.robust_to(through, PGD(steps=self.steps))
        names = "PGD through the exact gradient", f"through {SURROGATE}"
        return compare("surrogate-beats-exact", self.robust, soft, *names, "hidden")


def _check(name: str, fired: bool, implies: Implies, detail: str, **values: float) -> Check:
    # What overflowed says nothing, and no record holds it.
    floats = {name: float(value) for name, value in values.items() if math.isfinite(value)}
    return Check(name=name, fired=fired, implies=implies, detail=detail, values=floats)


def _mean(robust: list[bool]) -> float:
    return sum(robust) / len(robust)
