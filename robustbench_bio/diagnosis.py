"""Is the measured robustness real? Checks for gradient masking, and a verdict."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio.attacks import Attack, Oracle, make, rules_of
from robustbench_bio.attacks.pgd import PGD, cross_entropy
from robustbench_bio.attacks.traced import Untraceable, laid_out, trace
from robustbench_bio.errors import UserError
from robustbench_bio.judge import check_data, checked_logits, judge
from robustbench_bio.records import check_eps
from robustbench_bio.rng import ExampleRng, torch_generator
from robustbench_bio.stats import mcnemar
from robustbench_bio.threat import Norm, Threat

Verdict = Literal["sound", "masked", "inconclusive"]

#: A difference between two attacks on the same examples counts if its one-sided exact McNemar p is below this …
SIGNIFICANT = 0.01
#: … and it is at least this large, as a fraction of the examples.
NOTABLE = 0.03


@dataclass(frozen=True)
class Flag:
    """One check.

    Attributes:
        name: short name.
        fired: whether it found something.
        says: what it means if it fired: "masked", "inconclusive", or "" for a remark.
        detail: what was measured, in one line.
        values: the numbers.
    """

    name: str
    fired: bool
    says: Literal["masked", "inconclusive", ""]
    detail: str
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What the checks found on one network.

    Attributes:
        verdict: "sound" (no check fired), "masked" (an accuracy measured through this network's own or its
            rules' gradient overstates its robustness, or hides it from gradients altogether), or "inconclusive".
        reason: one line; names the largest gap where the verdict is "masked".
        checks: every check, fired or not.
        n: examples that were looked at (correctly classified ones).
        seconds: how long it took.
    """

    verdict: Verdict
    reason: str
    checks: tuple[Flag, ...]
    n: int
    seconds: float

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the checks that fired."""
        return tuple(check.name for check in self.checks if check.fired)

    def document(self) -> dict[str, Any]:
        """Return the JSON document of the diagnosis."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "flags": list(self.flags),
            "n": self.n,
            "seconds": self.seconds,
            "checks": [vars(check) for check in self.checks],
        }


