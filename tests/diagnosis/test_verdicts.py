"""From checks to a verdict: when a comparison fires, what finished measurements say, and planted networks."""

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from samples import outcomes, result
from scipy.stats import binomtest
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.diagnosis.classifier import no_classifier
from robustbench_bio.diagnosis.comparisons import compare, contradictions
from robustbench_bio.diagnosis.diagnose import diagnose
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.records.diagnosis import Check, Diagnosis, Implies, belief_on, verdict_on
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat

Data = tuple[Tensor, Tensor]


# --- compare ----------------------------------------------------------------------------------------------------


def columns(n: int, only_weak: int, only_strong: int = 0) -> tuple[list[bool], list[bool]]:
    """Return which of n examples stand under two attacks: so many under one only, half of the rest under both."""
    rest = n - only_weak - only_strong
    both = [i < rest // 2 for i in range(rest)]
    weak = [True] * only_weak + [False] * only_strong + both
    return weak, [False] * only_weak + [True] * only_strong + both


def compared(n: int, only_weak: int, only_strong: int = 0, implies: Implies = "masked") -> Check:
    return compare("check", *columns(n, only_weak, only_strong), "weak", "strong", implies)


@pytest.mark.parametrize(("only_weak", "only_strong"), [(10, 0), (15, 3), (9, 8), (3, 9), (0, 7), (0, 0), (40, 1)])
def test_gap_and_p_are_those_of_a_coin(only_weak: int, only_strong: int) -> None:
    flag = compared(200, only_weak, only_strong)
    tosses = only_weak + only_strong
    at_least = sum(math.comb(tosses, k) for k in range(only_weak, tosses + 1))
    assert flag.values["p"] == pytest.approx(at_least / 2**tosses, rel=1e-9)
    assert flag.values["gap"] == pytest.approx((only_weak - only_strong) / 200)


@pytest.mark.parametrize(
    ("n", "only_weak", "only_strong", "fired", "implies"),
    [
        (100, 7, 0, True, "masked"),  # p = 1/128
        (100, 6, 0, True, "unclear"),  # p = 1/64, and twice a notable gap
        (100, 5, 0, False, "masked"),  # p = 1/32, less than that
        (200, 7, 0, True, "masked"),  # 3.5 points
        (300, 8, 0, False, "masked"),  # 2.7 points are small, whatever p
        (1000, 25, 0, False, "masked"),
        (50, 3, 0, True, "unclear"),
        (50, 2, 0, False, "masked"),
        (100, 20, 14, True, "unclear"),
        (100, 40, 14, True, "masked"),
        (100, 0, 30, False, "masked"),
        (100, 0, 0, False, "masked"),
    ],
)
def test_a_comparison_fires_at_a_gap_that_is_notable_and_significant(
    n: int, only_weak: int, only_strong: int, fired: bool, implies: str
) -> None:
    flag = compared(n, only_weak, only_strong)
    assert (flag.fired, flag.implies) == (fired, implies)
    assert ("too few examples to tell" in flag.detail) == (implies == "unclear")
    hidden = compared(n, only_weak, only_strong, "hidden")
    assert hidden.implies == ("inconclusive" if implies == "unclear" else "hidden")


@pytest.mark.parametrize("implies", ["inconclusive", "weak", ""])
def test_only_a_comparison_that_could_say_masked_asks_for_more_examples(implies: Implies) -> None:
    assert not compared(50, 3, implies=implies).fired
    assert compared(50, 10, implies=implies).implies == implies


def test_the_detail_of_a_comparison_can_be_read() -> None:
    weak, strong = columns(200, 20)
    flag = compare("check", weak, strong, "PGD", "Square", "masked")
    assert flag.detail.startswith("PGD leaves 55.0 %, Square 45.0 % (gap +10.0 points, p = 9.5e-07)")


# --- verdict ----------------------------------------------------------------------------------------------------


def flag(name: str, implies: Implies, *, fired: bool = True, **values: float) -> Check:
    return Check(name=name, fired=fired, implies=implies, detail=f"what {name} saw", values=values)


@pytest.mark.parametrize(
    ("checks", "verdict", "number", "deciding"),
    [
        ([], "sound", "sound", None),
        ([flag("a", "masked", fired=False), flag("b", "inconclusive", fired=False)], "sound", "sound", None),
        ([flag("remark", ""), flag("slow", "weak")], "sound", "sound", None),
        ([flag("a", ""), flag("b", "inconclusive")], "inconclusive", "inconclusive", "b"),
        ([flag("a", "unclear")], "inconclusive", "sound", "a"),
        ([flag("a", "masked", gap=0.1), flag("b", "masked", gap=0.3), flag("c", "masked")], "masked", "sound", "b"),
        ([flag("a", "masked"), flag("b", "masked", gap=0.9, fired=False)], "masked", "sound", "a"),
        ([flag("a", "hidden", gap=0.1), flag("b", "hidden", gap=0.9)], "masked", "doubtful", "b"),
    ],
)
def test_the_worst_that_any_check_says_is_the_answer(
    checks: list[Check], verdict: str, number: str, deciding: str | None
) -> None:
    usual, belief = verdict_on(checks), belief_on(checks)
    assert (usual.word, belief.word) == (verdict, number)
    assert (usual.check and usual.check.name) == deciding
    assert (belief.check and belief.check.name) == (None if number == "sound" else deciding)


def test_a_number_is_sound_beside_a_rule_that_misleads_and_open_beside_a_check_that_cannot_tell() -> None:
    checks = [flag("b", "inconclusive", gap=0.9), flag("a", "masked", gap=0.1)]
    assert (verdict_on(checks).word, belief_on(checks).word) == ("masked", "inconclusive")


def diagnosis(*checks: Check) -> Diagnosis:
    return Diagnosis.of(checks, 60, 1.0)


def test_where_pgd_is_weak_only_its_own_number_is_doubtful() -> None:
    found = diagnosis(flag("other-losses-lower", "weak", gap=0.07))
    assert (found.number, found.joined([]).number, found.joined([], strong=True).number) == ("sound",) * 3
    alone = found.joined([], strong=False)
    assert (alone.number, alone.verdict) == ("doubtful", "sound")
    untried = diagnosis().joined([], strong=False)
    assert (untried.number, untried.verdict, untried.flags) == ("inconclusive", "sound", ("no-strong-attack",))
    assert alone.number_reason == "other-losses-lower: what other-losses-lower saw"


def test_reasons_name_the_radius_and_the_images_they_rest_on() -> None:
    threat = Threat("linf", 32 / 255)
    where = Check(name="a", fired=True, implies="masked", detail="saw", values={"gap": 0.1}, threat=threat, n=500)
    found = Diagnosis.of([where], 64, 1.0, Threat("linf", 8 / 255))
    assert found.reason == "a at linf 32/255 on 500 images: saw"
    assert found.number_reason == "no check speaks against it at linf 8/255 on 64 images"
    assert found.overstated_by == 0.1
    # A larger sample of the same thing takes the place of a smaller, whatever both say; another radius does not.
    small = where.model_copy(update={"n": 64, "values": {"gap": 0.3}})
    assert Diagnosis.of([small], 64, 1.0).joined([where]).checks == [where]
    elsewhere = where.model_copy(update={"threat": Threat("linf", 8 / 255)})
    assert len(Diagnosis.of([small], 64, 1.0).joined([elsewhere]).checks) == 2


def test_newer_checks_replace_those_of_their_name() -> None:
    old = [flag("a", "masked", fired=False), flag("b", "", fired=False), flag("c", "inconclusive", gap=0.1)]
    first = diagnosis(*old)
    found = first.joined([flag("c", "masked", fired=False), flag("d", ""), flag("a", "masked", gap=0.2)])
    assert [check.name for check in found.checks] == ["b", "c", "d", "a"]
    assert (found.verdict, found.reason, found.flags) == ("masked", "a: what a saw", ("d", "a"))
    assert (found.n, found.seconds) == (60, 1.0)
    assert first.checks == old
    assert first.verdict == "inconclusive"
    assert first.joined([]) == first
    assert first.joined([flag("c", "masked", fired=False)]).verdict == "sound"


def test_masking_that_was_found_is_not_taken_back_by_a_newer_check() -> None:
    first = diagnosis(flag("a", "masked", gap=0.2), flag("b", "inconclusive"))
    found = first.joined([flag("a", "masked", fired=False, gap=0.0), flag("b", "inconclusive", fired=False)])
    assert (found.verdict, found.reason, found.flags) == ("masked", "a: what a saw", ("a",))
    assert first.joined([flag("e", "masked", gap=0.5)]).reason == "e: what e saw"


def test_a_diagnosis_is_written_down_whole() -> None:
    found = diagnosis(flag("a", "masked", gap=0.25), flag("b", "", fired=False))
    expected = {
        "verdict": "masked", "reason": "a: what a saw", "overstated_by": 0.25,
        "number": "sound", "number_reason": "no check speaks against it", "flags": ["a"], "n": 60, "threat": None,
    }  # fmt: skip
    assert found.summary() == expected
    rest: dict[str, Any] = {"threat": None, "n": 0}
    checks = [
        {"name": "a", "fired": True, "implies": "masked", "detail": "what a saw", "values": {"gap": 0.25}} | rest,
        {"name": "b", "fired": False, "implies": "", "detail": "what b saw", "values": {}} | rest,
    ]
    assert found.document() == expected | {"seconds": 1.0, "checks": checks}
    assert Diagnosis.model_validate_json(found.model_dump_json()) == found


# --- finished measurements ----------------------------------------------------------------------------------------


def measured(attack: str, standing: int, *, first: int = 0, n: int = 100, **changes: Any) -> Result:
    """Return a result under which examples first … first + standing − 1 of n stand."""
    stands = [int(first <= i < first + standing) for i in range(n)]
    rows = outcomes(
        id=list(range(n)), label=[1] * n, clean_prediction=[1] * n, adversarial_prediction=stands,
        distance=[0.0] * n, queries=[1] * n, steps=[1] * n,
    )  # fmt: skip
    found = result(attack=attack, **changes)
    return found.model_copy(update={"outcomes_record": rows, "spec": found.spec.model_copy(update={"n": n})})


def fired(*results: Result) -> list[tuple[str, float]]:
    return [(check.name, round(check.values["gap"], 6)) for check in contradictions(results) if check.fired]


def test_a_rule_far_above_the_exact_gradient_is_found() -> None:
    assert fired(measured("pgd", 70, gradient="rule"), measured("pgd", 40)) == [("rule-far-above-exact", 0.3)]
    assert fired(measured("pgd", 41, gradient="rule"), measured("pgd", 40)) == []
    (check,) = contradictions([measured("fgsm", 70, gradient="rule"), measured("fgsm", 40)])
    assert check.implies == "masked"
    assert check.detail.startswith("fgsm through the rule leaves 70.0 %, through the exact gradient 40.0 %")


@pytest.mark.parametrize(
    ("gradient", "exact", "name"),
    [
        ("rule+eot:3", "exact", "rule-far-above-exact"),
        ("rule+eot:20", "eot:20", "rule-far-above-exact"),
        ("own", "exact", "false-own-gradient"),
        ("own+eot:20", "eot:20", "false-own-gradient"),
    ],
)
def test_whatever_the_network_claims_is_held_against_the_exact_gradient(gradient: str, exact: str, name: str) -> None:
    claimed, true = (measured("pgd", 70, gradient=gradient), measured("pgd", 40, gradient=exact))
    assert fired(claimed, true) == [(name, 0.3)]
    # A claimed gradient is no white-box attack to hold others against.
    assert "square-beats-white-box" not in dict(fired(claimed, measured("square", 60)))


def test_an_own_gradient_that_beats_the_exact_one_shows_that_this_misleads() -> None:
    assert fired(measured("pgd", 40, gradient="own"), measured("pgd", 70)) == [("own-beats-exact", 0.3)]
    assert fired(measured("pgd", 40, gradient="rule"), measured("pgd", 70)) == []
    (check,) = (one for one in contradictions([measured("pgd", 4, gradient="own"), measured("pgd", 70)]) if one.fired)
    assert check.detail.startswith(
        "pgd through the exact gradient leaves 70.0 %, through the network's own gradient 4.0"
    )


@pytest.mark.parametrize(
    "other",
    [{"eps": 0.2}, {"norm": "l2"}, {"params": {"steps": 10}}, {"gradient": "surrogate:arctan"}, {"backend": "foolbox"}],
    ids=str,
)
def test_a_rule_is_held_against_the_same_question_only(other: dict[str, Any]) -> None:
    assert contradictions([measured("pgd", 70, gradient="rule"), measured("pgd", 40, **other)]) == []


@pytest.mark.parametrize("attack", ["noise", "square"])
def test_attacks_that_follow_no_gradient_say_nothing_of_rules(attack: str) -> None:
    assert contradictions([measured(attack, 70, gradient="rule"), measured(attack, 40)]) == []


def test_one_step_that_beats_many_is_found() -> None:
    assert fired(measured("fgsm", 40), measured("pgd", 60)) == [("one-step-beats-many", 0.2)]
    assert fired(measured("fgsm", 60), measured("pgd", 40)) == []
    # What any attack of many steps turns counts, so that FGSM has to beat all of them together.
    assert fired(measured("fgsm", 40), measured("pgd", 60), measured("apgd-ce", 42)) == []
    assert [c.name for c in contradictions([measured("fgsm", 40), measured("square", 60)])] == [
        "square-beats-white-box"
    ]


@pytest.mark.parametrize("attack", ["coordinate", "square", "transfer"])
def test_what_turns_examples_that_all_gradients_leave_is_found(attack: str) -> None:
    name = f"{attack}-beats-white-box"
    white = [measured("pgd", 60), measured("apgd-dlr", 50)]
    # Examples 0 … 49 stand under both; those from 30 on under the third too.
    assert fired(measured(attack, 70, first=30), *white) == [(name, 0.3)]
    assert fired(measured(attack, 50), *white) == []
    assert fired(measured(attack, 20, first=80), measured("pgd", 40, gradient="rule")) == []
    assert fired(measured(attack, 20), white[0], measured("pgd", 20, eps=0.2)) == [(name, 0.4)]


def test_measurements_without_a_partner_say_nothing() -> None:
    assert contradictions([]) == []
    assert contradictions([measured("pgd", 10), measured("noise", 90), measured("apgd-ce", 50)]) == []
    foreign = [measured("fgsm", 10, backend="foolbox"), measured("pgd", 90, backend="foolbox")]
    assert contradictions([*foreign, measured("pgd", 90)]) == []


def test_a_surrogate_counts_as_a_gradient_that_square_must_not_beat() -> None:
    both = [measured("square", 50), measured("pgd", 90)]
    assert fired(*both) == [("square-beats-white-box", 0.4)]
    assert fired(*both, measured("pgd", 49, gradient="surrogate:arctan")) == []


# --- planted networks ----------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A small honest network of five classes on 6 × 6 images: linear, or with a hidden layer."""

    def __init__(self, hidden: bool = False, seed: int = 0) -> None:
        super().__init__()
        generator = torch_generator(seed, "plain")
        wide = 24 if hidden else 36
        self.first = nn.Parameter(torch.randn(24, 36, generator=generator) / 3 if hidden else torch.eye(36))
        self.last = nn.Parameter(torch.randn(5, wide, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x.flatten(1) - 0.5) @ self.first.T) @ self.last.T


class Rounded(Plain):
    """Sees its inputs in five levels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 4).round() / 4)


class _Step(torch.autograd.Function):
    """Rounding to five levels; its backward pass turns the sign of every second pixel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - 2 * (torch.arange(g[0].numel()) % 2)).view_as(g[0])


