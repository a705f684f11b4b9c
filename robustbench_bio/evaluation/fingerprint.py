"""Which network was measured: one hash of all that decides its answers."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustbench_bio.attacks.access.mean_prediction import seeded_by_input
from robustbench_bio.nets.base import Net

#: Inputs on which a network without a description shows what it computes beyond its parameters and buffers.
_ANSWERS = 4


def state_sha256(model: nn.Module) -> str:
    """Return a hash of every parameter and buffer by name: what an attack may not change."""
    digest = hashlib.sha256()
    state_digest(digest, model)
    return digest.hexdigest()


def state_digest(digest: "hashlib._Hash", model: nn.Module) -> None:
    """Let a hash take in every parameter and buffer: name, dtype, shape, bytes."""
    for name, tensor in _state(model):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def fingerprint(model: nn.Module, x: Tensor) -> str:
    """Return the hash that names a network in a spec.

    It covers parameters and buffers, and what the network makes of them: for a network of the zoo its card's
    description, which says everything and is the same on every machine; for any other module the tree of its classes
    with their plain attributes, and its answers to a few inputs, so that two networks that differ in nothing but a
    number in their code never share a result. It does not rest on the text that torch prints for a module, which
    changes with torch.

    Args:
        model: in eval mode.
        x: [n, C, H, W], inputs of the measurement; the first few are asked. Networks that differ elsewhere only
            would have to agree on all of these.
    """
    digest = hashlib.sha256(state_sha256(model).encode())
    description = getattr(model, "description", "")
    digest.update(str(description).encode())
    if not (isinstance(model, Net) and description):
        for name, module in model.named_modules():
            digest.update(f"|{name}|{type(module).__qualname__}|{_plain_attributes(module)}|".encode())
        digest.update(_answers(model, x[:_ANSWERS]).encode())
    return digest.hexdigest()


def _plain_attributes(module: nn.Module) -> str:
    """Return the numbers and texts that a module holds beside its tensors, such as a stride; not its mode."""
    plain = (bool, int, float, str, tuple, type(None))
    public = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return repr(sorted((name, value) for name, value in public.items() if isinstance(value, plain)))


@torch.no_grad()
def _answers(model: nn.Module, x: Tensor) -> str:
    """Return what a network answers, as text that rounding hardly ever changes; "" where its answers are no logits.

    The order of the classes for each input, and how far the logits spread: digits of single logits would differ
    between processors, and a result would be measured again for nothing.
    """
    if any(module.training for module in model.modules()):
        return ""  # asking would change its batch norms; the gate will refuse it
    # Each input as it is and as its negative: a network may ignore what a few natural images do not show.
    x = torch.cat([x, 1 - x])
    try:
        with seeded_by_input("fingerprint", x=x):
            logits = model(x)
    except Exception:  # noqa: BLE001  (whatever a user's network raises, the gate meets it again and says so)
        return ""
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not bool(torch.isfinite(logits).all()):
        return ""
    return f"{logits.argsort(stable=True, dim=-1).tolist()} {logits.double().std().item():.2g}"
