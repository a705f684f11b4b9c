"""Spike-timing-dependent plasticity: a synapse grows if its input fires before its neuron, and shrinks if after."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.nets.spiking import FiringConv2d
from robustbench_bio.rules.base import RULES, Draw, Layer, OutputError
from robustbench_bio.rules.geometry import Geometry
from robustbench_bio.rules.hebbian import LocalOptions, LocalRule


class Pairs(NamedTuple):
    """Sums over all pairs of an incoming and an outgoing spike, in the shape of the weight."""

    causal: Tensor
    """Σ s_post·trace_pre, what potentiates."""
    acausal: Tensor
    """Σ trace_post·s_pre, what depresses."""


def spike_trace(spikes: Tensor, tau: float) -> Tensor:
    """Return what is left of earlier spikes, tr ← tr − tr/τ + s: spikes [T, ...] → same shape, the present included."""
    left, traces = torch.zeros_like(spikes[0]), []
    for present in spikes.unbind():
        left = left - left / tau + present
        traces.append(left)
    return torch.stack(traces)


def pairs(geometry: Geometry, pre: Tensor, post: Tensor, weight: Tensor, tau_pre: float, tau_post: float) -> Pairs:
    """Sum over time, examples and positions what each synapse sees of its neurons' spikes.

    A pair of spikes at lag k counts (1 − 1/τ)^k, one at lag 0 on both sides; τ are in steps. `pre` are incoming spikes
    [T, N, ...], `post` outgoing ones or any multiple of them; the layer may have any stride, padding, dilation and
    groups.
    """
    return Pairs(
        geometry.to_weight(post.flatten(0, 1), spike_trace(pre, tau_pre).flatten(0, 1), weight),
        geometry.to_weight(spike_trace(post, tau_post).flatten(0, 1), pre.flatten(0, 1), weight),
    )


class _Seen(NamedTuple):
    """One forward pass: spikes [T, N, ...] in and out, how the layer connects them, and the error to come."""

    pre: Tensor
    post: Tensor
    geometry: Geometry
    error: OutputError


@dataclass(frozen=True)
class StdpOptions(LocalOptions):
    """Options of stdp.

    Args:
        stdp_tau_pre: time constant of the traces of incoming spikes, in steps, at least 1.
        stdp_tau_post: the same for outgoing spikes.
        stdp_low, stdp_high: bounds of the weights.
        stdp_depression: strength of depression over that of potentiation, d.
        stdp_power: μ of the soft bounds: potentiation ∝ (high − w)^μ, depression ∝ (w − low)^μ.
        stdp_rivals: at each position, only the neuron that fires first learns; off, all learn that fire.
        stdp_reward: "none", or "label": changes are multiplied by 2·p − 1, p the label's probability.
    """

    stdp_tau_pre: float = 2.0
    stdp_tau_post: float = 2.0
    stdp_low: float = -1.0
    stdp_high: float = 1.0
    stdp_depression: float = 1.0
    stdp_power: float = 1.0
    stdp_rivals: bool = True
    stdp_reward: Literal["none", "label"] = "none"


@final
@RULES.register("stdp")
class Stdp(LocalRule):
    """Pair-based STDP by traces, ΔW = η/P·((high − W)^μ·Σ s_post·tr_pre − d·(W − low)^μ·Σ tr_post·s_pre), clamped.

    P is the number of examples times positions, d is `stdp_depression`. With `stdp_rivals` the first neuron to fire at
    a position keeps the others from learning there (Kheradpisheh et al. 2018, arXiv:1611.01421); with `stdp_reward`
    the changes of each example are multiplied by 2·p − 1, as p, the probability of its label, becomes known (Florian
    2007, without an eligibility that outlasts the example).

    It trains convolutions whose output drives neurons of their own, those of the network spiking-cnn. Membranes and
    traces start at zero with every example.

    Source: Song, Miller & Abbott 2000; as `STDPLearner` of spikingjelly and snntorch, with soft bounds and for groups
    and dilation too.

    Raises:
        UserError: a layer without neurons, or options out of their range.
    """

    takes = StdpOptions

    options: StdpOptions

    def __init__(self, layer: Layer, draw: Draw) -> None:
        super().__init__(layer, draw)
        if not isinstance(layer, FiringConv2d):
            kind = type(layer).__name__
            raise UserError(f"expected a convolution with neurons for stdp, got a {kind}: stdp trains spiking-cnn")
        _check(self.options)
        self._seen: list[_Seen] = []

    @torch.no_grad()
    def remember(self, layer: Layer, geometry: Geometry, x: Tensor, output: Tensor) -> None:
        assert isinstance(layer, FiringConv2d)  # noqa: S101  (checked when the rule was made)
        pre, current = (part.to(layer.weight).view(layer.steps, -1, *part.shape[1:]) for part in (x, output))
        post = layer.neurons(current)
        if self.options.stdp_rivals:
            post = post * _first(post, current)
        self._seen.append(_Seen(pre, post, geometry, self.error))

    @torch.no_grad()
    def step(self, layer: Layer) -> None:
        """Change the weight by what was seen since the last step, and forget it."""
        if not self._seen:
            return
        options, weight = self.options, layer.weight
        high, low, power = options.stdp_high, options.stdp_low, options.stdp_power
        change, terms = torch.zeros_like(weight), 0
        for seen in self._seen:
            post = seen.post
            if options.stdp_reward == "label":
                post = post * _reward(seen.error).view(1, -1, *[1] * (post.ndim - 2))
            causal, acausal = pairs(seen.geometry, seen.pre, post, weight, options.stdp_tau_pre, options.stdp_tau_post)
            change += (high - weight).clamp_min(0) ** power * causal
            change -= options.stdp_depression * (weight - low).clamp_min(0) ** power * acausal
            terms += post[0, :, 0].numel()
        self._seen.clear()
        weight.add_(change, alpha=options.local_lr / terms).clamp_(low, high)


def _check(options: StdpOptions) -> None:
    if (least := min(options.stdp_tau_pre, options.stdp_tau_post)) < 1:
        raise UserError(f"expected stdp_tau_pre and stdp_tau_post >= 1 step, got {least:g}: raise it")
    if options.stdp_low >= options.stdp_high:
        raise UserError(
            f"expected stdp_low < stdp_high, got {options.stdp_low:g} and {options.stdp_high:g}: exchange them"
        )
    if (least := min(options.stdp_power, options.stdp_depression)) < 0:
        raise UserError(f"expected stdp_power and stdp_depression >= 0, got {least:g}: raise it")


def _first(spikes: Tensor, current: Tensor) -> Tensor:
    """Tell which neuron fires first at each position: spikes and current [T, N, units, ...] → one-hot [N, units, ...].

    Of several that fire in the same steps, the one with the largest current wins.
    """
    # Halves make the earliest spike outweigh all later ones together; the current, below half of the last half,
    # decides only between neurons that fire in the very same steps.
    steps = len(spikes)
    early = 0.5 ** torch.arange(steps, dtype=spikes.dtype, device=spikes.device)
    score = torch.einsum("t,t...->...", early, spikes) + early[-1] / 2 * current.mean(0).sigmoid()
    return torch.zeros_like(score).scatter_(1, score.argmax(1, keepdim=True), 1.0)


def _reward(error: OutputError) -> Tensor:
    """Return 2·p − 1 per example, p the label's probability, from e = (softmax − one-hot)/N: ‖N·e‖₁ = 2·(1 − p)."""
    if error.value is None:
        raise RuntimeError("stdp with reward needs a loss on the network's logits: no gradient has reached them")
    return 1 - len(error.value) * error.value.abs().sum(1)