class Fires(Plain):
    """The same five levels, with a backward pass of its own that stands in for their slope, and badly."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Step.apply(x))  # type: ignore[no-untyped-call]


class Leaky(Plain):
    """The same five levels, through which gradients pass as if they were not there: our own stand-in for roundings."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + ((x * 4).round() / 4 - x).detach())


class Noisy(Plain):
    """Sees its inputs through noise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.05 * torch.randn_like(x))


class Normed(nn.Module):
    """A convolution with batch norm, whose trace rounds otherwise than its modules, and very sure of itself."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.norm, self.last = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(128, 5)
            assert self.norm.running_var is not None
            self.norm.running_var.uniform_(0.3, 3)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.last(F.relu(self.norm(self.conv(x))).flatten(1))
        return logits


def answered(net: nn.Module, n: int = 60) -> Data:
    """Return images whose labels are the network's own answers, so that all are classified correctly."""
    x = torch.rand(n, 1, 6, 6, generator=torch_generator("images"))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        return x, torch.stack([net(x) for _ in range(20)]).mean(0).argmax(1)


def diagnosed(net: nn.Module, n: int = 60, **options: Any) -> Diagnosis:
    chosen = {"eps": 0.1, "steps": 10, "queries": 60} | options
    return diagnose(net.eval(), answered(net, n), **chosen)


