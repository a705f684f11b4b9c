"""What the steps of a training and of a supernet's training have in common: batches, rates, sums, checks."""

import contextlib
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import DivergedError
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets.base import Net, eval_mode
from robustbench_bio.records.base import Precision
from robustbench_bio.rules import RuleSet


def split(y: np.ndarray[Any, np.dtype[np.int64]], fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows into those to learn from and those held out, `fraction` of every class: ascending int64 [n]."""
    held: list[int] = []
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        order = torch.randperm(len(rows), generator=torch_generator(seed, "held out", int(label))).numpy()
        held += rows[order[: round(fraction * len(rows))]].tolist()
    mask = torch.zeros(len(y), dtype=torch.bool)
    mask[held] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


class BatchOrder:
    """Which of so many rows each step takes: a new order every epoch, a function of seed, purpose and epoch alone.

    Where the batches of an epoch need more rows than there are, the order starts again; what is left over at its end is
    skipped.
    """

    def __init__(self, rows: int, size: int, epoch_steps: int, seed: int, purpose: str = "order") -> None:
        self.rows, self.size, self.epoch_steps = rows, min(size, rows), epoch_steps
        self.seed, self.purpose = seed, purpose
        self._requested = size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Tensor:
        """Return the rows of a step counted from 0, int64 [size], on the CPU."""
        epoch, index = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            order = torch.randperm(self.rows, generator=torch_generator(self.seed, self.purpose, epoch))
            self._epoch, self._order = epoch, torch.cat([order, order])
        first = index * self._requested % self.rows
        return self._order[first : first + self.size]


class Tally:
    """Loss and hits of an epoch so far, kept on the device: reading them after every step would stall a GPU."""

    def __init__(self, device: str) -> None:
        # float64, which holds sums of float32 as JSON can write them: an interruption changes no digit.
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._n = 0.0

    def add(self, losses: Tensor, logits: Tensor, y: Tensor) -> None:
        """Count a batch: losses [n], logits [n, classes], labels y [n]."""
        self._sums += torch.stack([losses.sum().double(), (logits.argmax(1) == y).sum().double()])
        self._n += len(y)

    def state(self) -> dict[str, float]:
        """Return the sums, as a checkpoint keeps them."""
        loss, correct = self._sums.tolist()
        return {"loss": loss, "correct": correct, "n": self._n}

    def load(self, state: dict[str, float]) -> None:
        """Go on from sums that `state` returned."""
        self._sums.copy_(torch.tensor([state["loss"], state["correct"]], dtype=torch.float64))
        self._n = state["n"]

    def close_epoch(self) -> dict[str, float]:
        """Return the epoch's mean loss and accuracy, and start the next one at zero."""
        state = self.state()
        self.load(dict.fromkeys(state, 0.0))
        return {"train_loss": state["loss"] / state["n"], "train_accuracy": state["correct"] / state["n"]}


def cosine(start: float, end: float, phase: float) -> float:
    """Return a rate between `start` at phase 0 and `end` at phase π, along half a cosine (Loshchilov & Hutter 2017)."""
    return end + (start - end) * 0.5 * (1 + math.cos(phase))


def precision_context(precision: Precision, device: str) -> contextlib.AbstractContextManager[object]:
    """Return the context of forward and backward passes in a precision."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def learned_parameters(net: Net, rules: RuleSet) -> list[nn.Parameter]:
    """Return the parameters that an optimiser moves: all but those that rules change by themselves."""
    local = {id(parameter) for parameter in rules.local_parameters(net)}
    return [parameter for parameter in net.parameters() if id(parameter) not in local]


def require_finite(values: Tensor, message: str) -> None:
    """Raise `DivergedError` if any value is infinite or not a number."""
    if not torch.isfinite(values).all():
        raise DivergedError(f"{message}; try a smaller lr")


class Stopwatch:
    """Tells the time left of work whose units take equally long, from the units done since it was made."""

    def __init__(self, done: int) -> None:
        self._first, self._started = done, time.monotonic()

    def left(self, done: int, total: int) -> str:
        """Return such as ", 12 min left", to end a line with; "" before the first unit and after the last."""
        if done <= self._first or done >= total:
            return ""
        seconds = (time.monotonic() - self._started) / (done - self._first) * (total - done)
        if seconds < 60:
            return f", {math.ceil(seconds)} s left"
        minutes = round(seconds / 60)
        return f", {minutes} min left" if minutes < 90 else f", {seconds / 3600:.1f} h left"


@torch.no_grad()
def accuracy(net: Net, x: Tensor, y: Tensor, batch_size: int = 500) -> float:
    """Return the fraction of uint8 images [N, C, H, W] that the network classifies correctly in eval mode."""
    with eval_mode(net):
        correct = sum(
            int((net(xs.float() / 255).argmax(1) == ys).sum())
            for xs, ys in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
        )
    return correct / len(y)
