"""What a caller gives as a network, as a module that can be attacked."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_bio.attacks.access.mean_prediction import TOLERANCE, seeded_by_input
from robustbench_bio.core.errors import UserError
from robustbench_bio.evaluation.contents import modules_of
from robustbench_bio.evaluation.fingerprint import fleeting
from robustbench_bio.evaluation.judge import check_eval_mode, checked_logits

#: A network as a caller may give it: x [n, C, H, W] in [0, 1] → logits [n, K].
Network = nn.Module | Callable[[Tensor], Tensor]


class Function(nn.Module):
    """A plain function of x as a module; the modules that it reaches count as its parts."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.training = False  # this module's own mode; that of its parts is their own
        self.function = function
        parts: dict[int, nn.Module] = {}
        for module in modules_of(function):
            if not any(module is part for whole in parts.values() for part in whole.modules()):
                parts[id(module)] = module
        for place, part in enumerate(parts.values()):
            self.add_module(f"{type(part).__name__}{place or ''}", part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network_of(model: Network, x: Tensor, device: str | torch.device | None = None) -> nn.Module:
    """Return a caller's network as a module in eval mode whose answers are a function of its input, or of its draws.

    Args:
        model: a module, or any function of x.
        x: float32 [n, C, H, W] in [0, 1], of which two are asked about; they stay as they are.
        device: where it shall be; None leaves it where its parameters are.

    Raises:
        UserError: it cannot be called with x, is in train mode, changes x in place, keeps a state between calls, or
            answers no logits.
    """
    if isinstance(model, type) or not callable(model):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        remedy = f": pass rb.load_model({model!r})" if isinstance(model, str) else ""
        raise UserError(f"expected a network, a module or a function of x, got {got}{remedy}")
    net = model if isinstance(model, nn.Module) else Function(model)
    check_eval_mode(net)
    where = torch.device(device) if device is not None else device_of(net)
    net, x = net.to(where), x[:2].to(where)
    first = _answer(net, x)
    _answer(net, 1 - x)
    moved = (_answer(net, x) - first).abs().max().item()
    if moved > TOLERANCE * (first.std(correction=0).item() + 1e-6):
        state = ", ".join(sorted(fleeting(net, x))[:3])
        if state:
            raise UserError(
                f"expected answers that depend on x alone, got a network that keeps a state between calls ({state}): "
                "reset it where forward begins"
            )
        raise UserError(
            "expected answers that depend on x alone, got a network that keeps a state between calls, or draws from "
            "something else than torch's generator: reset it where forward begins, or draw from torch's"
        )
    return net


def device_of(net: nn.Module) -> torch.device:
    """Return where the first parameter or buffer of a network is, the CPU for a network without any."""
    with contextlib.suppress(StopIteration):
        return next(net.parameters()).device
    with contextlib.suppress(StopIteration):
        return next(net.buffers()).device
    return torch.device("cpu")


def _answer(net: nn.Module, x: Tensor) -> Tensor:
    """Return the logits for x, each time after the same draws; raises `UserError` for what no network may do."""
    given = x.clone()

    def called(x: Tensor) -> Any:
        try:
            return net(x)
        except Exception as error:
            text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise UserError(
                f"expected a network that takes x float32 {tuple(x.shape)}, got {text}{_of_dtype(net)}"
            ) from error

    with seeded_by_input("network", x=x):
        logits = checked_logits(called, given)
    if not torch.equal(given, x):
        raise UserError(
            f"expected a network that leaves its input alone, got one that changes it in place (by up to "
            f"{(given - x).abs().max().item():.3g}): write x = x - mean in place of x.sub_(mean), or pass "
            "lambda x: model(x.clone())"
        )
    return logits


def _of_dtype(net: nn.Module) -> str:
    """Return the remedy for a network whose parameters are not of float32, "" for any other."""
    others = {p.dtype for p in net.parameters() if p.is_floating_point()} - {torch.float32}
    if not others:
        return ""
    name = str(others.pop()).removeprefix("torch.")
    return f": its parameters are {name}, pass model.float() or lambda x: model(x.to(torch.{name}))"