def check(found: Diagnosis, name: str) -> Check:
    (one,) = (c for c in found.checks if c.name == name)
    return one


@pytest.mark.parametrize("hidden", [False, True], ids=["linear", "hidden layer"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("linf", 0.1), ("l2", 0.3)])
def test_honest_networks_trigger_no_check(norm: str, eps: float, hidden: bool, global_rng_untouched: None) -> None:
    found = diagnosed(Plain(hidden), norm=norm, eps=eps, source=Plain(hidden, seed=1).eval())
    assert (found.verdict, found.number, found.flags) == ("sound", "sound", ())
    assert found.reason == f"no check speaks against it at {Threat(norm, eps)} on 60 images"
    assert found.n == 60
    assert check(found, "transfer-beats-white-box").implies == "hidden"


def test_an_honest_normed_network_triggers_no_check() -> None:
    assert diagnosed(Normed(3)).flags == ()


def test_an_honest_network_that_is_sure_of_itself_has_no_false_gradient() -> None:
    assert diagnosed(Normed(200)).flags == ()


@pytest.mark.parametrize(("n", "verdict"), [(49, "inconclusive"), (50, "sound")])
def test_few_examples_leave_it_open(n: int, verdict: str) -> None:
    found = diagnosed(Plain(), n)
    assert (found.verdict, found.n) == (verdict, n)
    assert check(found, "too-few-examples").fired == (n < 50)
    if n < 50:
        assert found.reason == "too-few-examples: 49 examples, 50 are the least"


