"""What an attacker may ask of one network: logits, and input gradients of a named kind."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx, nn

from robustbench_bio.attacks.access.mean_prediction import MeanPrediction, mean_prediction, seeded_by_input
from robustbench_bio.attacks.access.record import Untraceable
from robustbench_bio.attacks.access.surrogate import with_surrogate, without_final_softmax
from robustbench_bio.attacks.access.trace import TOLERANCE, laid_out, trace
from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.surrogates import surrogate
from robustbench_bio.records.base import Precision
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.rules import InputGradient, RuleSet

#: Logits [n, K] and one row per example of what they are held against (labels, say) → loss per example [n].
AttackLoss = Callable[[Tensor, Tensor], Tensor]

#: Input values that go through the network at once on a CPU (128 colour images of 32 × 32).
CPU_VALUES_PER_PASS = 128 * 3 * 32 * 32


def rules_of(model: nn.Module) -> RuleSet | None:
    """Return the learning rules that a network remembers, or None for a network without any."""
    rules = getattr(model, "rules", None)
    return rules if isinstance(rules, RuleSet) and rules.assignment else None


#: Share of the images above which a gradient that is zero is no result: an attack that follows it has not begun.
ZERO_SHARE = 0.05


class ZeroGradients:
    """Counts the images whose gradient is zero where an attack begins."""

    def __init__(self) -> None:
        self._begins = False
        self._zero: list[Tensor] = []

    def begin(self) -> None:
        """Say that a batch of images begins, whose first gradients are the next to be seen."""
        self._begins = True

    def see(self, gradient: Tensor) -> None:
        """Look at gradients [n, C, H, W] if they are the first of a batch."""
        if self._begins:
            self._begins = False
            self._zero.append(~(gradient.flatten(1).abs().amax(1) > 0))

    def share(self) -> float:
        """Return the share of the images that were seen, over all batches; 0 if none was."""
        return torch.cat(self._zero).float().mean().item() if self._zero else 0.0


class WhiteBoxModel:
    """White-box access to a network that stays as it is.

    The exact gradient does not trust the network's own backward pass: it comes from a trace of the forward
    pass (`trace.trace`), so that learning rules and other custom autograd functions cannot bend it. The gradient
    "own" is that backward pass itself.

    Args:
        model: the network, in eval mode; x [n, C, H, W] in [0, 1] → logits [n, K].
        gradient: "exact", "rule", "own", "surrogate:NAME", also averaged over draws: see `records.gradient.Gradient`.
        precision: of the passes that make gradients; `logits` is always float32.
        traced: False takes the modules' own gradient for the exact one, for networks known to be honest whose
            weights change too often to be traced, such as one in training.
        draws: more than 1 for a random network: forward passes behind each answer of `logits` (`MeanPrediction`).
        seed: of a random network's draws.

    Attributes:
        zeros: for how many images the gradient was zero, counted where `begin` is called.
        notices: what a reader of the result should know, such as a network that cannot be traced.
        random: whether the network is; a point then counts as fooling it where the mean answer leads beyond its noise.
        answer_cost: forward passes behind each answer.
        gradient_cost: forward passes behind each gradient.
        behind_softmax: whether gradients are taken at the logits behind a final softmax, once one was asked for.

    Raises:
        UserError: a rule gradient is asked of a network without rules, or a gradient or surrogate that is none.
    """

    def __init__(
        self,
        model: nn.Module,
        gradient: str | Gradient = "exact",
        precision: Precision = "float32",
        *,
        traced: bool = True,
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.kind = Gradient.read(gradient)
        self.precision = precision
        self.notices: list[str] = []
        self.zeros = ZeroGradients()
        self._traced = traced and self.kind.source != "own"
        self._graph: fx.GraphModule | None = None
        self._untraceable = ""
        self._forward: nn.Module | None = None
        self._half = False
        self._asked_for = self._broken = 0
        self._seed = seed
        self.random = draws > 1
        self.behind_softmax = False
        self.answer_cost, self.gradient_cost = draws, max(1, self.kind.draws)
        self._mean = MeanPrediction(model, draws, seed, "attack") if self.random else None
        self._rules = rules_of(model)
        if self.kind.source == "rule" and self._rules is None:
            raise UserError("expected a network with learning rules for gradient 'rule', got one without: use 'exact'")
        if self.kind.surrogate:
            surrogate(self.kind.surrogate)

    def notice(self, text: str) -> None:
        """Tell the reader of the result once."""
        if text not in self.notices:
            self.notices.append(text)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the network's own float32 logits [n, K]; a random network's mean answer."""
        answering = self._mean or self.model
        return torch.cat([answering(part).float() for part in torch.split(x, _rows_per_pass(x))])

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Return float32 logits [n, K] that may differ from the network's own by rounding, and are there sooner."""
        graph = None if self.random else self._recorded(x)
        if graph is None:
            return self.logits(x)
        return torch.cat([graph(laid_out(graph, part)).float() for part in torch.split(x, _rows_per_pass(x))])

    def fooled(self, x: Tensor, y: Tensor) -> Tensor:
        """Tell which inputs the network misclassifies in float32: bool [n]. The network decides narrow leads."""
        if self.random:
            return self.lead(x, y)[1]
        scores = self.scores(x)
        lead, fooled = margin(scores, y), scores.argmax(1) != y
        return self._asked(x, y, fooled, (lead.abs() <= _doubt(scores)) & (self._graph is not None))

    @torch.no_grad()
    def lead(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margin [n] at x, and which inputs the network misclassifies: bool [n]; costs one answer."""
        if self._mean is None:
            scores = self.scores(x)
            return margin(scores, y), self.confirm(x, y, scores)[0]
        rows = _rows_per_pass(x)
        parts = [self._mean.lead(*part) for part in zip(torch.split(x, rows), torch.split(y, rows), strict=True)]
        margins, fooled = zip(*parts, strict=True)
        return torch.cat(margins), torch.cat(fooled)

    def confirm(self, x: Tensor, y: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tell which inputs the network misclassifies, from logits that came with a gradient.

        Those of float32 passes differ from the network's own by rounding, so that only a narrow lead of the wrong
        class is put to the network; those of bfloat16 passes and of means over draws are no more than a hint.

        Args:
            x: [n, C, H, W] where the gradient was taken.
            y: int64 [n].
            logits: [n, K] as `gradient` returned them.

        Returns:
            fooled bool [n], and for which inputs it took another query, bool [n].
        """
        claimed = logits.argmax(1) != y
        narrow = claimed & (margin(logits, y) <= _doubt(logits))
        hint = self.precision != "float32" or self.kind.draws > 0
        asked = claimed if hint else narrow & (self._graph is not None)
        return self._asked(x, y, claimed, asked), asked

    def _asked(self, x: Tensor, y: Tensor, fooled: Tensor, doubtful: Tensor) -> Tensor:
        """Return `fooled`, with the network's own answer where it is doubtful."""
        if not doubtful.any():
            return fooled
        # Only these rows: a second forward pass for all at each step would add a third to the cost of an attack.
        rows = doubtful.nonzero().flatten()
        answer = self.lead(x[rows], y[rows])[1] if self.random else self.logits(x[rows]).argmax(1) != y[rows]
        return fooled.index_put((rows,), answer)

    def _recorded(self, x: Tensor) -> fx.GraphModule | None:
        """Return the trace of the network, None where there can be none."""
        if self._graph is None and self._traced:
            try:
                self._graph = trace(self.model, x.detach()[:2])
            except Untraceable as reason:
                self._traced = False
                self._untraceable = str(reason)
        return self._graph

    def gradient(self, x: Tensor, against: Tensor, loss: AttackLoss) -> InputGradient:
        """Return the gradient at x of the summed loss, float32 [n, C, H, W], and the logits it came with."""
        rows = _rows_per_pass(x)
        ask = self._mean_gradient if self.kind.draws else self._gradient
        parts = [ask(*part, loss) for part in zip(torch.split(x, rows), torch.split(against, rows), strict=True)]
        gradient = torch.cat([p.gradient for p in parts])
        self.zeros.see(gradient)
        return InputGradient(gradient, torch.cat([p.logits for p in parts]))

    def _mean_gradient(self, x: Tensor, against: Tensor, loss: AttackLoss) -> InputGradient:
        """Return the mean of several draws' gradients, and the log of their mean softmax."""
        with seeded_by_input("gradient", self._seed, x=x):
            draws = [self._gradient(x, against, loss) for _ in range(self.kind.draws)]
        return InputGradient(
            torch.stack([draw.gradient for draw in draws]).mean(0), mean_prediction([draw.logits for draw in draws])
        )

    def _gradient(self, x: Tensor, against: Tensor, loss: AttackLoss) -> InputGradient:
        def per_example(logits: Tensor) -> Tensor:
            return loss(logits.float(), against)

        if self.kind.source == "rule":
            assert self._rules is not None  # noqa: S101
            # The rules own this backward pass: the trace, which has none of them, cannot stand in for the network.
            with _frozen(self.model), self._autocast(x.device):
                of_rules = self._rules.input_gradient(self.model, x, per_example)
            return InputGradient(self._finite(of_rules.gradient.float()), of_rules.logits.float())
        with torch.enable_grad(), self._own_errors():
            forward = self._differentiable(x)
            x = laid_out(forward, x.detach()).requires_grad_(True)
            logits = forward(x.bfloat16() if self._half else x)
            gradient = slope(per_example(logits).sum(), x)
        gradient = torch.zeros_like(x) if gradient is None else self._finite(gradient)
        return InputGradient(gradient, logits.detach().float())

    def _finite(self, gradient: Tensor) -> Tensor:
        """Return a gradient [n, C, H, W] with NaN as zero, and infinity as large as the image's largest finite slope.

        The sign of an infinite slope is right, as at a black pixel before x ** (1 / 2.2). On bp-resnet20 behind it
        PGD-20 leaves so 80, 28 and 2 % of 100 digits at linf 2/255, linf 8/255 and l2 0.5; with zero for infinity
        90, 71 and 6 %, with zero for such an image 96, 95 and 89 %.
        """
        self._asked_for += len(gradient)
        finite = gradient.isfinite()
        broken = int((~finite.flatten(1).all(1)).sum())
        if not broken:
            return gradient
        text = "gradients were not finite: NaN counts as zero there, infinity as the image's largest slope"
        self.notices[:] = [notice for notice in self.notices if text not in notice]
        self._broken += broken
        self.notice(f"{self._broken:,} of {self._asked_for:,} {text}")
        largest = torch.where(finite, gradient, 0).abs().amax((1, 2, 3), keepdim=True)
        largest = torch.where(largest > 0, largest, 1)
        return torch.where(finite, gradient, gradient.sign().nan_to_num(0) * largest)

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Turn what a network's own backward pass raises into the user's error: its code is the user's."""
        try:
            yield
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            if self.kind.source != "own":
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"expected a network that autograd can differentiate for gradient own, got: {reason}"
            ) from None

    def _differentiable(self, x: Tensor) -> nn.Module:
        """Return the module to differentiate: the trace, or the network itself where there can be none."""
        if self._forward is None:
            recorded = self._recorded(x)
            forward = self.model if recorded is None else without_final_softmax(recorded)
            self.behind_softmax = recorded is not None and forward is not recorded
            if self._untraceable:
                self.notice(f"not traced, autograd of the modules is trusted: {self._untraceable}")
            if self.kind.surrogate:
                if not isinstance(forward, fx.GraphModule):
                    raise UserError(
                        f"expected a network that can be traced for gradient {str(self.kind)!r}, got one of which "
                        f"{self._untraceable}: use 'exact'"
                    )
                forward = with_surrogate(forward, self.kind.surrogate)
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
            self.notice(f"float32 gradients, bfloat16 does not run on this network: {str(error).splitlines()[0]}")
            return forward
        self._half = True
        return half

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest logit of the other classes minus that of y, positive where fooled: [n, K], labels [n] → [n]."""
    own = y[:, None]
    return logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own).squeeze(1)


def _doubt(logits: Tensor) -> Tensor:
    """Return the lead below which a trace, which agrees to `TOLERANCE` of the spread, is not believed: [n]."""
    return 10 * TOLERANCE * (logits.std(1) + 1e-6)


def slope(value: Tensor, x: Tensor) -> Tensor | None:
    """Return the gradient of `value` at x, or None where no differentiable path leads from x to it."""
    if not value.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
    return gradient


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
