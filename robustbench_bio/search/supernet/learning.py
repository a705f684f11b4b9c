"""What engines share that train one supernet: its weights, its checkpoint, its trace."""

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_bio import rules
from robustbench_bio.core.errors import DivergedError, UserError
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.records.card import Recipe
from robustbench_bio.rules import LayerRules, RuleOptions
from robustbench_bio.search.base import Engine, Found, Labelled, Task
from robustbench_bio.search.cells import discretise
from robustbench_bio.search.supernet.supernet import Supernet
from robustbench_bio.training import checkpoint
from robustbench_bio.training import loop as train
from robustbench_bio.training.augmentation import augment


@dataclass(frozen=True, kw_only=True)
class SupernetEngine(Engine):
    """An engine that trains one supernet by SGD with momentum and a cosine over the epochs.

    Args:
        epochs: passes over the images that weights learn from.
        batch_size: images in a step; what is left over at the end of an epoch is skipped.
        lr, min_lr: learning rate of the weights in the first epoch, and towards the end.
        momentum, weight_decay: of SGD.
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
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


def supernet(task: Task) -> Supernet:
    """Return the supernet of a task with its rules, weights drawn from their one law, alphas 1e-3·N(0, 1)."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, which fork_rng is told not to restore.
        torch.default_generator.manual_seed(torch_generator(task.seed, "supernet").initial_seed())
        net = Supernet(task.inputs, space=task.space, channels=task.channels, layers=task.layers)
    rules.attach(net, "genotype", seed=task.seed)
    rules.initialise(net, RuleOptions(), task.seed)
    net.draw_alphas(torch_generator(task.seed, "alphas"))
    return net.to(task.device)


@contextlib.contextmanager
def frozen(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Spare backward passes the gradients of these tensors for the duration of the block."""
    learning = [tensor for tensor in tensors if tensor.requires_grad]
    for tensor in learning:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in learning:
            tensor.requires_grad_(True)


class Unnoticed:
    """Lets passes in train mode leave no trace in a network; batch norm still uses the batch's statistics.

    Args:
        net: the network.
        ruled: names of the layers under rules; they are told that nobody trains, so that Hebbian rules do not
            count what they see.
    """

    def __init__(self, net: nn.Module, ruled: Iterable[str]) -> None:
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        self._layers = [net.get_submodule(name) for name in ruled]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Restore batch norm's running statistics after the block."""
        modes = [layer.training for layer in self._layers]
        _copy(self._kept, self._buffers)
        for layer in self._layers:
            layer.training = False
        try:
            yield
        finally:
            _copy(self._buffers, self._kept)
            for layer, mode in zip(self._layers, modes, strict=True):
                layer.training = mode


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)  # a supernet has thousands


E = TypeVar("E", bound=SupernetEngine)