def test_rounded_inputs_are_seen_through_by_a_surrogate() -> None:
    found = diagnosed(Rounded(), eps=0.2)
    assert (found.verdict, found.number) == ("masked", "doubtful")
    assert {"zero-gradient", "surrogate-beats-exact", "square-beats-white-box"} <= set(found.flags)
    beaten = check(found, "surrogate-beats-exact")
    assert beaten.implies == "hidden"
    assert beaten.values["gap"] > 0.3
    # The gap is what two evaluations of the same attack measure.
    x, y = answered(Rounded())
    exact, soft = (
        evaluate(Rounded().eval(), (x, y), attack="pgd", eps=0.2, steps=10, gradient=g).robust_accuracy
        for g in ("exact", "surrogate:arctan")
    )
    assert exact - soft == pytest.approx(beaten.values["gap"], abs=0.1)
    assert check(diagnosed(Plain()), "zero-gradient").values["share"] == 0


class _Through(torch.autograd.Function):
    """Rounding to five levels that hands the gradient down as it came."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Through(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Through.apply(x))


class Sure(Plain):
    """Logits so large that float32 rounds the slope of the cross-entropy to zero."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * super().forward(x)


def test_the_usual_way_is_sound_where_straight_through_rounding_tells_the_truth() -> None:
    found = diagnosed(Through(), eps=0.2)
    assert (found.number, found.verdict) == ("doubtful", "sound")
    assert {"zero-gradient", "own-beats-exact", "surrogate-beats-exact"} <= set(found.flags)
    x, y = answered(Through())
    own, exact = (
        evaluate(Through().eval(), (x, y), attack="pgd", eps=0.2, steps=10, gradient=g).robust_accuracy
        for g in ("own", "exact")
    )
    assert own < exact - 0.3


