"""Passes through a supernet that leave some of it, or all of it, as it was."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def frozen(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Spare backward passes the gradients of these tensors for the duration of the block."""
    learning = [tensor for tensor in tensors if tensor.requires_grad]
    for tensor in learning:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in learning:
            tensor.requires_grad_(True)


class FrozenStatistics:
    """Lets passes in train mode leave no trace in a network; batch norm still uses the batch's statistics.

    The layers under rules, `ruled`, are told that nobody trains, so that Hebbian rules do not count what they see.
    """

    def __init__(self, net: nn.Module, ruled: Iterable[str]) -> None:
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._copies = [torch.empty_like(buffer) for buffer in self._buffers]
        self._layers = [net.get_submodule(name) for name in ruled]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Restore batch norm's running statistics after the block."""
        modes = [layer.training for layer in self._layers]
        _copy(self._copies, self._buffers)
        for layer in self._layers:
            layer.training = False
        try:
            yield
        finally:
            _copy(self._buffers, self._copies)
            for layer, mode in zip(self._layers, modes, strict=True):
                layer.training = mode


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)  # a supernet has thousands
