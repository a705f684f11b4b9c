"""What engines share that train one supernet: its weights, its checkpoint, its trace."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio import rules
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.records.card import Recipe
from robustbench_bio.rules import LayerRules, RuleOptions
from robustbench_bio.search.base import Engine, Labelled, SearchResult, SearchTask
from robustbench_bio.search.cells import discretise
from robustbench_bio.search.supernet.frozen import FrozenStatistics, frozen
from robustbench_bio.search.supernet.supernet import Supernet
from robustbench_bio.training.augmentation import augment
from robustbench_bio.training.checkpoint import in_part, load_optimiser, optimiser_tensors
from robustbench_bio.training.steps import (
    BatchOrder,
    Stopwatch,
    Tally,
    accuracy,
    cosine,
    learned_parameters,
    precision_context,
    require_finite,
)


@dataclass(frozen=True, kw_only=True)
class SupernetEngine(Engine):
    """An engine that trains one supernet by SGD with momentum and a cosine over the epochs.

    Args:
        batch_size: images in a step; what is left over at the end of an epoch is skipped.
        lr, min_lr: learning rate of the weights in the first epoch, and towards the end.
        grad_clip: largest norm of the weights' gradient.
    """

    epochs: int = 50
    batch_size: int = 64
    lr: float = 0.025
    min_lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    grad_clip: float = 5.0

    def __post_init__(self) -> None:
        at_least(epochs=(self.epochs, 1), batch_size=(self.batch_size, 1), min_lr=(self.min_lr, 0))
        at_least(momentum=(self.momentum, 0), weight_decay=(self.weight_decay, 0))
        if not self.lr > 0 or not self.grad_clip > 0:
            raise UserError(f"expected lr > 0 and grad_clip > 0, got {self.lr:g} and {self.grad_clip:g}")
        if self.min_lr > self.lr or self.momentum >= 1:
            raise UserError(f"expected min_lr <= lr and momentum < 1, got {self.min_lr:g} and {self.momentum:g}")

    def learning_rate(self, epoch: int) -> float:
        """Return the weights' learning rate in an epoch counted from 0: `lr` in the first, a cosine to `min_lr`."""
        return cosine(self.lr, self.min_lr, math.pi * epoch / self.epochs)


