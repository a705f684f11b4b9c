"""Architectures by name, one file each: plain weights, input in [0, 1], normalisation inside; no learning rule.

A network joins by a file with a registered `Net`, an operation of cells by `operations.builds`.
"""

import inspect

import torch

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.nets.base import NETS, Inputs, Net
from robustbench_bio.nets.checks import whole

__all__ = ["NETS", "Inputs", "Net", "build", "keywords"]


def build(name: str, inputs: Inputs, *, seed: int, **params: object) -> Net:
    """Build a network with initial weights that depend on nothing but the seed; the global RNG is left alone.

    `params` are the network's own keywords, as a model card sets them under `[net]`. Raises `UserError` for an unknown
    network or parameter, a missing parameter, or a value out of its range.
    """
    kind = NETS.get(name)
    known = keywords(kind)
    for param in params:
        if param not in known:
            raise UserError(unknown(f"parameter of the network {name}", param, known))
    for param, needed in known.items():
        if needed and param not in params:
            raise UserError(f"expected {param} for the network {name}, got none: set {param}")
    whole("seed", seed, 0)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, which fork_rng is told not to restore.
        torch.default_generator.manual_seed(torch_generator(seed, "weights").initial_seed())
        return kind(inputs, **params)


def keywords(kind: type[Net]) -> dict[str, bool]:
    """Return the keywords that a network takes: name → whether it must be given."""
    signature = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default is p.empty for p in signature if p.kind is p.KEYWORD_ONLY}
