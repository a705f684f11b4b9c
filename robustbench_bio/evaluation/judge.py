"""The gate before an attack and the judge after it: what makes a robustness number believable."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_bio.attacks import Attack, WhiteBoxModel
from robustbench_bio.attacks.access.mean_prediction import TOLERANCE, MeanPrediction
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.threat import Threat

#: What to do about a network that answers differently to the same input.
REMEDY = "the network is random, ask for the mean over its draws with gradient eot:20"

#: Examples on which the gate asks its questions.
PROBES = 8


class AttackViolation(RuntimeError):
    """An attack proposed something outside the threat model, or changed the network: a bug in the attack."""


def data_hash(x: Tensor, y: Tensor, ids: Sequence[int]) -> str:
    """Return the hash of examples x [N, C, H, W], labels y [N] and their rows in the data set."""
    digest = hashlib.sha256(f"{tuple(x.shape)}|{list(ids)}".encode())
    digest.update(x.detach().cpu().float().contiguous().numpy().tobytes())
    digest.update(y.detach().cpu().long().contiguous().numpy().tobytes())
    return digest.hexdigest()


def checked_logits(model: Callable[[Tensor], Any], x: Tensor, y: Tensor | None = None) -> Tensor:
    """Return the model's float32 logits [n, K] at x, or raise `UserError` if they cannot be judged, by labels y [n]."""
    with torch.no_grad():
        logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"expected logits [{len(x)}, K] of K >= 2 classes, got {got}{_remedy(logits, len(x))}")
    if not torch.isfinite(logits).all():
        raise UserError("expected finite logits, got NaN or infinity: the network cannot be judged")
    classes = logits.shape[1]
    if y is not None and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise UserError(f"expected labels in 0…{classes - 1} for {classes} logits, got {int(y.min())}…{int(y.max())}")
    return logits.float()


def _remedy(answer: object, n: int) -> str:
    """Return how to make logits of what a network answers to n inputs, "" where nothing in it looks like them."""
    if not isinstance(answer, Tensor):
        members = (
            answer.items()
            if isinstance(answer, Mapping)
            else enumerate(answer if isinstance(answer, tuple | list) else ())
        )
        fitting = [key for key, one in members if isinstance(one, Tensor) and one.ndim == 2 and len(one) == n]
        # Whatever stands beside them, logits go by their name, and by the first place.
        key = "logits" if "logits" in fitting else fitting[0] if fitting else None
        return "" if key is None else f": pass lambda x: model(x)[{key!r}]"
    if answer.numel() == n and n > 0:
        return ": of a single logit pass lambda x: torch.nn.functional.pad(model(x).view(-1, 1), (1, 0))"
    if answer.ndim > 2 and len(answer) == n and answer[0].numel() == answer.shape[1]:
        return ": pass lambda x: model(x).flatten(1)"
    if answer.ndim == 3 and answer.shape[1] == n:
        return ": of time steps pass lambda x: model(x).mean(0)"
    return ""


def gate(model: nn.Module, attack: Attack, white_box: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat) -> None:
    """Check on a few examples what so many evaluations got wrong; raise at the first failure.

    Eval mode everywhere; finite logits of the right shape; the same input gives the same logits twice and in
    any batch (a random network, as `MeanPrediction`, the same answer twice in the same batch); the attack at eps = 0
    proposes x itself.

    x is [n, C, H, W] in [0, 1], of which the first few rows are asked; y int64 [n], of which every label must have a
    logit. Of the threat model only norm and bounds matter.

    Raises:
        UserError: the network cannot be evaluated as it is.
        AttackViolation: the attack moves inputs that it may not move.
    """
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):  # a random network draws from it
        _gate(model, attack, white_box, x, y, threat)


def _gate(model: nn.Module, attack: Attack, white_box: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat) -> None:
    check_eval_mode(model)
    x = x[:PROBES]
    logits = checked_logits(model, x, y)
    y = y[:PROBES]
    scale = logits.std().item() + 1e-6
    if (checked_logits(model, x, y) - logits).abs().max().item() > TOLERANCE * scale:
        raise UserError(
            "expected the same logits for the same input, got different ones: "
            + (
                "the network draws from something else than torch's generator"
                if isinstance(model, MeanPrediction)
                else REMEDY
            )
        )
    if not isinstance(model, MeanPrediction):
        check_batches(model, x)
    nothing = Threat(threat.norm, 0.0, threat.bounds)
    proposal = attack.brief().perturb(white_box, x[:2], y[:2], nothing, ExampleRng(0, [0, 1][: len(x)], "gate"))
    if not torch.equal(proposal.x_adv, x[:2]):
        raise AttackViolation(f"{attack} moved an input at eps = 0")


def check_batches(model: nn.Module, x: Tensor) -> None:
    """Raise `UserError` if the logits of an example, of x [n, C, H, W], depend on the examples beside it."""
    logits = checked_logits(model, x)
    flipped, alone = checked_logits(model, x.flip(0)).flip(0), checked_logits(model, x[:1])
    moved = max((flipped - logits).abs().max().item(), (alone - logits[:1]).abs().max().item())
    if moved > TOLERANCE * (logits.std().item() + 1e-6):
        raise UserError(
            f"expected logits that do not depend on the rest of the batch, they moved by {moved:.3g}: "
            "is a normalisation layer using batch statistics?"
        )


def check_eval_mode(model: nn.Module) -> None:
    """Raise `UserError` if a module of the network is in train mode."""
    if training := _in_train_mode(model):
        raise UserError(f"expected the model in eval mode, got {training[0]!r} in train mode: call model.eval()")


def _in_train_mode(model: nn.Module) -> list[str]:
    return [name or type(module).__name__ for name, module in model.named_modules() if module.training]


def judge(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """Return prediction and perturbation size of each proposal, both recomputed in float32 from scratch.

    x and x_adv are [n, C, H, W], y int64 [n].

    Returns:
        Predicted labels int64 [n], perturbation sizes float32 [n].

    Raises:
        AttackViolation: a proposal is not a legal input, nothing is ever clipped silently; or the attack left
            the network in train mode.
    """
    if training := _in_train_mode(model):
        raise AttackViolation(f"the attack left {training[0]!r} in train mode")
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise AttackViolation(f"expected {x.dtype} {tuple(x.shape)}, got {x_adv.dtype} {tuple(x_adv.shape)}")
    if not torch.isfinite(x_adv).all():
        raise AttackViolation("a proposal holds NaN or infinity")
    size = threat.size(x_adv - x)
    legal = threat.contains(x, x_adv)
    if not legal.all():
        worst = size[~legal].max().item()
        raise AttackViolation(
            f"{int((~legal).sum())} of {len(x)} proposals leave the threat model: "
            f"largest {threat.norm} size {worst:.8g} for eps {threat.eps:.8g}, "
            f"values in [{x_adv.min().item():.8g}, {x_adv.max().item():.8g}]"
        )
    return checked_logits(model, x_adv, y).argmax(1), size
