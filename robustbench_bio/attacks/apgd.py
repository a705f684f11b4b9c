"""Auto-PGD with its losses: Croce & Hein 2020, for l1 Croce & Hein 2021."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel
from robustbench_bio.attacks.apgd_run import run_apgd
from robustbench_bio.attacks.base import ATTACKS, Attack, Attempts, Proposal
from robustbench_bio.attacks.losses import (
    cross_entropy,
    dlr_if_possible,
    label_target_pairs,
    likely_targets,
    targeted_dlr_if_possible,
)
from robustbench_bio.attacks.runs import Runs, border_start, first_success, same_example, target_groups
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Norm, Threat

#: Radii of the balls of an l1 run, in units of eps, and shares of its steps (Croce & Hein 2021, sec. 3.3).
SHRINKING = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


class _Objective(NamedTuple):
    """A loss to increase, what it is held against for each target [k, n, ...], and the queries that this took."""

    loss: AttackLoss
    against: Tensor
    queries: int = 0


@dataclass(frozen=True, kw_only=True)
class _AutoPGD(Attack):
    """What the members of the family share: runs for each target and restart, while the example is robust."""

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2", "l1"})

    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    early_exit: bool = True

    def __post_init__(self) -> None:
        at_least(steps=(self.steps, 1), restarts=(self.restarts, 1), rho=(self.rho, 0))

    @abstractmethod
    def _objective(self, model: WhiteBoxModel, x: Tensor, y: Tensor) -> _Objective:
        """Return what to increase."""

    @final
    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        objective = self._objective(model, x, y)
        # Runs that never end early have nothing to gain from each other, and the last of them is to be proposed; those
        # of a random network are weighed against each other one by one.
        one_by_one = model.random or not self.early_exit
        count = len(objective.against)
        groups = [[target] for target in range(count)] if one_by_one else target_groups(count, x)
        attempts = Attempts(model, x, y, len(groups) * self.restarts)
        for number, rows in attempts:
            targets, restart = groups[number // self.restarts], number % self.restarts
            draws = [rng.take(rows).child(f"{target}/{restart}") for target in targets]
            run = apgd_at_once(
                model,
                x[rows],
                y[rows],
                threat,
                objective.loss,
                objective.against[targets][:, rows],
                draws,
                steps=self.steps,
                rho=self.rho,
                early_exit=self.early_exit,
            )
            attempts.add(run)
        return attempts.best._replace(queries=attempts.best.queries + objective.queries)


def apgd_at_once(
    model: WhiteBoxModel,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    loss: AttackLoss,
    against: Tensor,
    draws: list[ExampleRng],
    *,
    steps: int,
    rho: float = 0.75,
    early_exit: bool = True,
) -> Proposal:
    """Make k runs of Auto-PGD on each example side by side, from random starts, until one of them succeeds.

    Args:
        model: what may be asked of the network.
        x: [n, C, H, W] centres of the balls.
        y: int64 [n], true labels.
        threat: linf, l2 or l1; in l1 the balls shrink to the threat's.
        loss: what to increase, a function of the logits and of rows of `against`.
        against: [k, n, ...], for each run.
        draws: k times one stream per example, for the starts.
        steps: per run.
        rho: see `run_apgd`, like early_exit.
        early_exit: False makes all steps.

    Returns:
        The first success on each example, else the last run's point of highest loss; the costs of all k runs.
    """
    sparse = threat.norm == "l1"
    # The first l1 ball is larger than the threat's, and so is the region that its starts are drawn from.
    ball = Threat("l1", SHRINKING[0][0] * threat.eps, threat.bounds) if sparse else threat
    runs = Runs.towards(x, y, [border_start(ball, x, draw) for draw in draws], against)
    method = _run_shrinking if sparse else run_apgd
    return _best_of(method(model, runs, threat, loss, steps=steps, rho=rho, early_exit=early_exit), len(draws))


def _run_shrinking(
    model: WhiteBoxModel, runs: Runs, threat: Threat, loss: AttackLoss, *, steps: int, rho: float, early_exit: bool
) -> Proposal:
    """Run in balls that shrink to the threat's, each from the best point of the one before (2021, sec. 3.3)."""
    fooled = torch.zeros_like(runs.y, dtype=torch.bool)
    x_adv, queries, updates = runs.start.clone(), torch.zeros_like(runs.y), torch.zeros_like(runs.y)
    active, left = torch.arange(len(runs.y), device=runs.y.device), steps
    for i, (factor, share) in enumerate(SHRINKING):
        last = i + 1 == len(SHRINKING)
        ball = Threat("l1", factor * threat.eps, threat.bounds)
        budget = left if last else min(left, math.ceil(share * steps))
        left -= budget
        part = run_apgd(
            model,
            runs.take(active, ball.project(runs.x[active], x_adv[active])),
            threat,
            loss,
            steps=budget,
            rho=rho,
            early_exit=early_exit,
            ball=None if last else ball,
            fresh=False,
        )
        assert part.fooled is not None  # noqa: S101
        x_adv[active], fooled[active] = part.x_adv, part.fooled
        queries[active] += part.queries
        updates[active] += part.steps
        active = active[~same_example(runs.example[active], fooled[active])]
        if len(active) == 0:
            break
    return Proposal(x_adv, queries, updates, fooled)


