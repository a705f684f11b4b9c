"""One training loop: data × network × rules × optimiser × optional adversary."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.pgd import PGD
from robustbench_bio.attacks.tpgd import TPGD, divergence
from robustbench_bio.core.errors import DivergedError, UserError
from robustbench_bio.core.files import write_atomically
from robustbench_bio.core.rng import ExampleRng, torch_generator
from robustbench_bio.datasets.base import Examples
from robustbench_bio.nets.base import Net
from robustbench_bio.records.card import Adversary, Recipe
from robustbench_bio.records.threat import Threat
from robustbench_bio.rules import RuleSet
from robustbench_bio.training.augmentation import augment

CHECKPOINT_SECONDS = 60.0

#: Called with (steps done, steps in all, one line on the last epoch).
Progress = Callable[[int, int, str], None]


@dataclass
class Training:
    """How far a training has come.

    Attributes:
        history: one row per finished epoch.
        step: optimiser steps made.
        steps: optimiser steps of the whole recipe.
        best_epoch: epoch whose weights are kept, counted from 1; 0 before the first.
        val_accuracy: of the kept weights on the held-out part of train, None without one.
    """

    steps: int
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    val_accuracy: float | None = None
    running: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "correct": 0.0, "n": 0.0})

    @property
    def finished(self) -> bool:
        """Whether the recipe was carried out to its end."""
        return self.step >= self.steps


def train(
    net: Net,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    max_minutes: float | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Training:
    """Train a network in place by its rules and leave it in eval mode with the selected weights.

    Everything random is drawn from (seed, step), so the same call gives the same weights on the same machine,
    and a training that was interrupted at any step continues to the same weights.

    Args:
        net: network with rules attached.
        examples: the train split; `recipe.val_fraction` of each class is held out to select the epoch.
        recipe: how to train.
        seed: of order, augmentation, adversary and drop path.
        checkpoint: file to continue from, and to write at least every minute; None keeps nothing.
        max_minutes: stop after this time with a checkpoint, `finished` false.
        device: where to train.
        progress: called after every step.

    Raises:
        UserError: too few examples, a checkpoint of another training, or weights that diverge.
    """
    loop = _Loop(net.to(device), examples, recipe, seed, device, checkpoint)
    deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device != "cpu" else []):
        loop.run(deadline, progress)
    return loop.state


class _Loop:
    def __init__(
        self, net: Net, examples: Examples, recipe: Recipe, seed: int, device: str, checkpoint: Path | None
    ) -> None:
        assert isinstance(net.rules, RuleSet)  # noqa: S101
        self.net, self.rules, self.recipe, self.seed, self.device = net, net.rules, recipe, seed, device
        self.checkpoint = checkpoint
        if recipe.drop_path and net.drop_path is None:
            raise UserError("expected drop_path 0 for a network without drop path, only cells have one")
        if recipe.auxiliary_weight and net.auxiliary_head is None:
            raise UserError("expected a network with an auxiliary head for auxiliary_weight: set net.auxiliary=true")
        fit, held_out = split(examples.y, recipe.val_fraction, seed)
        if len(fit) < 2 or (recipe.val_fraction > 0 and len(held_out) == 0):
            raise UserError(f"expected enough examples to train and hold some out, got {len(examples)}")
        self.data_sha256 = examples.sha256()
        x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
        self.x, self.y = x[fit].to(device), y[fit].to(device)
        self.x_val, self.y_val = x[held_out].to(device), y[held_out].to(device)
        self.epoch_steps = max(1, len(fit) // recipe.batch_size)
        self.state = Training(steps=recipe.epochs * self.epoch_steps)
        local = {id(p) for p in self.rules.local_parameters(net)}
        self.learned = [p for p in net.parameters() if id(p) not in local]
        self.optimiser = _optimiser(self.learned, recipe)
        self.best: dict[str, Tensor] = {}
        self.ema = _floats(net) if recipe.ema else {}
        self.order, self.ordered = torch.empty(0, dtype=torch.int64), -1
        # Loss and hits of this epoch, kept on the device: reading them after every step would stall a GPU.
        self.tally = torch.zeros(2, dtype=torch.float64, device=device)
        self.last_saved = time.monotonic()

    def run(self, deadline: float, progress: Progress | None) -> None:
        self._restore()
        self.net.train()
        line = ""
        while not self.state.finished and time.monotonic() < deadline:
            self._step()
            if self.state.step % self.epoch_steps == 0:
                line = self._end_epoch()
            if time.monotonic() - self.last_saved > CHECKPOINT_SECONDS:
                self._save()
            if progress:
                progress(self.state.step, self.state.steps, line)
        self._save()
        if self.best:
            self.net.load_state_dict(self.best)
        self.net.eval()

    def _step(self) -> None:
        step = self.state.step
        epoch, index = divmod(step, self.epoch_steps)
        if epoch != self.ordered:
            self.order = torch.randperm(len(self.y), generator=torch_generator(self.seed, "order", epoch))
            self.ordered = epoch
        rows = self.order[index * self.recipe.batch_size :][: self.recipe.batch_size]
        here = rows.to(self.device, non_blocking=True)
        x, y = self.x[here].float() / 255, self.y[here]
        x = augment(x, self.recipe, torch_generator(self.seed, "augment", step))
        seed = torch_generator(self.seed, "network", step).initial_seed()
        torch.default_generator.manual_seed(seed)
        if x.is_cuda:
            torch.cuda.manual_seed_all(seed)
        self._set_schedules()
        self.optimiser.zero_grad(set_to_none=True)
        logits, losses = self._backward(x, y, rows)
        if self.recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.learned, self.recipe.grad_clip)
        self.optimiser.step()
        self.rules.step(self.net)
        self._track(logits, losses, y)
        if not torch.isfinite(losses).all():  # last, so that a GPU has the whole step before it is waited for
            raise DivergedError(f"training diverged at step {step + 1}: the loss is not finite; try a smaller lr")
        self.state.step += 1

    def _backward(self, x: Tensor, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the gradients for one batch; return logits and loss per example of what was trained on."""
        adversary = self.recipe.adversary
        if adversary is not None:
            x_adv = self._attacked(x, y, rows, adversary)
            x = torch.cat([x, x_adv]) if adversary.attack == "tpgd" else x_adv
        seen: list[Tensor] = []

        def loss(logits: Tensor) -> Tensor:
            logits = logits.float()
            if adversary is not None and adversary.attack == "tpgd":
                clean, attacked = logits.chunk(2)
                kl = divergence(attacked, clean.softmax(1))
                per_example = self._cross_entropy(clean, y) + adversary.beta * kl
                seen.append(per_example.detach())
                return torch.cat([per_example, per_example])  # the caller's mean is over 2n rows
            per_example = self._cross_entropy(logits, y)
            if auxiliary:
                per_example = per_example + self.recipe.auxiliary_weight * self._cross_entropy(auxiliary[-1], y)
            seen.append(per_example.detach())
            return per_example

        with self._auxiliary() as auxiliary, self._autocast():
            logits = self.rules.backward(self.net, x, loss)
        return logits[-len(y) :], seen[-1]

    def _attacked(self, x: Tensor, y: Tensor, rows: Tensor, adversary: Adversary) -> Tensor:
        attack: PGD | TPGD
        if adversary.attack == "pgd":
            attack = PGD(steps=adversary.steps, step_size=adversary.step_size, early_exit=False)
        else:
            attack = TPGD(steps=adversary.steps, step_size=adversary.step_size, early_exit=False)
        rng = ExampleRng(self.seed, rows, f"adversary {self.state.step}")
        self.net.eval()
        with self._autocast():
            proposal = attack.perturb(WhiteBoxModel(self.net, traced=False), x, y, Threat("linf", adversary.eps), rng)
        self.net.train()
        return proposal.x_adv

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), y, reduction="none", label_smoothing=self.recipe.label_smoothing)

    @contextlib.contextmanager
    def _auxiliary(self) -> Iterator[list[Tensor]]:
        """Collect what the auxiliary head says during the block; empty without one or with weight zero."""
        seen: list[Tensor] = []
        head = self.net.auxiliary_head
        if head is None or self.recipe.auxiliary_weight == 0 or self.recipe.adversary is not None:
            yield seen
            return
        hook = head.register_forward_hook(lambda _module, _args, out: seen.append(out))
        try:
            yield seen
        finally:
            hook.remove()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.recipe.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def _set_schedules(self) -> None:
        recipe, step = self.recipe, self.state.step
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step, self.epoch_steps)
        ramp = step / self.state.steps if recipe.drop_path_schedule == "linear" else 1.0
        if recipe.drop_path:
            self.net.drop_path = recipe.drop_path * ramp

    def _track(self, logits: Tensor, losses: Tensor, y: Tensor) -> None:
        self.tally += torch.stack([losses.sum().double(), (logits.argmax(1) == y).sum().double()])
        self.state.running["n"] += len(y)
        if self.recipe.ema:
            for name, value in _floats(self.net).items():
                self.ema[name].lerp_(value, 1 - self.recipe.ema)

    def _settle(self) -> None:
        """Let the state tell what the device has counted."""
        self.state.running["loss"], self.state.running["correct"] = self.tally.tolist()

    def _end_epoch(self) -> str:
        state, recipe = self.state, self.recipe
        self._settle()
        own = {name: value.clone() for name, value in self.net.state_dict().items()}
        kept = own | self.ema
        if self.ema:
            self.net.load_state_dict(kept)
        val = accuracy(self.net, self.x_val, self.y_val) if len(self.y_val) else None
        if self.ema:
            self.net.load_state_dict(own)
        epoch = state.step // self.epoch_steps
        if not all(torch.isfinite(value).all() for value in kept.values()):
            raise DivergedError(f"training diverged in epoch {epoch}: weights are not finite; try a smaller lr")
        row = {
            "epoch": float(epoch),
            "lr": self.optimiser.param_groups[0]["lr"],
            "train_loss": state.running["loss"] / state.running["n"],
            "train_accuracy": state.running["correct"] / state.running["n"],
        }
        if val is not None:
            row["val_accuracy"] = val
        state.history.append(row)
        state.running = {"loss": 0.0, "correct": 0.0, "n": 0.0}
        self.tally.zero_()
        if recipe.select == "last" or val is None or state.val_accuracy is None or val >= state.val_accuracy:
            self.best, state.best_epoch, state.val_accuracy = (
                {k: v.clone() for k, v in kept.items()},
                epoch,
                val,
            )
        shown = "" if val is None else f", val accuracy {val:.3f}"
        return f"epoch {epoch}/{recipe.epochs}: loss {row['train_loss']:.3f}{shown}"

    def _identity(self) -> str:
        return json.dumps(
            {
                "recipe": self.recipe.canonical(),
                "seed": self.seed,
                "net": self.net.description,
                "data": self.data_sha256,
            }
        )

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        self._settle()
        tensors = {f"net/{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()} | {f"ema/{k}": v for k, v in self.ema.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
        tensors = {k: v.detach().clone().contiguous().cpu() for k, v in tensors.items()}
        about = {"identity": self._identity(), "state": json.dumps(vars(self.state))}
        write_atomically(self.checkpoint, save_safetensors(tensors, metadata=about))
        self.last_saved = time.monotonic()

    def _restore(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            with safe_open(self.checkpoint, framework="pt", device=self.device) as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot continue from {self.checkpoint}: {error}: delete it to start anew") from None
        if about.get("identity") != self._identity():
            raise UserError(
                f"{self.checkpoint} belongs to a training with another recipe, seed, network or data: "
                "name another --out, or delete it to start anew"
            )
        self.state = Training(**json.loads(about["state"]))
        self.tally.copy_(torch.tensor([self.state.running["loss"], self.state.running["correct"]], dtype=torch.float64))
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "best": {}, "ema": {}}
        slots: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "optimiser":
                i, _, key = rest.partition("/")
                slots.setdefault(int(i), {})[key] = tensor
            else:
                parts[kind][rest] = tensor
        self.net.load_state_dict(parts["net"])
        self.best, self.ema = parts["best"], parts["ema"]
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": slots})


def _floats(net: Net) -> dict[str, Tensor]:
    """Return copies of what an exponential moving average may average."""
    return {k: v.detach().clone() for k, v in net.state_dict().items() if v.is_floating_point()}


def _optimiser(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def learning_rate(recipe: Recipe, step: int, epoch_steps: int) -> float:
    """Return the learning rate of one step: linear warm-up from zero, then a cosine to `min_lr` after the last."""
    warmup = recipe.warmup_epochs * epoch_steps
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, recipe.epochs * epoch_steps - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def split(y: np.ndarray[Any, np.dtype[np.int64]], fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows into those to learn from and those held out, the same fraction of every class.

    Returns:
        Two int64 index tensors in ascending order.
    """
    held: list[int] = []
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        order = torch.randperm(len(rows), generator=torch_generator(seed, "held out", int(label))).numpy()
        held += rows[order[: round(fraction * len(rows))]].tolist()
    mask = torch.zeros(len(y), dtype=torch.bool)
    mask[held] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


@torch.no_grad()
def accuracy(net: Net, x: Tensor, y: Tensor, batch_size: int = 500) -> float:
    """Return the fraction of uint8 images [N, C, H, W] that the network classifies correctly in eval mode."""
    was_training = net.training
    net.eval()
    correct = sum(
        int((net(xs.float() / 255).argmax(1) == ys).sum())
        for xs, ys in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
    )
    net.train(was_training)
    return correct / len(y)
