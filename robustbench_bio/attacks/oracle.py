"""What an attacker may ask of one network: logits, and input gradients of a named kind."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from robustbench_bio.attacks.traced import Untraceable, laid_out, trace
from robustbench_bio.errors import UserError
from robustbench_bio.records import GradientMode, Precision
from robustbench_bio.rules import InputGradient, RuleSet

#: Logits [n, K] and one row per example of what they are held against (labels, say) → loss per example [n].
AttackLoss = Callable[[Tensor, Tensor], Tensor]

#: Input values that go through the network at once on a CPU (128 colour images of 32 × 32).
CPU_VALUES_PER_PASS = 128 * 3 * 32 * 32


def rules_of(model: nn.Module) -> RuleSet | None:
    """Return the learning rules that a network remembers, or None for a network without any."""
    rules = getattr(model, "rules", None)
    return rules if isinstance(rules, RuleSet) and rules.assignment else None


class Oracle:
    """White-box access to a network that stays as it is.

    The exact gradient does not trust the network's own backward pass: it comes from a trace of the forward
    pass (`traced.trace`), so that learning rules and other custom autograd functions cannot bend it.

    Args:
        model: the network, in eval mode; x [n, C, H, W] in [0, 1] → logits [n, K].
        gradient: "exact" differentiates the forward pass; "rule" asks the network's learning rules.
        precision: of the passes that make gradients; `logits` is always float32.
        traced: False differentiates the modules by autograd, for networks known to be honest whose weights
            change too often to be traced, such as one in training.

    Attributes:
        notices: what a reader of the result should know, such as a network that cannot be traced.

    Raises:
        UserError: a rule gradient is asked of a network without rules.
    """

    def __init__(
        self,
        model: nn.Module,
        gradient: GradientMode = "exact",
        precision: Precision = "float32",
        *,
        traced: bool = True,
    ) -> None:
        self.model = model
        self.mode = gradient
        self.precision = precision
        self.notices: list[str] = []
        self._traced = traced and gradient == "exact"
        self._forward: nn.Module | None = None
        self._half = False
        self._rules = rules_of(model)
        if gradient == "rule" and self._rules is None:
            raise UserError("expected a network with learning rules for gradient 'rule', got one without: use 'exact'")

    @property
    def approximate(self) -> bool:
        """Whether logits that come with a gradient may differ from the network's own by more than rounding."""
        return self.precision != "float32" or self._traced

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the network's own float32 logits [n, K]."""
        return torch.cat([self.model(part) for part in torch.split(x, _rows_per_pass(x))])

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Tell which inputs the network misclassifies in float32: bool [n]."""
        return self.logits(x).argmax(1) != y

    def gradient(self, x: Tensor, against: Tensor, loss: AttackLoss) -> InputGradient:
        """Return the gradient at x of the summed loss, float32 [n, C, H, W], and the logits it came with."""
        rows = _rows_per_pass(x)
        parts = [
            self._gradient(*part, loss) for part in zip(torch.split(x, rows), torch.split(against, rows), strict=True)
        ]
        return InputGradient(torch.cat([p.gradient for p in parts]), torch.cat([p.logits for p in parts]))

    def _gradient(self, x: Tensor, against: Tensor, loss: AttackLoss) -> InputGradient:
        def per_example(logits: Tensor) -> Tensor:
            return loss(logits.float(), against)

        if self.mode == "rule":
            assert self._rules is not None  # noqa: S101
            with _frozen(self.model), self._autocast(x.device):
                found = self._rules.input_gradient(self.model, x, per_example)
            return InputGradient(found.gradient.float(), found.logits.float())
        with torch.enable_grad():
            forward = self._differentiable(x)
            x = laid_out(forward, x.detach()).requires_grad_(True)
            logits = forward(x.bfloat16() if self._half else x)
            (gradient,) = torch.autograd.grad(per_example(logits).sum(), x)
        return InputGradient(gradient, logits.detach().float())

    def _differentiable(self, x: Tensor) -> nn.Module:
        """Return the module to differentiate: the trace, or the network itself where there can be none."""
        if self._forward is None:
            forward = self.model
            if self._traced:
                try:
                    forward = trace(self.model, x.detach()[:2])
                except Untraceable as reason:
                    self._traced = False
                    self.notices.append(f"not traced, autograd of the modules is trusted: {reason}")
            if self.precision == "bfloat16":
                forward = self._in_half(forward, x)
            self._forward = forward
        return self._forward

    def _in_half(self, forward: nn.Module, x: Tensor) -> nn.Module:
        half = copy.deepcopy(forward).to(torch.bfloat16)
        try:
            with torch.no_grad():
                half(laid_out(half, x.detach()[:2]).bfloat16())
        except RuntimeError as error:
            self.notices.append(
                f"float32 gradients, bfloat16 does not run on this network: {str(error).splitlines()[0]}"
            )
            return forward
        self._half = True
        return half

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


def _rows_per_pass(x: Tensor) -> int:
    """Return how many examples go through the network at once: a CPU gains nothing from more, but memory."""
    return len(x) or 1 if x.device.type == "cuda" else max(1, min(256, CPU_VALUES_PER_PASS // x[0].numel()))


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