def test_where_only_the_usual_loss_is_flat_the_number_is_sound() -> None:
    found = diagnosed(Sure())
    assert (found.number, found.verdict, found.flags) == ("sound", "masked", ("zero-gradient",))
    result = evaluate(Sure().eval(), answered(Sure()), eps=0.1)
    assert result.provenance.notices == []
    assert result.robust_accuracy == evaluate(Plain().eval(), answered(Plain()), eps=0.1).robust_accuracy


def test_a_surrogate_is_tried_only_where_there_are_steps() -> None:
    assert "surrogate-beats-exact" not in {c.name for c in diagnosed(Plain()).checks}
    tried = diagnosed(Rounded(), eps=0.2, gradient="surrogate:arctan")
    assert "surrogate-beats-exact" not in {c.name for c in tried.checks}
    assert not check(tried, "square-beats-white-box").fired


def test_where_there_is_no_exact_gradient_the_networks_own_is_weak_and_not_false() -> None:
    found = diagnosed(Fires(), eps=0.2, gradient="surrogate:arctan")
    names = {c.name for c in found.checks}
    assert "weak-own-surrogate" in found.flags
    assert "false-own-gradient" not in names
    own = check(found, "weak-own-surrogate")
    assert (own.implies, found.verdict) == ("masked", "masked")
    said = re.fullmatch(
        r"steps have no exact gradient to follow: the network's own backward pass and surrogate:arctan are both "
        r"stand-ins, with cosine -?0\.\d{3}; PGD through the network's own leaves (\d+\.\d) %, through "
        r"surrogate:arctan (\d+\.\d) % \(gap \+.*\)",
        own.detail,
    )
    assert said is not None
    assert own.values["gap"] == pytest.approx((float(said[1]) - float(said[2])) / 100, abs=0.001)
    assert own.values["gap"] > 0.1
    # A stand-in that is as good as ours is no finding.
    fine = check(diagnosed(Leaky(), eps=0.2, gradient="surrogate:arctan"), "weak-own-surrogate")
    assert (fine.fired, fine.values["gap"]) == (False, 0)


