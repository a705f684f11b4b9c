"""Measuring again what an entry states, on some of its examples, and telling lies from rounding."""

import base64
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustbench_bio.attacks import ATTACKS, WhiteBoxModel, make
from robustbench_bio.attacks.access.comparison import followed
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.evaluation.judge import checked_logits
from robustbench_bio.evaluation.measure import measure
from robustbench_bio.evaluation.plan import Measurement, Settings, Slice, Subject, prepare
from robustbench_bio.nets.base import Net
from robustbench_bio.records.entry import Gallery, Measured
from robustbench_bio.records.result import EvalSpec
from robustbench_bio.records.threat import Threat
from robustbench_bio.zoo.facts import network_cost

#: Values are moved by at most this before an attack is repeated: some units in the last place of values near 1.
NUDGE = 1e-6

#: How often an attack is repeated on an example whose outcome differs, before the difference counts: so many times with
#: moved values, and as often with other draws.
REPEATS = 8

#: Queries may differ by this part: where rounding decides when an attack ends, it decides how many it takes.
QUERIES_SLACK = 0.1

#: Two logits are equal but for rounding if they differ by at most this times the spread of all.
SLACK = 1e-4

#: Side of a gallery's perturbation in steps: int8.
_STEPS = 127

#: Bytes of a gallery's images; ImageNet's are shown in smaller number.
_GALLERY = 400_000


@dataclass(frozen=True)
class Outcome:
    """Of one example: is it right clean, and is it right clean and attacked? Equal ones may differ in queries."""

    clean: bool
    robust: bool
    queries: int = dataclasses.field(default=0, compare=False)

    def __str__(self) -> str:
        return "is robust" if self.robust else "is fooled" if self.clean else "is wrong clean"