def build_supernet(task: SearchTask) -> Supernet:
    """Return the supernet of a task with its rules, weights drawn from their one law, alphas 1e-3·N(0, 1)."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, which fork_rng is told not to restore.
        torch.default_generator.manual_seed(torch_generator(task.seed, "supernet").initial_seed())
        net = Supernet(task.inputs, space=task.space, channels=task.channels, layers=task.layers)
    rules.attach(net, "genotype", seed=task.seed)
    rules.initialise(net, RuleOptions(), task.seed)
    net.draw_alphas(torch_generator(task.seed, "alphas"))
    return net.to(task.device)


E = TypeVar("E", bound=SupernetEngine)


class SupernetSearch(ABC, Generic[E]):
    """One search with one supernet; a subclass says how the alphas move."""

    def __init__(self, task: SearchTask, engine: E) -> None:
        self.task, self.engine = task, engine
        self.net = build_supernet(task)
        assert isinstance(self.net.rules, LayerRules)  # noqa: S101
        self.rules: LayerRules = self.net.rules
        self.fit, self.validation = task.fit.to(task.device), task.validation.to(task.device)
        self.epoch_steps = max(1, len(self.fit.y) // engine.batch_size)
        self.steps = engine.epochs * self.epoch_steps
        self.fit_order, self.validation_order = (
            BatchOrder(len(part.y), engine.batch_size, self.epoch_steps, task.seed, purpose)
            for part, purpose in ((self.fit, "order"), (self.validation, "validation order"))
        )
        self.learned = learned_parameters(self.net, self.rules)
        self.optimiser = torch.optim.SGD(
            self.learned, lr=engine.lr, momentum=engine.momentum, weight_decay=engine.weight_decay, foreach=True
        )
        self.frozen_statistics = FrozenStatistics(self.net, self.rules.assignment)
        self.step = 0
        self.trace: list[dict[str, float]] = []
        self.tally = Tally(task.device)
        self.checkpoint = task.open_checkpoint(engine)
        self._augmentation = Recipe(crop=task.crop, flip=task.flip)

    @abstractmethod
    def move_alphas(self, line: Callable[[str], None]) -> bool:
        """Do what happens to the alphas before step `self.step`; false if the deadline came first."""

    @abstractmethod
    def alpha_optimiser(self) -> torch.optim.Optimizer | None:
        """Return the optimiser of the alphas, whose state belongs into the checkpoint."""

    def run(self, progress: Progress | None) -> SearchResult:
        """Search until the last epoch or the deadline."""
        progress = progress or silent
        self._restore()
        self.net.train()
        epoch_line, watch = "", Stopwatch(self.step)

        def line(text: str) -> None:
            progress(self.step, self.steps, text or epoch_line)

        while self.step < self.steps and not self.task.expired():
            if not self.move_alphas(line):
                break
            self._learn()
            if self.step % self.epoch_steps == 0:
                epoch_line = self._end_epoch() + watch.left(self.step, self.steps)
            if self.checkpoint.due:
                self._save()
            line(epoch_line)
        self._save()
        normal, reduce = self.net.alphas
        genotype = discretise(self.task.space, normal, reduce, name=self.task.name, source=self.task.source)
        return SearchResult(genotype, self.trace, self.step >= self.steps)

    def fit_batch(self) -> tuple[Tensor, Tensor]:
        """Return what weights learn from in the present step: augmented x [n, C, H, W] in [0, 1], and y [n]."""
        x, y = self._batch(self.fit, self.fit_order)
        return augment(x, self._augmentation, torch_generator(self.task.seed, "augment", self.step)), y

    def validation_batch(self) -> tuple[Tensor, Tensor]:
        """Return what alphas learn from in the present step: x [n, C, H, W] in [0, 1], not augmented, and y [n]."""
        return self._batch(self.validation, self.validation_order)

    def _batch(self, part: Labelled, order: BatchOrder) -> tuple[Tensor, Tensor]:
        rows = order.batch(self.step).to(part.y.device)
        return part.x[rows].float() / 255, part.y[rows]

    def _learn(self) -> None:
        x, y = self.fit_batch()
        losses: list[Tensor] = []

        def loss(logits: Tensor) -> Tensor:
            losses.append(F.cross_entropy(logits.float(), y, reduction="none"))
            return losses[-1]

        for group in self.optimiser.param_groups:
            group["lr"] = self.engine.learning_rate(self.step // self.epoch_steps)
        self.optimiser.zero_grad(set_to_none=True)
        with frozen(self.net.alphas), precision_context(self.task.precision, self.task.device):
            logits = self.rules.backward(self.net, x, loss)
        require_finite(losses[-1], f"the search diverged at step {self.step + 1}: the loss is not finite")
        nn.utils.clip_grad_norm_(self.learned, self.engine.grad_clip)
        self.optimiser.step()
        self.rules.step(self.net)
        self.tally.add(losses[-1].detach(), logits, y)
        self.step += 1

    def _end_epoch(self) -> str:
        epoch = self.step // self.epoch_steps
        row = {
            "epoch": float(epoch),
            "lr": self.optimiser.param_groups[0]["lr"],
            **self.tally.close_epoch(),
            "val_accuracy": accuracy(self.net, *self.validation),
        }
        for kind, alpha in zip(("normal", "reduce"), self.net.alphas, strict=True):
            row[f"entropy_{kind}"] = entropy(alpha)
        self.trace.append(row)
        return f"epoch {epoch}/{self.engine.epochs}: loss {row['train_loss']:.3f}, val {row['val_accuracy']:.3f}"

    def _save(self) -> None:
        tensors = in_part("net", self.net.state_dict())
        tensors |= in_part("alphas", {str(i): alpha for i, alpha in enumerate(self.net.alphas)})
        tensors |= in_part("weights", optimiser_tensors(self.optimiser))
        if (second := self.alpha_optimiser()) is not None:
            tensors |= in_part("alpha", optimiser_tensors(second))
        self.checkpoint.save({"step": self.step, "trace": self.trace, "running": self.tally.state()}, tensors)

    def _restore(self) -> None:
        saved = self.checkpoint.restore(self.task.device)
        if saved is None:
            return
        self.step, self.trace = saved.state["step"], saved.state["trace"]
        self.tally.load(saved.state["running"])
        self.net.load_state_dict(saved.part("net"))
        with torch.no_grad():
            for i, alpha in enumerate(self.net.alphas):
                alpha.copy_(saved.part("alphas")[str(i)])
        load_optimiser(self.optimiser, saved.part("weights"))
        if (second := self.alpha_optimiser()) is not None:
            load_optimiser(second, saved.part("alpha"))


def entropy(alphas: Tensor) -> float:
    """Return the mean entropy of softmax(alphas) [edges, primitives] over the edges, in nats."""
    log = alphas.detach().double().log_softmax(1)
    return -(log.exp() * log).sum(1).mean().item()
