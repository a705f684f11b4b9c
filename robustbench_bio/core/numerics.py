"""What float32 means on a GPU: all of its bits."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 convolutions and products in float32 for the duration of the block.

    cuDNN rounds the factors of float32 convolutions to ten bits unless it is told not to (TF32). That moves logits by
    a thousandth of their spread: enough to decide examples, and to tell a network from its own trace.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(_set(torch.backends.cuda.matmul, "fp32_precision", "ieee"))
        try:
            torch.backends.cudnn.allow_tf32  # noqa: B018
        except RuntimeError:  # somebody uses torch's newer switches, after which the older one cannot even be read
            undo.enter_context(_set(torch.backends.cudnn.conv, "fp32_precision", "ieee"))  # type: ignore[attr-defined]
            undo.enter_context(_set(torch.backends.cudnn.rnn, "fp32_precision", "ieee"))
        else:  # set by the newer ones, the older one could not be read inside the block
            undo.enter_context(_set(torch.backends.cudnn, "allow_tf32", False))
        yield


@contextlib.contextmanager
def _set(where: object, name: str, value: object) -> Iterator[None]:
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)
