"""Measurements by name: a model of the zoo, a data set, an attack at several radii and gradients."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch

from robustbench_bio.attacks import WhiteBoxModel, make, rules_of
from robustbench_bio.attacks.access.surrogate import followed
from robustbench_bio.attacks.external import BACKENDS, NATIVE, names, peer
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import default_home
from robustbench_bio.core.registry import unknown
from robustbench_bio.core.version import __version__
from robustbench_bio.datasets import load_examples
from robustbench_bio.datasets.tensors import tensors
from robustbench_bio.diagnosis.comparisons import contradictions
from robustbench_bio.diagnosis.diagnose import NothingToAttack, diagnose
from robustbench_bio.evaluation.evaluate import data_hash, evaluate
from robustbench_bio.evaluation.judge import fingerprint
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.base import Precision, Record
from robustbench_bio.records.diagnosis import Diagnosis
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import NORMS, Norm, Threat, check_eps, parse_eps
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo import loading as zoo

#: Networks of the zoo that may lend their adversarial examples to a diagnosis.
TWINS = ("bp-resnet20", "bp-darts")


class _Question(Record):
    """What a probe depends on; its budget is a small part of an evaluation's."""

    version: str = __version__
    weights_sha256: str
    data_sha256: str
    norm: str
    eps: float
    gradient: str
    rules: str
    seed: int
    n_examples: int
    steps: int = 10
    queries: int = 100


@dataclass(frozen=True)
class Evaluation:
    """What `biorobust eval` shows.

    Attributes:
        results: one for each backend, radius and gradient.
        diagnosis: of a probe of the network and of what the results say of each other; None for l1 and l0.
    """

    results: list[Result]
    diagnosis: Diagnosis | None