def test_the_examples_of_another_network_unmask_one_whose_gradient_is_useless() -> None:
    found = diagnosed(Rounded(), eps=0.2, source=Plain().eval())
    moved = check(found, "transfer-beats-white-box")
    assert (moved.fired, moved.implies) == (True, "hidden")
    assert moved.values["gap"] > 0.3
    # Another network's examples that fool nobody prove nothing.
    stranger = diagnosed(Rounded(), eps=0.2, source=Plain(seed=5).eval())
    assert check(stranger, "transfer-beats-white-box").values["gap"] < moved.values["gap"] / 2
    assert "transfer-beats-white-box" not in {c.name for c in diagnosed(Rounded(), eps=0.2).checks}


def test_a_random_network_is_judged_by_its_mean_answer(global_rng_untouched: None) -> None:
    found = diagnosed(Noisy(), eps=0.05, gradient="eot:4", steps=5, queries=20)
    noise = check(found, "random-output")
    assert (noise.fired, noise.implies) == (True, "")
    assert "the mean prediction of 20 passes is judged" in noise.detail
    assert not check(found, "finite-differences").fired
    assert not check(found, "false-own-gradient").fired
    again = diagnosed(Noisy(), eps=0.05, gradient="eot:4", steps=5, queries=20)
    white = [check(d, "more-steps-lower").detail for d in (found, again)]
    assert white[0] == white[1]


def test_a_random_network_has_no_survivors_where_all_inputs_are_allowed() -> None:
    x, y = answered(Noisy(), 200)
    found = evaluate(Noisy().eval(), (x, y), attack="pgd", eps=1.0, steps=20, step_size=0.05, gradient="eot:4")
    assert found.robust_accuracy == 0


def test_a_random_network_without_expectation_is_inconclusive() -> None:
    found = diagnosed(Noisy(), eps=0.05, steps=5, queries=20)
    noise = check(found, "random-output")
    assert (noise.fired, noise.implies) == (True, "inconclusive")
    assert noise.detail.endswith(": try eot:20")
    assert found.verdict != "sound"


