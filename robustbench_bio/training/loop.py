"""One training loop: data × network × rules × optimiser × optional adversary."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.datasets.base import Examples
from robustbench_bio.nets.base import Net, eval_mode
from robustbench_bio.records.card import Recipe
from robustbench_bio.rules import RuleSet
from robustbench_bio.training.augmentation import augment, scaled
from robustbench_bio.training.checkpoint import Checkpoint, in_part, load_optimiser, optimiser_tensors
from robustbench_bio.training.objective import Objective
from robustbench_bio.training.steps import (
    BatchOrder,
    Stopwatch,
    Tally,
    accuracy,
    cosine,
    learned_parameters,
    require_finite,
    split,
)


@dataclass
class Training:
    """How far a training has come: `step` of `steps` optimiser steps, one row of history for each finished epoch."""

    steps: int
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    """Whose weights are kept, counted from 1; 0 before the first."""
    val_accuracy: float | None = None
    """Of the kept weights on the held-out part of train, None without one."""

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

    `recipe.val_fraction` of each class is held out to select the epoch. The checkpoint is continued from, and written
    at least every minute; a training that `max_minutes` stops leaves one, and is not finished. `progress` is called
    after every step, with a line on the last epoch and the time left.

    Raises:
        UserError: too few examples, or a checkpoint of another training.
        DivergedError: a loss or weights that are no longer finite.
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
        if recipe.drop_path and net.drop_path is None:
            raise UserError("expected drop_path 0 for a network without drop path, only cells have one")
        if recipe.auxiliary_weight and net.auxiliary_head is None:
            raise UserError("expected a network with an auxiliary head for auxiliary_weight: set net.auxiliary=true")
        self.net, self.rules, self.recipe, self.seed, self.device = net, net.rules, recipe, seed, device
        self._hold_out(examples)
        self.epoch_steps = max(1, len(self.y) // recipe.batch_size)
        self.order = BatchOrder(len(self.y), recipe.batch_size, self.epoch_steps, seed)
        self.objective = Objective(net, self.rules, recipe, seed, device)
        self.state = Training(steps=recipe.epochs * self.epoch_steps)
        self.learned = learned_parameters(net, self.rules)
        self.optimiser = _optimiser(self.learned, recipe)
        self.best: dict[str, Tensor] = {}
        if recipe.grow:
            _takes(net, self.x[:2], min(recipe.grow))
        self.ema = _floats(net) if recipe.ema else {}
        self.tally = Tally(device)
        self.checkpoint = Checkpoint(
            checkpoint, self._identity(examples), "a training with another recipe, seed, network or data"
        )

    def _hold_out(self, examples: Examples) -> None:
        fit, held_out = split(examples.y, self.recipe.val_fraction, self.seed)
        if len(fit) < 2 or (self.recipe.val_fraction > 0 and len(held_out) == 0):
            raise UserError(f"expected enough examples to train and hold some out, got {len(examples)}")
        x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
        self.x, self.y = x[fit].to(self.device), y[fit].to(self.device)
        self.x_val, self.y_val = x[held_out].to(self.device), y[held_out].to(self.device)

    def run(self, deadline: float, progress: Progress | None) -> None:
        self._restore()
        self.net.train()
        line, watch = "", Stopwatch(self.state.step)
        while not self.state.finished and time.monotonic() < deadline:
            self._step()
            if self.state.step % self.epoch_steps == 0:
                line = self._end_epoch() + watch.left(self.state.step, self.state.steps)
            if self.checkpoint.due:
                self._save()
            if progress:
                progress(self.state.step, self.state.steps, line)
        self._save()
        if self.best:
            self.net.load_state_dict(self.best)
        self.net.eval()

    def _step(self) -> None:
        step = self.state.step
        rows = self.order.batch(step)
        chosen = rows.to(self.device, non_blocking=True)
        x, y = self.x[chosen].float() / 255, self.y[chosen]
        x = augment(x, self.recipe, torch_generator(self.seed, "augment", step))
        x = scaled(x, self._side(step))
        self._seed_network(step)
        self._set_schedules()
        self.optimiser.zero_grad(set_to_none=True)
        logits, losses = self.objective.backward(x, y, rows, step)
        if self.recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.learned, self.recipe.grad_clip)
        self.optimiser.step()
        self.rules.step(self.net)
        self.tally.add(losses, logits, y)
        if self.recipe.ema:
            for name, value in _floats(self.net).items():
                self.ema[name].lerp_(value, 1 - self.recipe.ema)
        # Last, so that a GPU has the whole step before it is waited for.
        require_finite(losses, f"training diverged at step {step + 1}: the loss is not finite")
        self.state.step += 1

    def _side(self, step: int) -> int:
        """Return the side of the images of a step."""
        sides = [*self.recipe.grow, self.x.shape[-1]]
        return sides[step * len(sides) // self.state.steps]

    def _seed_network(self, step: int) -> None:
        """Seed torch's own generators, which layers such as drop path draw from; `train` restores them."""
        seed = torch_generator(self.seed, "network", step).initial_seed()
        torch.default_generator.manual_seed(seed)
        if self.x.is_cuda:
            torch.cuda.manual_seed_all(seed)

    def _set_schedules(self) -> None:
        recipe, step = self.recipe, self.state.step
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step, self.epoch_steps)
        ramp = step / self.state.steps if recipe.drop_path_schedule == "linear" else 1.0
        if recipe.drop_path:
            self.net.drop_path = recipe.drop_path * ramp

    def _end_epoch(self) -> str:
        """Judge and maybe keep the weights, add to the history; return a line on the epoch."""
        state, recipe = self.state, self.recipe
        own = {name: value.clone() for name, value in self.net.state_dict().items()}
        weights = own | self.ema
        val = self._val_accuracy(own, weights)
        epoch = state.step // self.epoch_steps
        for value in weights.values():
            require_finite(value, f"training diverged in epoch {epoch}: weights are not finite")
        row = {"epoch": float(epoch), "lr": self.optimiser.param_groups[0]["lr"], **self.tally.close_epoch()}
        if val is not None:
            row["val_accuracy"] = val
        state.history.append(row)
        # >=, so that of equals the one that was trained longest is kept.
        if recipe.select == "last" or val is None or state.val_accuracy is None or val >= state.val_accuracy:
            self.best = {name: value.clone() for name, value in weights.items()}
            state.best_epoch, state.val_accuracy = epoch, val
        judged = "" if val is None else f", val accuracy {val:.3f}"
        return f"epoch {epoch}/{recipe.epochs}: loss {row['train_loss']:.3f}{judged}"

    def _val_accuracy(self, own: dict[str, Tensor], weights: dict[str, Tensor]) -> float | None:
        """Return the held-out accuracy of the averaged weights if there are such, else of the network's own."""
        if not len(self.y_val):
            return None
        if not self.ema:
            return accuracy(self.net, self.x_val, self.y_val)
        self.net.load_state_dict(weights)
        val = accuracy(self.net, self.x_val, self.y_val)
        self.net.load_state_dict(own)
        return val

    def _identity(self, examples: Examples) -> str:
        recipe, data = self.recipe.canonical(), examples.sha256()
        return json.dumps({"recipe": recipe, "seed": self.seed, "net": self.net.description, "data": data})

    def _save(self) -> None:
        tensors = in_part("net", self.net.state_dict()) | in_part("best", self.best) | in_part("ema", self.ema)
        tensors |= in_part("optimiser", optimiser_tensors(self.optimiser))
        self.checkpoint.save(vars(self.state) | {"running": self.tally.state()}, tensors)

    def _restore(self) -> None:
        saved = self.checkpoint.restore(self.device)
        if saved is None:
            return
        self.tally.load(saved.state.pop("running"))
        self.state = Training(**saved.state)
        self.net.load_state_dict(saved.part("net"))
        self.best, self.ema = saved.part("best"), saved.part("ema")
        load_optimiser(self.optimiser, saved.part("optimiser"))


def _takes(net: Net, x: Tensor, side: int) -> None:
    """Raise `UserError` for a network that only takes images of the data's own size."""
    try:
        with eval_mode(net), torch.no_grad():
            net(scaled(x.float() / 255, side))
    except RuntimeError:
        raise UserError(
            f"expected a network that takes images of side {side} too for grow, got one that does not: set grow to []"
        ) from None


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
    return cosine(recipe.lr, recipe.min_lr, math.pi * done)