def eval_model(
    model: str,
    *,
    attack: str = "pgd",
    dataset: str = "digits",
    norm: str = "linf",
    eps: str = "8/255",
    params: dict[str, Any] | None = None,
    gradient: str | None = None,
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
) -> Evaluation:
    """Evaluate one model of the zoo under one attack at every radius and gradient asked for.

    A short diagnosis at the first radius comes first (`probe`), so that masking is learnt before the time is spent.
    Everything that can be wrong about the call is found before the first attack starts.

    Args:
        model: id of the zoo, or path of a card.
        attack: name of an attack.
        dataset: name of a data set, or path of an .npz.
        norm: of the threat model.
        eps: radii separated by commas, `8/255` or `0.03`.
        params: parameters of the attack.
        gradient: as in `evaluate`, or "both" for rule and exact; None is what `gradients` says.
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
        One result for each backend, radius and gradient, backends first, then radii; and the verdict.
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
    examples = load_examples(dataset, "test", n_examples, data_root=data_root, data_file=data_file)
    x, y = tensors(examples)
    modes = gradients(net, gradient, x[:2].to(where))
    for mode in modes:
        WhiteBoxModel(net, mode)  # complains now of a rule gradient without rules
    chosen_precision = None if precision == "auto" else cast("Precision", precision)

    def try_out(library: str) -> None:
        found = peer(library, attack, norm, params or {}, chosen_precision)
        for radius, mode in itertools.product(radii, modes):
            found.check(net, mode, Threat(norm, radius), x[:1].to(where))

    cells = list(itertools.product(_backends(backend, try_out, notice), radii, modes))
    label = Path(model).stem if model.endswith(".toml") else model
    store = Store(out or default_home() / "results")
    store.check_writable()
    found = probe(
        net, (x.to(where), y.to(where)), norm=norm, eps=radii[0], gradient=modes[-1], seed=seed, label=label,
        store=store, progress=progress,
    )  # fmt: skip
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
                names=(label, Path(dataset).stem, "test"),
                store=store,
                progress=report,
                **(params or {}),
            )
        )
    return Evaluation(results, found and found.joined(contradictions(results)))


def probe(
    net: torch.nn.Module,
    data: tuple[torch.Tensor, torch.Tensor],
    *,
    norm: str,
    eps: float,
    gradient: str,
    seed: int,
    label: str,
    store: Store,
    n_examples: int = 64,
    progress: Callable[[int, int, str], None] | None = None,
) -> Diagnosis | None:
    """Return a short diagnosis of a network, from the store if it was made before.

    Args:
        net: in eval mode.
        data: (x, y) on its device.
        norm: of the threat model; for any but linf and l2 there is no diagnosis, and None is returned.
        eps: radius.
        gradient: what the measurement follows; one of rules is held against the exact gradient.
        seed: of every draw.
        label: what the network is called.
        store: where diagnoses are kept.
        n_examples: correctly classified examples to look at.
        progress: called before every check.

    Raises:
        UserError: see `diagnose`; a network without a single correct answer is "inconclusive".
    """
    if norm not in ("linf", "l2"):
        return None
    kind, rules = Gradient.read(gradient), rules_of(net)
    asked = "exact" if kind.source == "rule" else str(kind)
    question = _Question(
        n_examples=n_examples, weights_sha256=fingerprint(net),
        data_sha256=data_hash(*data, list(range(len(data[1])))), norm=norm, eps=eps,
        gradient=asked, seed=seed, rules=json.dumps(rules and [rules.assignment, rules.option_values]),
    )  # fmt: skip
    found = store.recall(question, label, Diagnosis)
    if found is not None:
        return found

    def named(done: int, total: int, name: str) -> None:
        if progress:
            progress(done, total, f"probe: {name}")

    try:
        found = diagnose(
            net, data, norm=cast("Norm", norm), eps=eps, gradient=asked, seed=seed, progress=named,
            n_examples=question.n_examples, steps=question.steps, queries=question.queries,
        )  # fmt: skip
    except NothingToAttack:
        return Diagnosis(verdict="inconclusive", reason="no example is classified correctly", checks=[], n=0, seconds=0)
    store.remember(question, label, found)
    return found


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


def gradients(net: torch.nn.Module, asked: str | None, x: torch.Tensor) -> list[str]:
    """Return the gradients to measure.

    Default: exact, or surrogates where thresholds leave no exact gradient; after rule where the network has rules.

    Args:
        net: in eval mode.
        asked: text of a gradient, "both" for rule and exact, or None for the default.
        x: [n, C, H, W], an input or two to look for thresholds with.
    """
    if asked == "both":
        return ["rule", "exact"]
    if asked is not None:
        return [str(Gradient.read(asked))]
    by_rule = ["rule"] if rules_of(net) is not None else []
    return [*by_rule, *followed(net, x)]


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
    gradient: str | None = None,
    source: str | None = None,
    n_examples: int = 200,
    seed: int = 0,
    device: str = "auto",
    data_root: Path | None = None,
    data_file: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Diagnosis:
    """Diagnose one model of the zoo on the test split.

    Args:
        model: id of the zoo, or path of a card.
        dataset: name of a data set, or path of an .npz.
        norm: "linf" or "l2".
        eps: one radius.
        gradient: of the white-box attacks, see `diagnose`; None is the last that an evaluation would take.
        source: network whose adversarial examples are tried too; by default the first of `TWINS` that there is.
        n_examples: correctly classified examples to look at.
        seed: of every draw.
        device: "auto", "cpu", "cuda" or "cuda:N".
        data_root: where data sets lie.
        data_file: an .npz that stands in for the data set.
        progress: called before every check.

    Raises:
        UserError: a norm other than linf and l2, or anything that `eval_model` refuses.
    """
    if norm not in ("linf", "l2"):
        raise UserError(f"expected norm linf or l2 for a diagnosis, got {norm!r}")
    radius = check_eps(parse_eps(eps), norm)
    where = pick_device(device)
    net = zoo.load_model(model, dataset, device=where, data_file=data_file)
    x, y = tensors(load_examples(dataset, "test", data_root=data_root, data_file=data_file))
    gradient = gradient or gradients(net, None, x[:2].to(where))[-1]
    twin = source or _twin(model, dataset)
    return diagnose(
        net,
        (x.to(where), y.to(where)),
        norm=cast("Norm", norm),
        eps=radius,
        gradient=gradient,
        source=zoo.load_model(twin, dataset, device=where, data_file=data_file) if twin else None,
        n_examples=n_examples,
        seed=seed,
        progress=progress,
    )


def _twin(model: str, dataset: str) -> str | None:
    """Return a backpropagation network of the zoo for the data set, not the model itself."""
    there = [
        name
        for name in TWINS
        if name != model and (entry := catalog.card(name).datasets.get(dataset)) and entry.weights
    ]
    return there[0] if there else None