def remeasure(subject: Subject, spec: EvalSpec, examples: Slice, rows: Sequence[int], nudge: int = 0) -> list[Outcome]:
    """Return the outcomes of some examples under what a spec asks.

    Each example draws from its own stream, so that it has the outcome here that it had among all.

    `subject` is on the CPU; the network and the number of examples in `spec` do not matter. `nudge` is 0 for the
    examples as they are, k for the kth way to move their values by up to `NUDGE`.
    """
    part = examples.rows(rows)
    if nudge:
        generator = torch_generator(spec.seed, "nudge", nudge)
        shift = torch.rand(examples.x.shape, generator=generator)[list(rows)] * 2 - 1
        part = replace(part, x=(part.x + NUDGE * shift).clamp(0, 1))
    # What an attack adds for the record, such as the hash of its source network, is no parameter to set.
    settable = {field.name for field in dataclasses.fields(ATTACKS.get(spec.attack))}
    params = {name: value for name, value in spec.params.items() if name in settable}
    asked = Measurement(spec.attack, spec.threat, spec.gradient, params)
    settings = Settings(spec.seed, precision=spec.precision)
    outcomes = measure(prepare(subject, asked, part, settings)).outcomes_record
    columns = outcomes.clean_correct(), outcomes.robust_correct(), outcomes.queries
    return [Outcome(*example) for example in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Difference:
    """An example whose outcome is not the claimed one when it is measured again.

    Attributes:
        row: its place among the board's examples.
        within_tolerance: whether the claimed outcome came in one of the repetitions: rounding or the draws' luck
            decides it.
    """

    row: int
    claimed: Outcome
    measured: Outcome
    within_tolerance: bool


def differences(
    subject: Subject,
    measured: Measured,
    examples: Slice,
    rows: Sequence[int],
    outcomes: Sequence[Outcome] | None = None,
) -> list[Difference]:
    """Measure some examples of an entry again, unless their outcomes are given, and return those that differ.

    Processors add up floats in different orders, and an attack of many steps magnifies that, so an honest outcome can
    differ on another machine. Mostly values moved by rounding's size show it; but flat regions of an image make ties,
    in max pools above all, which one kernel always breaks in one way and another in another: other draws show that.
    """
    claimed = [Outcome(*pair) for pair in zip(measured.clean_correct(), measured.robust_correct(), strict=True)]
    again = dict(zip(rows, outcomes or remeasure(subject, measured.spec, examples, rows), strict=True))
    doubtful = [row for row in rows if again[row] != claimed[row]]
    tolerated: set[int] = set()
    spec = measured.spec
    moved = [(spec, nudge) for nudge in range(1, REPEATS + 1)]
    redrawn = [(spec.model_copy(update={"seed": spec.seed + i}), 0) for i in range(1, REPEATS + 1)]
    for asked, nudge in (*moved, *redrawn):
        left = [row for row in doubtful if row not in tolerated]
        if not left:
            break
        repeated = remeasure(subject, asked, examples, left, nudge)
        tolerated |= {row for row, outcome in zip(left, repeated, strict=True) if outcome == claimed[row]}
    return [Difference(row, claimed[row], again[row], row in tolerated) for row in doubtful]


def queries_fault(measured: Measured, rows: Sequence[int], again: Sequence[Outcome]) -> str:
    """Return how the queries that an entry claims contradict those of examples that were measured again; "" if not.

    An entry holds their mean alone: of a part of the examples it is only known that the rest took some as well.
    """
    right = measured.clean_correct()
    claimed = measured.queries_mean * sum(right)
    spent = sum(outcome.queries for row, outcome in zip(rows, again, strict=True) if right[row])
    slack = QUERIES_SLACK * spent + len(rows)
    whole = sum(right[row] for row in rows) == sum(right)
    if claimed >= spent - slack and (not whole or claimed <= spent + slack):
        return ""
    part = "all" if whole else f"{len(rows)} of them"
    return f"queries_mean: claimed {claimed:,.0f} queries for {sum(right)} examples, {part} took {spent:,}"


def certain_answers(net: nn.Module, data: Slice) -> list[bool | None]:
    """Tell for each example whether it is classified correctly; None where rounding could decide."""
    starts = range(0, len(data.y), 256)
    batches = [(data.x[i : i + 256], data.y[i : i + 256]) for i in starts]
    logits = torch.cat([checked_logits(net, x, y) for x, y in batches])
    first, second = logits.topk(2).values.unbind(1)
    certain = first - second > SLACK * (logits.std() + 1e-6)
    right = logits.argmax(1) == data.y
    return [bool(r) if sure else None for r, sure in zip(right.tolist(), certain.tolist(), strict=True)]


def gallery(net: nn.Module, data: Slice, threat: Threat, seed: int, n: int = 8) -> Gallery | None:
    """Return a few adversarial examples, those that fool the network first; None if it is never right.

    PGD of twenty steps with the exact gradient, a surrogate where thresholds leave none. What is kept is rounded to
    int8, and the predictions are those of what is kept.
    """
    answers = certain_answers(net, data)
    most = gallery_size(answers, data, threat, n)
    if not most:
        return None
    right = [row for row, fine in enumerate(answers) if fine]
    right = right[: max(n, min(100, _GALLERY // data.x[0].numel()))]
    index = torch.tensor(right)
    x, y = data.x[index], data.y[index]
    rng = ExampleRng(seed, [data.ids[row] for row in right], "gallery")
    gradient = followed(net, x[:2])[-1]
    x_adv = make("pgd", threat.norm, {"steps": 20}).perturb(WhiteBoxModel(net, gradient), x, y, threat, rng).x_adv
    # Towards zero, so that what is kept stays within the threat model.
    delta = ((x_adv - x) / threat.eps * _STEPS).trunc().clamp(-_STEPS, _STEPS).to(torch.int8)
    predictions = checked_logits(net, _shown(x, delta, threat.eps), y).argmax(1)
    chosen = sorted(range(len(right)), key=lambda i: (bool(predictions[i] == y[i]), i))[:most]
    return Gallery(
        eps=threat.eps,
        shape=(x.shape[1], x.shape[2], x.shape[3]),
        ids=[data.ids[right[i]] for i in chosen],
        labels=y[chosen].tolist(),
        predictions=predictions[chosen].tolist(),
        x=_packed((x[chosen] * 255).round().to(torch.uint8)),
        delta=_packed(delta[chosen]),
    )


def gallery_size(answers: Sequence[bool | None], data: Slice, threat: Threat, n: int = 8) -> int:
    """Return how many examples the gallery of a network shows, given what `certain_answers` says of it."""
    right = sum(fine is True for fine in answers)
    if threat.norm not in ("linf", "l2"):
        return 0
    return min(right, max(1, min(n, _GALLERY // data.x[0].numel())))


def gallery_faults(net: nn.Module, kept: Gallery, data: Slice, threat: Threat) -> list[str]:
    """Return what is wrong with a gallery: other images or labels, too large a perturbation, other answers."""
    if kept.shape != tuple(data.x.shape[1:]):
        return ["gallery: expected images of the board's shape"]
    if not set(kept.ids) <= set(data.ids) or kept.eps != threat.eps:
        return ["gallery: expected examples of the board at its radius"]
    index = torch.tensor([data.ids.index(i) for i in kept.ids], dtype=torch.long)
    x, y = data.x[index], data.y[index]
    if _packed((x * 255).round().to(torch.uint8)) != kept.x or y.tolist() != kept.labels:
        return ["gallery: images or labels are not those of the data set"]
    raw = bytearray(base64.b64decode(kept.delta))
    delta = torch.frombuffer(raw, dtype=torch.int8).view(x.shape)
    shown = _shown(x, delta, threat.eps)
    if not threat.contains(x, shown).all():
        return ["gallery: a perturbation leaves the threat model"]
    logits = checked_logits(net, shown, y)
    if not all(0 <= answer < logits.shape[1] for answer in kept.predictions):
        return ["gallery: a prediction is no class"]
    named = logits[torch.arange(len(y)), torch.tensor(kept.predictions, dtype=torch.long)]
    slack = SLACK * (logits.std().item() + 1e-6)
    wrong = int((logits.amax(1) - named > slack).sum())
    return [f"gallery: {wrong} predictions are not the network's"] if wrong else []


def _shown(x: Tensor, delta: Tensor, eps: float) -> Tensor:
    return (x + delta.float() * (eps / _STEPS)).clamp(0, 1)


def _packed(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


def facts_of(net: Net) -> dict[str, float | str]:
    """Return what a network costs and who teaches it, as entries keep it; numbers in the unit of their name."""
    costs = network_cost(net)
    facts: dict[str, float | str] = {
        "parameters": float(costs.parameters),
        "MACs per example": float(costs.macs),
        "picojoules per inference": costs.picojoules,
        "bytes of feedback": float(costs.feedback_bytes),
    }
    return facts | {f"percent of weights under {rule}": share for rule, share in costs.percent_of_weights().items()}


def same_facts(one: dict[str, float | str], other: dict[str, float | str]) -> bool:
    """Tell whether two tables of facts are equal up to rounding."""
    if one.keys() != other.keys():
        return False
    return all(
        math.isclose(value, other_value, rel_tol=1e-6)
        if isinstance(value, float) and isinstance(other_value := other[name], float)
        else value == other[name]
        for name, value in one.items()
    )
