"""Losses that attacks increase, per example; positive margins mean that the network is fooled."""

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_bio.attacks.access.white_box import AttackLoss, WhiteBoxModel, margin
from robustbench_bio.records.threat import Threat

#: Wrong classes of which `nearest_targets` asks how near they are.
CANDIDATES = 9

#: Lead of the right class from which float32 rounds the cross-entropy and its gradient to zero.
SATURATED = 80.0


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log softmax(logits)_y: [n, K], [n] → [n]; the margin + `SATURATED`, which is negative, where that is zero."""
    lead = margin(logits, y)
    return torch.where(lead < -SATURATED, lead + SATURATED, F.cross_entropy(logits, y, reduction="none"))


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, arXiv:2003.01690, eq. 6): [n, K >= 3], labels [n] → [n].

    The margin over the gap between first and third logit; like the margin's sign it ignores scale and shift of
    the logits, which make the cross-entropy's gradient vanish.
    """
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Margin of the probabilities (PMA, arXiv:2411.15210): [n, K], labels [n] → [n], in [−1, 1].

    Steep where the network wavers between two classes, flat where it is sure.
    """
    return margin(logits.softmax(1), y)


def targeted_margin(logits: Tensor, pair: Tensor) -> Tensor:
    """Logit of the target minus that of the label: [n, K], (label, target) [n, 2] → [n]."""
    return _of(logits, pair[:, 1]) - _of(logits, pair[:, 0])


def targeted_dlr(logits: Tensor, pair: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce & Hein 2020, eq. 7): [n, K >= 4], (label, target) [n, 2] → [n]."""
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, pair) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def dlr_if_possible(model: WhiteBoxModel) -> AttackLoss:
    """Return `dlr`, or `margin` with a notice on networks of two classes, where there is no third logit."""
    return _with_enough_classes(model, dlr, margin, 3)


def targeted_dlr_if_possible(model: WhiteBoxModel) -> AttackLoss:
    """Return `targeted_dlr`, or `targeted_margin` with a notice on networks of fewer than four classes."""
    return _with_enough_classes(model, targeted_dlr, targeted_margin, 4)


def likely_targets(model: WhiteBoxModel, x: Tensor, y: Tensor, targets: int) -> Tensor:
    """Return the most likely wrong classes in falling order: int64 [n, min(targets, K − 1)]; costs one query each."""
    logits = model.logits(x)
    wrong = logits.shape[1] - 1
    if wrong < targets:
        model.notice(f"{targets} target classes asked for, {wrong} used: the network has {wrong + 1} classes")
    return _others(logits, y).topk(min(targets, wrong), dim=1).indices


def nearest_targets(model: WhiteBoxModel, x: Tensor, logits: Tensor, y: Tensor, threat: Threat, targets: int) -> Tensor:
    """Return the wrong classes whose linearised boundaries are nearest, nearest first: int64 [n, min(targets, K − 1)].

    The distance is the margin over the dual norm of its gradient (MALT, Melamed et al. 2024, arXiv:2407.02240), from
    the logits [n, K] at x; asked for the nine likeliest classes (`CANDIDATES`), a gradient each.
    """
    likely = _others(logits, y).topk(min(CANDIDATES, logits.shape[1] - 1), dim=1).indices
    distances = []
    for pair in label_target_pairs(y, likely):
        gradient = model.gradient(x, pair, targeted_margin).gradient
        slope = (gradient * threat.steepest(gradient)).flatten(1).sum(1)
        distances.append(-targeted_margin(logits, pair) / slope.clamp_min(1e-30))
    order = torch.stack(distances, 1).argsort(dim=1, stable=True)[:, :targets]
    return likely.gather(1, order)


def label_target_pairs(y: Tensor, targets: Tensor) -> Tensor:
    """Return (label, target) for every target of every example: int64 [n], [n, k] → [k, n, 2]."""
    return torch.stack([y[:, None].expand_as(targets), targets], 2).transpose(0, 1)


def _with_enough_classes(model: WhiteBoxModel, ratio: AttackLoss, difference: AttackLoss, needed: int) -> AttackLoss:
    # Decided at each call: how many classes there are is known from logits only, and asking would cost a query.
    def loss(logits: Tensor, against: Tensor) -> Tensor:
        classes = logits.shape[1]
        if classes >= needed:
            return ratio(logits, against)
        model.notice(f"the DLR loss needs {needed} classes, the network has {classes}: attacked by its margin instead")
        return difference(logits, against)

    return loss


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], torch.full_like(logits[:, :1], -torch.inf))