def diagnose(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    norm: Norm = "linf",
    eps: float = 8 / 255,
    n_examples: int = 200,
    steps: int = 20,
    queries: int = 300,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Diagnosis:
    """Look for gradient masking in a network before anybody believes its robustness.

    The checks are those of AutoAttack (random output, zero gradients, range, few classes, Square beats
    white-box), the classic ones (Athalye et al. 2018, arXiv:1802.00420; Carlini et al. 2019,
    arXiv:1902.06705), and ours: the network's own backward pass and its rules' held against the gradient of the
    traced forward pass, which finite differences in float64 confirm.

    Args:
        model: any module in eval mode, x [n, C, H, W] in [0, 1] → logits [n, K].
        data: (x float32 [N, C, H, W] in [0, 1], y int64 [N]).
        norm: "linf" or "l2".
        eps: radius in input units.
        n_examples: correctly classified examples to look at, the first ones.
        steps: of PGD; the check for unfinished attacks takes four times as many.
        queries: of Square.
        seed: of every draw.
        progress: called before every check with checks done, checks in all, and the name of the next.

    Raises:
        UserError: network or data cannot be used, or no example is classified correctly.
    """
    started = time.perf_counter()
    threat = Threat(norm, check_eps(eps, norm))
    x, y = data
    check_data(x, y)
    if any(module.training for module in model.modules()):
        raise UserError("expected the model in eval mode, got one in train mode: call model.eval()")
    logits = torch.cat(
        [checked_logits(model, xs, ys) for xs, ys in zip(torch.split(x, 256), torch.split(y, 256), strict=True)]
    )
    right = (logits.argmax(1) == y).nonzero().flatten()[:n_examples]
    if len(right) == 0:
        raise UserError("expected at least one correctly classified example, got none: nothing to attack")
    probe = _Probe(model, x[right], y[right], logits[right], threat, steps, queries, seed)
    checks = tuple(probe.all(progress or (lambda *_: None)))
    verdict, reason = _verdict(checks)
    return Diagnosis(verdict, reason, checks, len(right), time.perf_counter() - started)


def _verdict(checks: tuple[Flag, ...]) -> tuple[Verdict, str]:
    for verdict in ("masked", "inconclusive"):
        fired = [check for check in checks if check.fired and check.says == verdict]
        if fired:
            worst = max(fired, key=lambda check: check.values.get("gap", 0.0))
            return verdict, f"{worst.name}: {worst.detail}"
    return "sound", "no check fired"


class _Probe:
    """All checks on one network and its correctly classified examples."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        logits: Tensor,
        threat: Threat,
        steps: int,
        queries: int,
        seed: int,
    ) -> None:
        self.model, self.x, self.y, self.logits, self.threat = model, x, y, logits, threat
        self.steps, self.queries, self.seed = steps, queries, seed
        self.exact = Oracle(model, "exact")
        self.gradient = self.exact.gradient(x, y, cross_entropy).gradient
        self.stands = self.survivors(self.exact, PGD(steps=steps))

    def all(self, progress: Callable[[int, int, str], None]) -> list[Flag]:
        """Run every check; cheap ones first."""
        checks: list[Callable[[], Flag]] = [
            self.untraceable, self.random_output, self.random_gradient, self.probabilities, self.few_classes,
            self.zero_gradient, self.finite_differences, self.flat_loss, self.one_step_beats_many,
            self.more_steps_lower, self.unbounded_eps_survivors, self.square_beats_white_box, self.own_gradient,
        ]  # fmt: skip
        if rules_of(self.model) is not None:
            checks += [self.rule_gradient, self.rule_alignment]
        found = []
        for i, check in enumerate(checks):
            progress(i, len(checks), check.__name__.replace("_", " "))
            found.append(check())
        return found

    def survivors(self, oracle: Oracle, attack: Attack, threat: Threat | None = None) -> list[bool]:
        """Attack every example and judge: which still stand."""
        threat = threat or self.threat
        rng = ExampleRng(self.seed, range(len(self.y)), "diagnosis")
        proposal = attack.perturb(oracle, self.x, self.y, threat, rng)
        predicted, _ = judge(self.model, self.x, proposal.x_adv, self.y, threat)
        return (predicted == self.y).tolist()

    def untraceable(self) -> Flag:
        found = [notice for notice in self.exact.notices if notice.startswith("not traced")]
        detail = found[0] if found else "the forward pass was traced: gradients do not rest on the network's word"
        return Flag("untraceable", bool(found), "inconclusive", detail)

    def random_output(self) -> Flag:
        with torch.no_grad():
            moved = (self.model(self.x) - self.logits).abs().amax().item() / (self.logits.std().item() + 1e-12)
        return Flag(
            "random-output",
            moved > 1e-3,
            "inconclusive",
            f"logits move by {moved:.2g} of their spread when asked again",
            {"moved": moved},
        )

    def random_gradient(self) -> Flag:
        """Tell whether a second gradient differs though the forward pass does not (brsf with redraws, say)."""
        mode: Literal["exact", "rule"] = "rule" if rules_of(self.model) is not None else "exact"
        draws = [
            Oracle(self.model, mode, traced=False).gradient(self.x, self.y, cross_entropy).gradient for _ in range(2)
        ]
        cosine = _cosine(*draws).mean().item()
        return Flag(
            "random-gradient",
            cosine < 0.999,
            "",
            f"two {mode} gradients of one input have cosine {cosine:.3f}",
            {"cosine": cosine},
        )

    def probabilities(self) -> Flag:
        inside = bool((self.logits.min() >= 0) & (self.logits.max() <= 1))
        sums = bool((self.logits.sum(1) - 1).abs().max() < 1e-4)
        return Flag(
            "probabilities",
            inside and sums,
            "inconclusive",
            "outputs are probabilities: losses on logits saturate" if inside and sums else "outputs are logits",
        )

    def few_classes(self) -> Flag:
        classes = self.logits.shape[1]
        return Flag("few-classes", classes < 4, "", f"{classes} classes", {"classes": float(classes)})

    def zero_gradient(self) -> Flag:
        share = (self.gradient.flatten(1).abs().amax(1) == 0).float().mean().item()
        return Flag(
            "zero-gradient",
            share > 0.05,
            "masked",
            f"{share:.0%} of the examples have an exact gradient of zero",
            {"share": share},
        )

    def finite_differences(self) -> Flag:
        error = finite_difference_error(self.model, self.x[:4], self.y[:4], self.seed)
        return Flag(
            "finite-differences", not error < 0.02, "inconclusive",
            f"exact gradient and central differences in float64 differ by {error:.2g} (relative, median of directions)",
            {"error": error},
        )  # fmt: skip

    def flat_loss(self) -> Flag:
        """Tell whether a step along the gradient raises the loss more than a random step of equal size does."""
        rng = ExampleRng(self.seed, range(len(self.y)), "flat")
        noise = self.threat.steepest(rng.normal(self.x.shape[1:], self.x))
        along, random = (
            F.cross_entropy(
                self.exact.logits(self.threat.project(self.x, self.x + self.threat.eps * d)), self.y, reduction="none"
            )
            for d in (self.threat.steepest(self.gradient), noise)
        )
        share = (along <= random).float().mean().item()
        return Flag(
            "flat-along-gradient",
            share > 0.25,
            "masked",
            f"for {share:.0%} of the examples a random step raises the loss as much as the gradient step",
            {"share": share},
        )

    def one_step_beats_many(self) -> Flag:
        single = self.survivors(self.exact, make("fgsm", self.threat.norm, {}))
        return self._compare("one-step-beats-many", self.stands, single, "PGD", "FGSM", "masked")

    def more_steps_lower(self) -> Flag:
        longer = self.survivors(self.exact, PGD(steps=4 * self.steps))
        return self._compare(
            "more-steps-lower", self.stands, longer, f"PGD-{self.steps}", f"PGD-{4 * self.steps}", "inconclusive"
        )

    def unbounded_eps_survivors(self) -> Flag:
        largest = {"linf": 1.0, "l2": self.x[0].numel() ** 0.5}[self.threat.norm]
        wide = Threat(self.threat.norm, largest, self.threat.bounds)
        step = largest / 4
        share = _mean(self.survivors(self.exact, PGD(steps=2 * self.steps, step_size=step, restarts=2), wide))
        return Flag(
            "unbounded-eps-survivors",
            share > 0.02,
            "masked",
            f"{share:.0%} of the examples withstand PGD with all inputs allowed",
            {"share": share, "gap": share},
        )

    def square_beats_white_box(self) -> Flag:
        """Tell whether an attack without gradients turns what the best of three with gradients cannot."""
        white = self.stands
        for name in ("apgd-ce", "apgd-dlr"):
            white = _and(white, self.survivors(self.exact, make(name, self.threat.norm, {"steps": 2 * self.steps})))
        square = self.survivors(self.exact, make("square", self.threat.norm, {"queries": self.queries}))
        names = "PGD, APGD-CE and APGD-DLR", f"these and Square-{self.queries}"
        return self._compare("square-beats-white-box", white, _and(white, square), *names, "masked")

    def own_gradient(self) -> Flag:
        """Hold the network's own backward pass against the traced one."""
        own = Oracle(self.model, "exact", traced=False)
        cosine = _cosine(own.gradient(self.x, self.y, cross_entropy).gradient, self.gradient).mean().item()
        if cosine > 0.99:
            return Flag(
                "false-own-gradient",
                False,
                "masked",
                f"the network's own gradient has cosine {cosine:.3f} with the traced one",
                {"cosine": cosine, "gap": 0.0},
            )
        gap = _mean(self.survivors(own, PGD(steps=self.steps))) - _mean(self.stands)
        detail = (
            f"cosine {cosine:.2f} with the true gradient; PGD through it overstates accuracy by {100 * gap:.1f} points"
        )
        return Flag("false-own-gradient", True, "masked", detail, {"cosine": cosine, "gap": gap})

    def rule_gradient(self) -> Flag:
        through_rule = self.survivors(Oracle(self.model, "rule"), PGD(steps=self.steps))
        return self._compare(
            "rule-far-above-exact",
            through_rule,
            self.stands,
            "PGD through the rule",
            "through the exact gradient",
            "masked",
        )

    def rule_alignment(self) -> Flag:
        rule = Oracle(self.model, "rule").gradient(self.x, self.y, cross_entropy).gradient
        cosines = _cosine(rule, self.gradient)
        low, mid, high = torch.quantile(cosines, torch.tensor([0.1, 0.5, 0.9])).tolist()
        detail = f"cosine of rule and exact gradient: median {mid:.2f}, 10–90 % [{low:.2f}, {high:.2f}]"
        return Flag("rule-misaligned", mid < 0.5, "", detail, {"median": mid, "low": low, "high": high})

    @staticmethod
    def _compare(
        name: str,
        weak: list[bool],
        strong: list[bool],
        weak_name: str,
        strong_name: str,
        says: Literal["masked", "inconclusive"],
    ) -> Flag:
        """Fire if notably and significantly more examples stand under the first attack than under the second."""
        gap, p = _mean(weak) - _mean(strong), mcnemar(weak, strong)
        left, fewer = f"{100 * _mean(weak):.1f} %", f"{100 * _mean(strong):.1f} %"
        detail = f"{weak_name} leaves {left}, {strong_name} {fewer} (gap {100 * gap:+.1f} points, p = {p:.2g})"
        return Flag(name, gap >= NOTABLE and p < SIGNIFICANT, says, detail, {"gap": gap, "p": p})


def finite_difference_error(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0, directions: int = 8) -> float:
    """Return how far the exact gradient is from central differences in float64 along random directions.

    The gradient is that of the traced forward pass (of the network itself where it cannot be traced), both
    sides in float64, so that only rounding inside the network, thresholds or randomness can part them.

    Args:
        model: in eval mode.
        x: [n, C, H, W], a few examples.
        y: int64 [n].
        seed: of the directions.
        directions: per example.

    Returns:
        Median over examples and directions of |difference| / (|differential| + |central difference|).
    """
    try:
        forward: nn.Module = trace(model, x)
    except Untraceable:
        forward = model
    forward = copy.deepcopy(forward).double()
    generator = torch_generator(seed, "directions")
    # Flat image regions put max pools and ReLUs exactly on their kinks, where no derivative exists: step off them.
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    x = laid_out(forward, (x.double() + 0.01 * (noise - 0.5)).clamp(0, 1))
    step = 1e-6
    errors = []
    with torch.enable_grad():
        point = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(forward(point), y).sum(), point)
    for _ in range(directions):
        d = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        with torch.no_grad():
            up, down = (cross_entropy(forward(x + s * step * d), y) for s in (1, -1))
        measured, predicted = (up - down) / (2 * step), (gradient * d).flatten(1).sum(1)
        errors.append((measured - predicted).abs() / (measured.abs() + predicted.abs() + 1e-9))
    return float(torch.stack(errors).median())


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.flatten(1), b.flatten(1), dim=1)


def _and(a: list[bool], b: list[bool]) -> list[bool]:
    return [x and y for x, y in zip(a, b, strict=True)]


def _mean(stands: list[bool]) -> float:
    return sum(stands) / len(stands)
