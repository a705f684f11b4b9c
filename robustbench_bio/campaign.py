"""Measurements by name: a model of the zoo, a data set, an attack at several radii and gradients."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from robustbench_bio import zoo
from robustbench_bio.api import tensors
from robustbench_bio.attacks import make, rules_of
from robustbench_bio.backends import BACKENDS, NATIVE, names, peer
from robustbench_bio.datasets import load_data
from robustbench_bio.diagnosis import Diagnosis, diagnose
from robustbench_bio.errors import UserError
from robustbench_bio.evaluation import evaluate
from robustbench_bio.records import GradientMode, Precision, Result, check_eps, parse_eps
from robustbench_bio.registry import unknown
from robustbench_bio.store import Store, default_home
from robustbench_bio.threat import NORMS, Norm, Threat


def eval_model(
    model: str,
    *,
    attack: str = "pgd",
    dataset: str = "digits",
    norm: str = "linf",
    eps: str = "8/255",
    params: dict[str, Any] | None = None,
    gradient: Literal["exact", "rule", "both"] | None = None,
    backend: str = NATIVE,
    n_examples: int | None = None,
    batch_size: int = 256,
    precision: str = "auto",
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    data_root: Path | None = None,
    data_file: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    notice: Callable[[str], None] | None = None,
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
        backend: "native", a library, or "all": native first, then every library that can do the same.
        n_examples: first N of the test split, all by default.
        batch_size: examples attacked together.
        precision: "auto", "float32" or "bfloat16".
        seed: of the attack's draws.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder of results.
        data_root: where data sets lie.
        data_file: an .npz that stands in for the data set.
        progress: called with examples done, their total over the whole call, and what runs now.
        notice: called with one line if "all" has to leave libraries out.

    Returns:
        One result for each backend, radius and gradient, backends first, then radii.
    """
    if norm not in NORMS:
        raise UserError(unknown("norm", norm, list(NORMS)))
    radii = [check_eps(parse_eps(part), norm) for part in eps.split(",")]
    make(attack, norm, params or {})
    if backend not in (*names(), "all"):
        raise UserError(unknown("backend", backend, [*names(), "all"]))
    if precision not in ("auto", *get_args(Precision)):
        raise UserError(unknown("precision", precision, ["auto", *get_args(Precision)]))
    where = pick_device(device)
    net = zoo.load_model(model, dataset, device=where, data_file=data_file)
    examples = load_data(dataset, "test", n_examples, data_root=data_root, data_file=data_file)
    x, y = tensors(examples)
    modes = gradients(net, gradient)
    chosen_precision = None if precision == "auto" else cast("Precision", precision)

    def try_out(library: str) -> None:
        found = peer(library, attack, norm, params or {}, chosen_precision)
        for radius, mode in itertools.product(radii, modes):
            found.check(net, mode, Threat(norm, radius), x[:1].to(where))

    cells = list(itertools.product(_backends(backend, try_out, notice), radii, modes))
    results: list[Result] = []
    for side, radius, mode in cells:
        before, total = len(results) * len(y), len(cells) * len(y)

        what = f"{attack}, {mode} gradient" + ("" if side == NATIVE else f", {side}")

        def report(done: int, _: int, before: int = before, total: int = total, what: str = what) -> None:
            if progress:
                progress(before + done, total, what)

        report(0, 0)
        results.append(
            evaluate(
                net,
                (x, y),
                attack=attack,
                norm=norm,
                eps=radius,
                gradient=mode,
                backend=side,
                seed=seed,
                batch_size=batch_size,
                precision=chosen_precision,
                device=where,
                ids=examples.ids.tolist(),
                names=(Path(model).stem if model.endswith(".toml") else model, Path(dataset).stem, "test"),
                store=Store(out or default_home() / "results"),
                progress=report,
                **(params or {}),
            )
        )
    return results


def _backends(asked: str, try_out: Callable[[str], None], notice: Callable[[str], None] | None) -> list[str]:
    """Return the backends to run; with "all", those that `try_out` refuses by a `UserError` are left out."""
    if asked != "all":
        if asked != NATIVE:
            try_out(asked)
        return [asked]
    kept, left_out = [NATIVE], []
    for library in BACKENDS.names():
        try:
            try_out(library)
        except UserError as reason:
            left_out.append(f"{library} ({reason})")
        else:
            kept.append(library)
    if left_out and notice:
        notice(f"left out: {'; '.join(left_out)}")
    return kept


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


def diagnose_model(
    model: str,
    *,
    dataset: str = "digits",
    norm: str = "linf",
    eps: str = "8/255",
    n_examples: int = 200,
    seed: int = 0,
    device: str = "auto",
    data_root: Path | None = None,
    data_file: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Diagnosis:
    """Diagnose one model of the zoo on the test split; arguments as in `eval_model`.

    Raises:
        UserError: a norm other than linf and l2, or anything that `eval_model` refuses.
    """
    if norm not in ("linf", "l2"):
        raise UserError(f"expected norm linf or l2 for a diagnosis, got {norm!r}")
    radius = check_eps(parse_eps(eps), norm)
    where = pick_device(device)
    net = zoo.load_model(model, dataset, device=where, data_file=data_file)
    x, y = tensors(load_data(dataset, "test", data_root=data_root, data_file=data_file))
    return diagnose(
        net,
        (x.to(where), y.to(where)),
        norm=cast("Norm", norm),
        eps=radius,
        n_examples=n_examples,
        seed=seed,
        progress=progress,
    )
