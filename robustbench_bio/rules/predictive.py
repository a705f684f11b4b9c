"""Predictive coding: activities relax until their errors balance, then each layer learns from its own."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast, final

import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.base import Net, eval_mode
from robustbench_bio.rules.base import RULES, InputGradient, Loss, NetworkRule
from robustbench_bio.rules.options import RuleOptions


@dataclass(frozen=True)
class PredictiveOptions(RuleOptions):
    """Options of pc.

    Args:
        pc_beta: precision of the output over that of the hidden layers, β > 0.
        pc_steps: inference steps T >= 0.
        pc_gamma: inference step size γ in (0, 1].
        pc_fixed_prediction: keep predictions and derivatives at their feed-forward values during inference, with which
            pc comes to backpropagation's gradients (Millidge, Tschantz & Buckley 2022).
    """

    pc_beta: float = 1.0
    pc_steps: int = 20
    pc_gamma: float = 0.1
    pc_fixed_prediction: bool = False


class State(NamedTuple):
    """A chain of L stages during inference.

    Args:
        activities: z_0 … z_{L−1}, what the stages take in; z_0 is the input.
        sites: where the stages were last differentiated; the activities, but for fixed predictions.
        predictions: μ_1 … μ_L at the sites, each the end of the autograd graph of its own stage.
        errors: −∂E/∂μ_l: ε_l = z_l − μ_l for the hidden stages, then ε̂_L = −β ∂loss/∂μ_L.
    """

    activities: list[Tensor]
    sites: list[Tensor]
    predictions: list[Tensor]
    errors: list[Tensor]


def infer(chain: Sequence[nn.Module], x: Tensor, loss: Loss, options: PredictiveOptions) -> Iterator[State]:
    """Yield the states after 0, 1, …, T steps of z_l ← z_l − γ ∂E/∂z_l, all hidden layers at once.

    Inference starts from the feed-forward pass, where all hidden errors are zero; an error needs L − l steps
    to reach stage l. E falls at every step if γ is small against its curvature and the stages are smooth; at
    the kinks of ReLU and max pooling it settles to within a jitter. A state's graphs last until the next one.

    Each stage ends in one weight layer; x [N, ...] is clamped; the loss ½‖t − μ_L‖² per example [N] gives the textbook
    form. T = `pc_steps`, γ = `pc_gamma`, β = `pc_beta`; `pc_fixed_prediction` keeps μ_l, the derivatives and ε̂_L at
    their feed-forward values.

    Source: Whittington & Bogacz 2017; Millidge, Tschantz & Buckley 2022 (fixed predictions).
    """
    sites, predictions = _feed_forward(chain, x)
    state = State(
        [site.detach() for site in sites],
        sites,
        predictions,
        [torch.zeros_like(site) for site in sites[1:]] + [_output_error(predictions[-1], loss, options.pc_beta)],
    )
    yield state
    for _ in range(options.pc_steps):
        state = _stepped(chain, state, loss, options)
        yield state


def energy(chain: Sequence[nn.Module], activities: Sequence[Tensor], loss: Loss, beta: float) -> Tensor:
    """Return E = Σ_{l<L} ½‖z_l − μ_l‖² + β·loss(μ_L), summed over examples, at z_0 … z_{L−1}: a scalar."""
    predictions = [stage(z) for stage, z in zip(chain, activities, strict=True)]
    total: Tensor = beta * loss(predictions[-1]).sum()
    for z, mu in zip(activities[1:], predictions[:-1], strict=True):
        total = total + 0.5 * (z - mu).square().sum()
    return total


@final
@RULES.register("pc")
class PredictiveCoding(NetworkRule):
    """Predictive coding over the whole chain of a network, with E summed over examples.

    ΔW ∝ −∂E/∂W after inference. Gradients are those of E divided by β, so that β → 0 gives backpropagation's;
    with fixed predictions they are backpropagation's at convergence, for every β. The error ε̂_L is what is
    weighted down: a target moved close to the prediction instead does not lead to backpropagation.

    Stages run in eval mode and without autocast: dropout and batch statistics have no place in an energy, so
    inference draws nothing and moves no buffer; batch normalisation acts with its running statistics.

    Raises:
        UserError: the network is not a chain, or an option is out of range.
    """

    takes = PredictiveOptions

    options: PredictiveOptions

    def __init__(self, model: nn.Module, assignment: Mapping[str, str], values: Mapping[str, object]) -> None:
        super().__init__(model, assignment, values)
        options = self.options
        cast("Net", model).chain()
        if not options.pc_beta > 0:
            raise UserError(f"expected pc_beta > 0, got {options.pc_beta}: 1 weighs output and hidden alike")
        if options.pc_steps < 0:
            raise UserError(f"expected pc_steps >= 0, got {options.pc_steps}: 20 is the default")
        if not 0 < options.pc_gamma <= 1:
            raise UserError(f"expected pc_gamma in (0, 1], got {options.pc_gamma}: 0.1 is the default")

    def backward(self, model: nn.Module, x: Tensor, loss: Loss) -> Tensor:
        """Add ∂(mean E)/∂W / β after inference to `.grad`; return the feed-forward logits [N, K]."""
        scale = -1 / (self.options.pc_beta * len(x))
        learning = [p for p in model.parameters() if p.requires_grad]
        with self._relaxed(model, x.detach(), loss) as (logits, state):
            for mu, error in zip(state.predictions, state.errors, strict=True):
                # A first stage with frozen weights depends on nothing that learns.
                if mu.requires_grad:
                    torch.autograd.backward(mu, scale * error, inputs=learning)
        return logits

    def input_gradient(self, model: nn.Module, x: Tensor, loss: Loss) -> InputGradient:
        """Return ∂E/∂x / β after inference, −f'(x)∘W_1ᵀ ε̂_1/β, and the feed-forward logits."""
        with self._relaxed(model, x.detach().requires_grad_(True), loss) as (logits, state):
            down = state.errors[0] / -self.options.pc_beta
            (gradient,) = torch.autograd.grad(state.predictions[0], state.sites[0], down)
        return InputGradient(gradient, logits)

    @contextlib.contextmanager
    def _relaxed(self, model: nn.Module, x: Tensor, loss: Loss) -> Iterator[tuple[Tensor, State]]:
        """Give the feed-forward logits and the state after inference, to differentiate inside the block."""
        chain = cast("Net", model).chain()
        with eval_mode(*chain), torch.autocast(x.device.type, enabled=False):
            states = infer(chain, x, loss, self.options)
            last = next(states)
            logits = last.predictions[-1].detach()
            for state in states:
                last = state
            yield logits, last


