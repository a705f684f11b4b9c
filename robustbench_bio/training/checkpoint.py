"""The one file that a training or a search continues from: tensors as safetensors, the rest as JSON in its metadata."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import opened, parsing, write_atomically

#: A checkpoint older than this is due to be written again.
CHECKPOINT_SECONDS = 60.0

#: Bytes of a checkpoint: a large network, its best state, its average and what the optimiser keeps.
MAX_CHECKPOINT = 10_000_000_000


class Saved(NamedTuple):
    """What a checkpoint holds: a state of plain dicts, lists, numbers and texts, and tensors by `PART/NAME`."""

    state: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one part, by the names that they have in it; empty if there are none."""
        start = f"{name}/"
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}


class Checkpoint:
    """A checkpoint file of one training or search, written as often as it is due.

    The layout is a promise: trainings of hours, begun with earlier versions, continue from such files.

    `path` None keeps nothing. `identity` is all that decides the outcome, as text: a file with another one is not
    continued, and called `owner`, such as "a training with another recipe".
    """

    def __init__(self, path: Path | None, identity: str, owner: str) -> None:
        self.path, self.identity, self.owner = path, identity, owner
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one was written, or this object made, more than a minute ago."""
        return time.monotonic() - self._written > CHECKPOINT_SECONDS

    def save(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write state and tensors; any reader sees all of it or what was there before."""
        if self.path is None:
            return
        # Cloned, as safetensors refuses tensors that share memory: `net/…` and `best/…` may.
        copies = {name: value.detach().clone().contiguous().cpu() for name, value in (tensors or {}).items()}
        metadata = {"identity": self.identity, "state": json.dumps(dict(state))}
        write_atomically(self.path, save_safetensors(copies, metadata=metadata))
        self._written = time.monotonic()

    def restore(self, device: str = "cpu") -> Saved | None:
        """Return what was saved, its tensors on a device, or None if there is nothing yet.

        Raises `UserError` for a damaged file, or the checkpoint of another training or search.
        """
        if self.path is None or not self.path.exists():
            return None
        with opened(self.path, MAX_CHECKPOINT), parsing(f"cannot continue from {self.path}", "delete it to start anew"):
            with safe_open(self.path, framework="pt", device=device) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("identity") != self.identity:
                raise UserError(f"{self.path} belongs to {self.owner}: name another --out, or delete it to start anew")
            return Saved(json.loads(metadata["state"]), tensors)


def in_part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names `NAME/KEY`, which `Saved.part` undoes."""
    return {f"{name}/{key}": value for key, value in tensors.items()}


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's tensors as `NUMBER/NAME`, where NUMBER is the parameter's place."""
    slots = optimiser.state_dict()["state"]
    return {f"{i}/{key}": value for i, slot in slots.items() for key, value in slot.items() if torch.is_tensor(value)}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the tensors that `optimiser_tensors` returned."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        slots.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})