class SupernetSearch(ABC, Generic[E]):
    """One search with one supernet; a subclass says how the alphas move.

    Args:
        task: what to search with.
        engine: hyper-parameters.
    """

    def __init__(self, task: Task, engine: E) -> None:
        self.task, self.engine = task, engine
        self.net = supernet(task)
        assert isinstance(self.net.rules, LayerRules)  # noqa: S101
        self.rules: LayerRules = self.net.rules
        self.fit, self.validation = task.fit.to(task.device), task.validation.to(task.device)
        self.epoch_steps = max(1, len(self.fit.y) // engine.batch_size)
        self.steps = engine.epochs * self.epoch_steps
        local = {id(p) for p in self.rules.local_parameters(self.net)}
        self.learned = [p for p in self.net.parameters() if id(p) not in local]
        self.optimiser = torch.optim.SGD(
            self.learned, lr=engine.lr, momentum=engine.momentum, weight_decay=engine.weight_decay, foreach=True
        )
        self.unnoticed = Unnoticed(self.net, self.rules.assignment)
        self.step = 0
        self.trace: list[dict[str, float]] = []
        self.running = {"loss": 0.0, "correct": 0.0, "n": 0.0}
        self._identity = task.identity(engine)
        self._augmentation = Recipe(crop=task.crop, flip=task.flip)

    @abstractmethod
    def move_alphas(self, line: Callable[[str], None]) -> bool:
        """Do what happens to the alphas before step `self.step`; false if the deadline came first."""

    @abstractmethod
    def alpha_optimiser(self) -> torch.optim.Optimizer | None:
        """Return the optimiser of the alphas, whose state belongs into the checkpoint."""

    def run(self, progress: train.Progress | None) -> Found:
        """Search until the last epoch or the deadline."""
        self._restore()
        saved = time.monotonic()
        self.net.train()
        said = ""

        def line(text: str) -> None:
            if progress:
                progress(self.step, self.steps, text or said)

        while self.step < self.steps and not self.task.expired():
            if not self.move_alphas(line):
                break
            self._learn()
            if self.step % self.epoch_steps == 0:
                said = self._end_epoch()
            if time.monotonic() - saved > train.CHECKPOINT_SECONDS:
                self._save()
                saved = time.monotonic()
            line(said)
        self._save()
        normal, reduce = self.net.alphas
        genotype = discretise(self.task.space, normal, reduce, name=self.task.name, source=self.task.source)
        return Found(genotype, self.trace, self.step >= self.steps)

    def batch(self, part: Labelled, purpose: str, size: int) -> tuple[Tensor, Tensor]:
        """Return the batch of the present step, x [n, C, H, W] in [0, 1] and y [n], in a new order each epoch."""
        epoch, index = divmod(self.step, self.epoch_steps)
        order = torch.randperm(len(part.y), generator=torch_generator(self.task.seed, purpose, epoch))
        first = index * size % len(order)
        rows = torch.cat([order, order])[first : first + min(size, len(order))].to(part.y.device)
        return part.x[rows].float() / 255, part.y[rows]

    def fit_batch(self) -> tuple[Tensor, Tensor]:
        """Return the augmented batch that weights learn from in the present step."""
        x, y = self.batch(self.fit, "order", self.engine.batch_size)
        return augment(x, self._augmentation, torch_generator(self.task.seed, "augment", self.step)), y

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of forward and backward passes."""
        if self.task.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.task.device).type, dtype=torch.bfloat16)

    def _learn(self) -> None:
        x, y = self.fit_batch()
        seen: list[Tensor] = []

        def loss(logits: Tensor) -> Tensor:
            seen.append(F.cross_entropy(logits.float(), y, reduction="none"))
            return seen[-1]

        for group in self.optimiser.param_groups:
            group["lr"] = self.engine.learning_rate(self.step // self.epoch_steps)
        self.optimiser.zero_grad(set_to_none=True)
        with frozen(self.net.alphas), self.autocast():
            logits = self.rules.backward(self.net, x, loss)
        if not torch.isfinite(seen[-1]).all():
            raise DivergedError(
                f"the search diverged at step {self.step + 1}: the loss is not finite; try a smaller lr"
            )
        nn.utils.clip_grad_norm_(self.learned, self.engine.grad_clip)
        self.optimiser.step()
        self.rules.step(self.net)
        self.running["loss"] += seen[-1].sum().item()
        self.running["correct"] += (logits.argmax(1) == y).sum().item()
        self.running["n"] += len(y)
        self.step += 1

    def _end_epoch(self) -> str:
        epoch = self.step // self.epoch_steps
        row = {
            "epoch": float(epoch),
            "lr": self.optimiser.param_groups[0]["lr"],
            "train_loss": self.running["loss"] / self.running["n"],
            "train_accuracy": self.running["correct"] / self.running["n"],
            "val_accuracy": train.accuracy(self.net, *self.validation),
        }
        for kind, alpha in zip(("normal", "reduce"), self.net.alphas, strict=True):
            row[f"entropy_{kind}"] = entropy(alpha)
        self.trace.append(row)
        self.running = dict.fromkeys(self.running, 0.0)
        return f"epoch {epoch}/{self.engine.epochs}: loss {row['train_loss']:.3f}, val {row['val_accuracy']:.3f}"

    def _save(self) -> None:
        tensors = {f"net/{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"alphas/{i}": alpha for i, alpha in enumerate(self.net.alphas)}
        tensors |= checkpoint.optimiser_tensors("weights", self.optimiser)
        if (second := self.alpha_optimiser()) is not None:
            tensors |= checkpoint.optimiser_tensors("alpha", second)
        state = {"step": self.step, "trace": self.trace, "running": self.running}
        checkpoint.save(self.task.checkpoint, self._identity, checkpoint.Saved(state, tensors))

    def _restore(self) -> None:
        saved = checkpoint.restore(self.task.checkpoint, self._identity, self.task.device)
        if saved is None:
            return
        self.step, self.trace = saved.state["step"], saved.state["trace"]
        self.running = saved.state["running"]
        own = {name.removeprefix("net/"): value for name, value in saved.tensors.items() if name.startswith("net/")}
        self.net.load_state_dict(own)
        with torch.no_grad():
            for i, alpha in enumerate(self.net.alphas):
                alpha.copy_(saved.tensors[f"alphas/{i}"])
        checkpoint.load_optimiser("weights", self.optimiser, saved.tensors)
        if (second := self.alpha_optimiser()) is not None:
            checkpoint.load_optimiser("alpha", second, saved.tensors)


def entropy(alphas: Tensor) -> float:
    """Return the mean entropy of softmax(alphas) [edges, primitives] over the edges, in nats."""
    log = alphas.detach().double().log_softmax(1)
    return -(log.exp() * log).sum(1).mean().item()
