"""Is there a classifier at all? Where nothing is learnt, nothing can be robust, and no gradient is false."""

import torch
from torch import Tensor, nn

from robustbench_bio.core.stats import wilson
from robustbench_bio.evaluation.judge import checked_logits
from robustbench_bio.records.diagnosis import NO_CLASSIFIER, Check

REMEDY = "train it, or check its weights, the order of its classes and the range of its inputs"


def no_classifier(answers: Tensor, y: Tensor, classes: int) -> Check:
    """Return the check that fires for one answer to all examples, and for answers no better than chance.

    Chance is 1 / classes; an accuracy is better if its Wilson interval of 95 % lies above. Right and wrong examples
    count alike, so that these have to be examples as they come.

    Args:
        answers: int64 [n], the classes that the network gives.
        y: int64 [n], the right ones.
        classes: that it could give.
    """
    n, right = len(y), int((answers == y).sum())
    low, high = wilson(right, n)
    detail = f"{right:,} of {n:,} examples are right ({100 * right / n:.1f} %)"
    one = bool((answers == answers[0]).all()) and not bool((y == y[0]).all())
    chance = low <= 1 / classes
    if one:
        detail = f"it answers class {int(answers[0])} for all {n:,} examples: {REMEDY}"
    elif chance:
        interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        detail += f", no better than chance among {classes:,} classes ({interval}): {REMEDY}"
    values = {"accuracy": right / n, "low": low, "high": high}
    return Check(name=NO_CLASSIFIER, fired=one or chance, implies="inconclusive", detail=detail, values=values)


def classifies(model: nn.Module, x: Tensor, y: Tensor) -> Check:
    """Return the check `no_classifier` of a network on all examples: x [n, C, H, W] in [0, 1], y int64 [n]."""
    starts = range(0, len(y), 256)
    logits = torch.cat([checked_logits(model, x[i : i + 256], y[i : i + 256]) for i in starts])
    return no_classifier(logits.argmax(1), y, logits.shape[1])
