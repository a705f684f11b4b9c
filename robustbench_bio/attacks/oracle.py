"""What an attacker may ask of one network: logits, and input gradients of a named kind."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from robustbench_bio.errors import UserError
from robustbench_bio.records import GradientMode, Precision
from robustbench_bio.rules import InputGradient, RuleSet

#: Logits [n, K] and one row per example of what they are held against (labels, say) → loss per example [n].
AttackLoss = Callable[[Tensor, Tensor], Tensor]


def rules_of(model: nn.Module) -> RuleSet | None:
    """Return the learning rules that a network remembers, or None for a network without any."""
    rules = getattr(model, "rules", None)
    return rules if isinstance(rules, RuleSet) and rules.assignment else None


class Oracle:
    """White-box access to a network that stays as it is.

    Args:
        model: the network, in eval mode; x [n, C, H, W] in [0, 1] → logits [n, K].
        gradient: "exact" differentiates the forward pass; "rule" asks the network's learning rules.
        precision: of the passes that make gradients; `logits` is always float32.

    Raises:
        UserError: a rule gradient is asked of a network without rules.
    """

    def __init__(self, model: nn.Module, gradient: GradientMode = "exact", precision: Precision = "float32") -> None:
        self.model = model
        self.mode = gradient
        self.precision = precision
        self._rules = rules_of(model)
        if gradient == "rule" and self._rules is None:
            raise UserError("expected a network with learning rules for gradient 'rule', got one without: use 'exact'")

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return float32 logits [n, K]."""
        out: Tensor = self.model(x)
        return out

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Tell which inputs are misclassified in float32: bool [n]."""
        return self.logits(x).argmax(1) != y

    def gradient(self, x: Tensor, against: Tensor, loss: AttackLoss) -> InputGradient:
        """Return the gradient at x of the summed loss, [n, C, H, W] float32, and the logits it came with."""

        def per_example(logits: Tensor) -> Tensor:
            return loss(logits.float(), against)

        with _frozen(self.model), self._autocast(x.device):
            if self.mode == "rule":
                assert self._rules is not None  # noqa: S101
                found = self._rules.input_gradient(self.model, x, per_example)
            else:
                found = _exact(self.model, x, per_example)
        return InputGradient(found.gradient.float(), found.logits.float())

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


def _exact(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> InputGradient:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)
        (gradient,) = torch.autograd.grad(loss(logits).sum(), x)
    return InputGradient(gradient, logits.detach())


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Spare the backward pass the weights' gradients, a third of its work."""
    learning = [p for p in model.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
