"""The one file that a search continues from: tensors as safetensors, the rest as JSON in its metadata."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import write_atomically


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: plain dicts, lists, numbers and texts.
        tensors: name → tensor.
    """

    state: dict[str, Any]
    tensors: dict[str, Tensor]


def save(path: Path | None, identity: str, saved: Saved) -> None:
    """Write a checkpoint; any reader sees all of it or what was there before. Nothing without a path."""
    if path is None:
        return
    tensors = {name: value.detach().clone().contiguous().cpu() for name, value in saved.tensors.items()}
    about = {"identity": identity, "state": json.dumps(saved.state)}
    write_atomically(path, save_safetensors(tensors, metadata=about))


def restore(path: Path | None, identity: str, device: str) -> Saved | None:
    """Return what was saved, or None if there is nothing yet.

    Raises:
        UserError: a damaged file, or the checkpoint of another search.
    """
    if path is None or not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device=device) as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot continue from {path}: {error}: delete it to start anew") from None
    if about.get("identity") != identity:
        raise UserError(
            f"{path} belongs to a search with other settings, seed, space or data: "
            "name another --out, or delete it to start anew"
        )
    return Saved(json.loads(about["state"]), tensors)


def optimiser_tensors(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's tensors as `prefix/NUMBER/NAME`."""
    slots = optimiser.state_dict()["state"]
    return {f"{prefix}/{i}/{k}": v for i, slot in slots.items() for k, v in slot.items() if isinstance(v, Tensor)}


def load_optimiser(prefix: str, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser the tensors that `optimiser_tensors` named."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == prefix:
            i, _, key = rest.partition("/")
            slots.setdefault(int(i), {})[key] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})
