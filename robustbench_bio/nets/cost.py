"""What a network costs: weights, multiply-accumulates, energy and feedback memory, in all and under each rule."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustbench_bio.nets.base import eval_mode, weight_layers

#: Energy of one float32 multiply-accumulate at 45 nm: 3.7 pJ to multiply, 0.9 pJ to add. Source: Horowitz 2014,
#: "Computing's energy problem (and what we can do about it)", ISSCC.
MAC_PICOJOULES = 4.6

#: Energy of one float32 accumulate, an addition without a multiplication, from the same source.
ACCUMULATE_PICOJOULES = 0.9

#: Called with a module, the tuple of its arguments and its output.
Hook = Callable[[Any, Any, Any], None]


def parameters(model: nn.Module) -> int:
    """Return the number of trainable weights, feedback matrices not among them."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def macs(model: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Count the multiply-accumulates of each Conv2d and Linear layer for one input in eval mode.

    Biases, norms and pools are not counted. One image of zeros passes through the model, whose mode, weights
    and buffers stay as they are.

    Args:
        model: any module with weights that takes one [1, *shape] tensor.
        shape: of one input, without the batch axis.

    Returns:
        Layer name → count; 0 for a layer that does not run in eval mode.
    """
    layers = weight_layers(model)
    counts = dict.fromkeys(layers, 0)

    def count(name: str, layer: nn.Conv2d | nn.Linear, args: object, out: Tensor) -> None:
        del args
        counts[name] += out.numel() * math.prod(layer.weight.shape[1:])

    weight = next(model.parameters())
    with observed(model, {layer: partial(count, name) for name, layer in layers.items()}):
        model(torch.zeros((1, *shape), dtype=weight.dtype, device=weight.device))
    return counts


@contextmanager
def observed(model: nn.Module, hooks: Mapping[nn.Module, Hook]) -> Iterator[None]:
    """Put a model in eval mode without gradients, with forward hooks; afterwards it is as it was."""
    with eval_mode(model), torch.no_grad(), ExitStack() as undo:
        for module, hook in hooks.items():
            undo.callback(module.register_forward_hook(hook).remove)
        yield


def energy_picojoules(mac_count: int) -> float:
    """Estimate the energy of so many float32 multiply-accumulates, in pJ: arithmetic at 45 nm, no memory traffic."""
    return mac_count * MAC_PICOJOULES


def spiking_picojoules(accumulates: float, macs: float) -> float:
    """Estimate the energy of accumulates for spikes and MACs for anything else, in pJ: as `energy_picojoules` does."""
    return accumulates * ACCUMULATE_PICOJOULES + macs * MAC_PICOJOULES


def feedback_bytes(rules: nn.Module) -> int:
    """Return what the rules keep in memory besides the weights while a network learns, in bytes.

    4 for each float32 number of a feedback matrix, magnitude or projection; 16 for the stream of each brsf layer.
    What is computed from the weight (usf's sign and scale) is not stored and counts 0; the state of a Hebbian
    layer between two updates and pc's activities are working memory and do not count either.
    """
    return sum(buffer.numel() * buffer.element_size() for buffer in rules.buffers())


class Share(NamedTuple):
    """What of a network is under one rule."""

    layers: int
    """Conv2d and Linear layers."""
    weights: int
    """Trainable, of these layers; for bp also all others, such as those of norms."""
    macs: int
    """Multiply-accumulates of these layers for one input."""


def shares(model: nn.Module, assignment: Mapping[str, str], shape: Sequence[int]) -> dict[str, Share]:
    """Split a network's cost by rule; weights add up to `parameters`, MACs to the sum of `macs`.

    `assignment` is layer name → rule, bp for those it does not name; `shape` is that of one input. Returns rule →
    share, bp first, then in alphabetical order.
    """
    cost = macs(model, shape)
    layers = weight_layers(model)
    rules = {name: assignment.get(name, "bp") for name in layers}
    split = {}
    for rule in ["bp", *sorted(set(rules.values()) - {"bp"})]:
        mine = [name for name in layers if rules[name] == rule]
        split[rule] = Share(len(mine), sum(parameters(layers[name]) for name in mine), sum(cost[name] for name in mine))
    rest = parameters(model) - sum(share.weights for share in split.values())
    split["bp"] = split["bp"]._replace(weights=split["bp"].weights + rest)
    return split
