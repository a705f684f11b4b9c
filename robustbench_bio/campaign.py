"""Measurements by name: a model of the zoo, a data set, an attack at several radii and gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from robustbench_bio import zoo
from robustbench_bio.api import tensors
from robustbench_bio.attacks import make, rules_of
from robustbench_bio.datasets import load_data
from robustbench_bio.errors import UserError
from robustbench_bio.evaluation import evaluate
from robustbench_bio.records import GradientMode, Precision, Result, check_eps, parse_eps
from robustbench_bio.registry import unknown
from robustbench_bio.store import Store, default_home
from robustbench_bio.threat import NORMS


def eval_model(
    model: str,
    *,
    attack: str = "pgd",
    dataset: str = "digits",
    norm: str = "linf",
    eps: str = "8/255",
    params: dict[str, Any] | None = None,
    gradient: Literal["exact", "rule", "both"] | None = None,
    n_examples: int | None = None,
    batch_size: int = 256,
    precision: str = "auto",
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    data_root: Path | None = None,
    data_file: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Result]:
    """Evaluate one model of the zoo under one attack at every radius and gradient asked for.

    Everything that can be wrong about the call is found before the first attack starts.

    Args:
        model: id of the zoo, or path of a card.
        attack: name of an attack.
        dataset: name of a data set, or path of an .npz.
        norm: of the threat model.
        eps: radii separated by commas, `8/255` or `0.03`.
        params: parameters of the attack.
        gradient: None is both for a network with rules, else exact.
        n_examples: first N of the test split, all by default.
        batch_size: examples attacked together.
        precision: "auto", "float32" or "bfloat16".
        seed: of the attack's draws.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder of results.
        data_root: where data sets lie.
        data_file: an .npz that stands in for the data set.
        progress: called with examples done, their total over the whole call, and what runs now.

    Returns:
        One result for each radius and gradient, radii first.
    """
    if norm not in NORMS:
        raise UserError(unknown("norm", norm, list(NORMS)))
    radii = [check_eps(parse_eps(part), norm) for part in eps.split(",")]
    make(attack, norm, params or {})
    if precision not in ("auto", *get_args(Precision)):
        raise UserError(unknown("precision", precision, ["auto", *get_args(Precision)]))
    where = pick_device(device)
    net = zoo.load_model(model, dataset, device=where, data_file=data_file)
    examples = load_data(dataset, "test", n_examples, data_root=data_root, data_file=data_file)
    x, y = tensors(examples)
    modes = gradients(net, gradient)
    cells = [(radius, mode) for radius in radii for mode in modes]
    results: list[Result] = []
    for radius, mode in cells:
        before, total = len(results) * len(y), len(cells) * len(y)

        def report(done: int, _: int, before: int = before, total: int = total, mode: str = mode) -> None:
            if progress:
                progress(before + done, total, f"{attack}, {mode} gradient")

        report(0, 0)
        results.append(
            evaluate(
                net,
                (x, y),
                attack=attack,
                norm=norm,
                eps=radius,
                gradient=mode,
                seed=seed,
                batch_size=batch_size,
                precision=None if precision == "auto" else cast("Precision", precision),
                device=where,
                ids=examples.ids.tolist(),
                names=(Path(model).stem if model.endswith(".toml") else model, Path(dataset).stem, "test"),
                store=Store(out or default_home() / "results"),
                progress=report,
                **(params or {}),
            )
        )
    return results


def gradients(net: torch.nn.Module, asked: Literal["exact", "rule", "both"] | None) -> list[GradientMode]:
    """Return the gradient modes to measure; the default is both where the network has rules."""
    if asked is None:
        asked = "both" if rules_of(net) is not None else "exact"
    return ["rule", "exact"] if asked == "both" else [asked]


def pick_device(device: str) -> str:
    """Return the device to use: "auto" is the first GPU if there is one.

    Raises:
        UserError: the device does not exist here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=device).device.type not in ("cpu", "cuda"):
            raise RuntimeError("nothing else is served")  # noqa: TRY301
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"expected a device that is here (auto, cpu, cuda, cuda:N), got {device!r}: {reason}") from None
    return device