def _best_of(proposal: Proposal, k: int) -> Proposal:
    """Return the first success of k runs on each example, else their last try; all have cost queries and steps."""
    assert proposal.fooled is not None  # noqa: S101
    fooled, n = proposal.fooled.view(k, -1), len(proposal.fooled) // k
    x_adv = proposal.x_adv[first_success(fooled) * n + torch.arange(n, device=fooled.device)]
    return Proposal(x_adv, proposal.queries.view(k, n).sum(0), proposal.steps.view(k, n).sum(0), fooled.any(0))


@final
@ATTACKS.register("apgd-ce")
@dataclass(frozen=True, kw_only=True)
class APGDCE(_AutoPGD):
    """Auto-PGD on the cross-entropy (Croce & Hein 2020, arXiv:2003.01690, alg. 1; l1: 2021, arXiv:2103.01208).

    On purpose different from the released code: an example is left alone once a point that fools the network is
    found; and the length of a tiny gradient is not added to 1e-12, which would shorten the steps in l2.

    Args:
        steps: per run.
        restarts: runs, each only for the examples that are still robust.
        rho: the step size is halved where no more than this share of the steps raised the loss; not for l1.
        early_exit: False makes all steps and proposes the point of highest loss of the last run.
    """

    def _objective(self, model: WhiteBoxModel, x: Tensor, y: Tensor) -> _Objective:
        del model, x
        return _Objective(cross_entropy, y[None])


@final
@ATTACKS.register("apgd-dlr")
@dataclass(frozen=True, kw_only=True)
class APGDDLR(_AutoPGD):
    """Auto-PGD on the difference of logits ratio; on the margin, with a notice, where there are two classes.

    Args:
        steps: per run.
        restarts: runs, each only for the examples that are still robust.
        rho: the step size is halved where no more than this share of the steps raised the loss; not for l1.
        early_exit: False makes all steps and proposes the point of highest loss of the last run.
    """

    def _objective(self, model: WhiteBoxModel, x: Tensor, y: Tensor) -> _Objective:
        del x
        return _Objective(dlr_if_possible(model), y[None])


@final
@ATTACKS.register("apgd-t")
@dataclass(frozen=True, kw_only=True)
class APGDTargeted(_AutoPGD):
    """Auto-PGD on the targeted difference of logits ratio, towards one likely class after the other.

    With fewer than four classes it increases the targeted margin, with fewer than targets + 1 classes it takes all
    that there are; both leave a notice. The released code dies there.

    Args:
        steps: per run.
        restarts: runs towards each target, each only for the examples that are still robust.
        rho: the step size is halved where no more than this share of the steps raised the loss; not for l1.
        early_exit: False makes all steps and proposes the point of highest loss of the last run.
        targets: how many of the most likely wrong classes.
    """

    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(targets=(self.targets, 1))

    def _objective(self, model: WhiteBoxModel, x: Tensor, y: Tensor) -> _Objective:
        pairs = label_target_pairs(y, likely_targets(model, x, y, self.targets))
        return _Objective(targeted_dlr_if_possible(model), pairs, queries=model.answer_cost)
