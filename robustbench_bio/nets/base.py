"""What every network of the zoo is: plain weights, input in [0, 1], normalisation inside."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import Registry


@dataclass(frozen=True)
class Inputs:
    """What a network is built for."""

    shape: tuple[int, int, int]
    """(channels, height, width) of one image."""
    classes: int
    mean: tuple[float, ...]
    """Per channel, in input units [0, 1], and so is `std`."""
    std: tuple[float, ...]


class Normalise(nn.Module):
    """(x − mean) / std per channel: [N, C, H, W] in [0, 1] → normalised. Holds no entry of the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(inputs.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(inputs.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Net(nn.Module, ABC):
    """A classifier: x [N, C, H, W] in [0, 1] → logits [N, K].

    A subclass takes `Inputs` first and its own parameters by keyword; those keywords are what a model card
    may set under `[net]`, and values out of their range raise `UserError`. It knows nothing of learning rules:
    `rules.attach` gives it one.

    Attributes:
        auxiliary_head: a second classifier that runs in train mode only, or None; a forward hook on it sees
            its logits, which are not returned.
        drop_path: probability that train mode drops an operation for an example; None where there is nothing
            to drop.
    """

    auxiliary_head: nn.Module | None
    drop_path: float | None

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        self.auxiliary_head = None
        self.drop_path = None
        self.normalise = Normalise(inputs)
        self.description = ""

    @property
    def description(self) -> str:
        """Text that says all about the network but its parameters, "" for one that nobody has described."""
        return self._description

    @description.setter
    def description(self, text: str) -> None:
        self._description, self._described = text, self._parts()

    def is_described(self) -> bool:
        """Tell whether the description holds still: since it was given, nobody has exchanged or hooked a module."""
        return bool(self._description) and self._described == self._parts()

    def _parts(self) -> list[tuple[str, type[nn.Module], int]]:
        """Return name and class of every module, and how much of its forward pass is not its class's."""
        return [
            (
                name,
                type(module),
                len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module)),
            )
            for name, module in self.named_modules()
        ]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, K] for x [N, C, H, W] in [0, 1]."""

    def rule_slots(self) -> Mapping[str, Sequence[str]]:
        """Return the places that a bare rule name addresses: slot → names of its Conv2d and Linear layers.

        A random assignment draws one rule per slot. The default is one slot for each weight layer, the
        classifier included; cell networks give one slot for each operation that carries a rule.
        """
        return {name: (name,) for name in weight_layers(self)}

    def genotype_rules(self) -> Mapping[str, str]:
        """Return layer → rule as the architecture itself prescribes; empty unless a genotype does."""
        return {}

    def chain(self) -> list[nn.Module]:
        """Return stages with forward(x) == stage_L(… stage_1(x)), for rules that relax activities.

        Each stage ends in one weight layer: μ_l = W_l f(z_{l−1}) + b_l. Raises `UserError` for a network that is no
        chain.
        """
        raise UserError(
            f"predictive coding expects a chain of layers, got a {type(self).__name__}: "
            "it works on the networks mlp and cnn"
        )


def weight_layers(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the Conv2d and Linear layers of `module` by name, in registration order."""
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@contextlib.contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put the models into eval mode for the duration of the block; each of their modules gets its mode back."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


NETS: Registry[type[Net]] = Registry("network", "robustbench_bio.nets")