def test_a_diagnosis_refuses_what_it_cannot_hold_others_against() -> None:
    with pytest.raises(UserError, match="expected gradient exact, eot:K or surrogate:NAME to hold others against"):
        diagnosed(Plain(), gradient="rule")
    with pytest.raises(UserError, match=r"in l2 for inputs .*, no two of which lie further apart, got 128"):
        diagnosed(Plain(), norm="l2", eps=128)
    with pytest.raises(UserError, match="expected norm linf or l2 for a diagnosis, got 'l0'"):
        diagnosed(Plain(), norm="l0", eps=1)
    x, y = answered(Plain())
    with pytest.raises(UserError, match="expected the model in eval mode"):
        diagnose(Plain(), (x, y))


class Answers(nn.Module):
    """Gives one answer to all images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5] * 0


def drawn(n: int = 200) -> Data:
    """Return images whose labels have nothing to do with them, all five classes alike."""
    return torch.rand(n, 1, 6, 6, generator=torch_generator("others")), torch.arange(n) % 5


def rolled() -> Data:
    x, y = answered(Plain())
    return x, (y + 1) % 5


NOTHING: dict[str, tuple[nn.Module, Data, str]] = {
    "one class": (Answers(), drawn(), "it answers class 0 for all 200 examples: train it, or check"),
    "nothing right": (Plain(), rolled(), r"0 of 60 examples are right (0.0 %), no better than chance among 5 classes"),
    "chance": (Plain(True), drawn(), "no better than chance among 5 classes (95 % interval"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_has_learnt_nothing_is_no_classifier_and_is_attacked_no_further(name: str) -> None:
    net, data, said = NOTHING[name]
    found = diagnose(net.eval(), data, n_examples=20)
    assert found.verdict == "inconclusive"
    assert found.reason.startswith("no classifier: ")
    assert said in found.reason
    assert "train it, or check its weights" in found.reason
    assert found.flags == ("no-classifier",)
    assert len(found.checks) == 1
    masked = Check(name="zero-gradient", fired=True, implies="masked", detail="")
    assert found.joined([masked]).reason == found.reason, "what cannot classify is neither sound nor masked"
    assert found.joined([]).verdict == "inconclusive"


def test_chance_is_told_by_all_examples_and_not_by_the_right_ones() -> None:
    x, y = drawn(400)
    right = Plain().eval()(x).argmax(1) == y
    found = diagnose(Plain().eval(), (x, y), n_examples=60)
    looked_at = found.checks[0].values["accuracy"]
    assert looked_at == pytest.approx(right.float().mean().item(), abs=0.05)
    assert found.checks[0].fired


@pytest.mark.parametrize(
    ("right", "n", "classes", "fired"),
    [(15, 100, 10, True), (17, 100, 10, False), (59, 100, 2, True), (61, 100, 2, False), (3, 3, 10, False)],
)  # fmt: skip
def test_better_than_chance_is_what_the_interval_says(right: int, n: int, classes: int, fired: bool) -> None:
    y = torch.arange(n) % classes
    answers = torch.where(torch.arange(n) < right, y, (y + 1) % classes)
    low = binomtest(right, n).proportion_ci(0.95, method="wilson").low
    assert no_classifier(answers, y, classes).fired == (low <= 1 / classes) == fired


def test_one_class_is_no_fault_where_the_examples_have_no_other() -> None:
    assert not no_classifier(torch.zeros(40, dtype=torch.long), torch.zeros(40, dtype=torch.long), 10).fired


def test_gradients_that_overflow_are_measured_and_not_a_crash() -> None:
    found = diagnosed(Huge())
    assert "false-own-gradient" in {c.name for c in found.checks}
    assert all(math.isfinite(value) for c in found.checks for value in c.values.values())


class _Overflow(torch.autograd.Function):
    """The identity, whose backward pass is without bounds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 1e20 * 1e20


class Huge(Plain):
    """Hands down a gradient of infinities and NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Overflow.apply(x))  # type: ignore[no-untyped-call]
