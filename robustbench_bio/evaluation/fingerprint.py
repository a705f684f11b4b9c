"""Which network was measured: one hash of all that decides its answers."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustbench_bio.attacks.access.mean_prediction import seeded_by_input
from robustbench_bio.core.numerics import full_float32
from robustbench_bio.core.rng import torch_generator
from robustbench_bio.evaluation.contents import contents, tensor_bytes
from robustbench_bio.nets.base import Net

#: Inputs on which a network without a description shows what it computes beyond its parameters and buffers.
_ANSWERS = 4

#: Classes whose order is looked at: among the many behind them, neighbours lie as close as rounding.
_LEADING = 10


def state_sha256(model: nn.Module, but: frozenset[str] = frozenset()) -> str:
    """Return a hash of every parameter and buffer by name, some left out: what an attack may not change."""
    digest = hashlib.sha256()
    state_digest(digest, model, but)
    return digest.hexdigest()


def state_digest(digest: "hashlib._Hash", model: nn.Module, but: frozenset[str] = frozenset()) -> None:
    """Let a hash take in every parameter and buffer, some left out: name, dtype, shape, bytes."""
    for name, tensor in _state(model):
        if name not in but:
            digest.update(f"|{name}".encode() + tensor_bytes(tensor))


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def is_described(model: nn.Module) -> bool:
    """Tell whether a card's description says all of a network: one of the zoo that nobody has altered."""
    return isinstance(model, Net) and model.is_described()


def fleeting(model: nn.Module, x: Tensor) -> frozenset[str]:
    """Return the names of buffers in which a forward pass leaves something, such as a membrane.

    They are no part of what a network is. x is [n, C, H, W]; two inputs and one are asked about.
    """
    if is_described(model):
        return frozenset()
    left = [{name: tensor_bytes(buffer) for name, buffer in model.named_buffers()} for _ in _passes(model, x)]
    names = {name for one in left for name in one}
    return frozenset(name for name in names if len({one.get(name) for one in left}) > 1)


@torch.no_grad()
def _passes(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Make forward passes on different inputs in batches of different sizes; stop after each."""
    if any(module.training for module in model.modules()):
        return  # a pass would change its batch norms; the gate will refuse it
    for given in (x[:2].clone(), 1 - x[:1]):
        try:
            with seeded_by_input("fingerprint", x=given):
                model(given)
        except Exception:  # noqa: BLE001  (whatever a user's network raises, the gate meets it again and says so)
            return
        yield


def fingerprint(model: nn.Module, x: Tensor) -> str:
    """Return the hash that names a network in a spec.

    It covers parameters and buffers, and what the network makes of them: for a network of the zoo its card's
    description, which says everything and is the same on every machine; for any other module all else that it reaches
    (`contents`), as far as a forward pass leaves it as it was, and its answers to a few inputs. It does not rest on
    the text that torch prints for a module, which changes with torch.

    Args:
        model: in eval mode.
        x: [n, C, H, W], inputs of the measurement; the first few are asked. Networks that differ elsewhere only
            would have to agree on all of these.
    """
    digest = hashlib.sha256(state_sha256(model, fleeting(model, x)).encode())
    description = getattr(model, "description", "")
    digest.update(str(description).encode())
    if not is_described(model):
        digest.update(repr(_lasting([contents(model) for _ in _passes(model, x)] or [contents(model)])).encode())
        digest.update(_answers(model, x[:_ANSWERS]).encode())
    return digest.hexdigest()


def _lasting(contents_after: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return what is the same after every pass, nothing of a list or an object that a pass changed."""
    last = contents_after[-1]
    changed = [path for one in contents_after for path, value in one.items() if last.get(path) != value]
    gone = tuple(f"{path}." for path in changed)
    return sorted(item for item in last.items() if item[0] not in changed and not item[0].startswith(gone))


@torch.no_grad()
@full_float32()
def _answers(model: nn.Module, x: Tensor) -> str:
    """Return what a network answers, as text that rounding hardly ever changes; "" where its answers are no logits.

    The order of the leading classes for each input, and how far the logits of each kind of input spread: digits of
    single logits would differ between processors, and a result would be measured again for nothing.
    """
    if any(module.training for module in model.modules()):
        return ""  # asking would change its batch norms; the gate will refuse it
    noise = torch.rand(x.shape, generator=torch_generator("fingerprint")).to(x.device)
    # Each input as it is and as its negative, and noise: a network may ignore what a few natural images do not show.
    kinds = torch.cat([x, 1 - x, noise, 0.5 + 0.1 * (noise - 0.5)])
    try:
        with seeded_by_input("fingerprint", x=kinds):
            logits = model(kinds)
    except Exception:  # noqa: BLE001  (whatever a user's network raises, the gate meets it again and says so)
        return ""
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not bool(torch.isfinite(logits).all()):
        return ""
    order = logits.argsort(stable=True, dim=-1)[..., -_LEADING:].tolist()
    return f"{order} {[f'{part.double().std().item():.3g}' for part in logits.chunk(4)]}"