def _feed_forward(chain: Sequence[nn.Module], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs of all stages as leaves, and their outputs, one autograd graph per stage."""
    sites, predictions = [x], []
    for stage in chain:
        predictions.append(_predict(stage, sites[-1]))
        sites.append(predictions[-1].detach().requires_grad_(True))
    return sites[:-1], predictions


def _stepped(chain: Sequence[nn.Module], state: State, loss: Loss, options: PredictiveOptions) -> State:
    """Return the state one inference step later."""
    fixed = options.pc_fixed_prediction
    downs = (
        torch.autograd.grad(mu, site, error, retain_graph=fixed)[0]
        for mu, site, error in zip(state.predictions[1:], state.sites[1:], state.errors[1:], strict=True)
    )
    moves = [options.pc_gamma * (down - error) for down, error in zip(downs, state.errors[:-1], strict=True)]
    hidden = [z + move for z, move in zip(state.activities[1:], moves, strict=True)]
    activities = [state.activities[0], *hidden]
    if fixed:
        # Moved along instead of taken as z − μ, which would cancel to rounding noise for small β.
        errors = [error + move for error, move in zip(state.errors[:-1], moves, strict=True)]
        return State(activities, state.sites, state.predictions, [*errors, state.errors[-1]])
    # The first stage sees the clamped input: its prediction stands.
    sites = [state.sites[0], *(z.detach().requires_grad_(True) for z in hidden)]
    above = [_predict(stage, site) for stage, site in zip(chain[1:], sites[1:], strict=True)]
    predictions = [state.predictions[0], *above]
    errors = [z - mu.detach() for z, mu in zip(hidden, predictions[:-1], strict=True)]
    return State(activities, sites, predictions, [*errors, _output_error(predictions[-1], loss, options.pc_beta)])


def _predict(stage: nn.Module, site: Tensor) -> Tensor:
    with torch.enable_grad():
        prediction: Tensor = stage(site)
    return prediction


def _output_error(prediction: Tensor, loss: Loss, beta: float) -> Tensor:
    """Return ε̂_L = −β ∂loss/∂μ_L, [N, K]."""
    with torch.enable_grad():
        logits = prediction.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(logits).sum(), logits)
    return -beta * gradient
