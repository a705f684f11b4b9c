"""Many networks under the attacks of a preset: what is run, and the ranking that comes of it."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from robustbench_bio.attacks import ATTACKS, make, rules_of
from robustbench_bio.attacks.access.surrogate import ATTACKED_BY, stepped
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import default_home
from robustbench_bio.core.registry import unknown
from robustbench_bio.datasets import load_examples, open_dataset
from robustbench_bio.datasets.base import Examples
from robustbench_bio.datasets.tensors import tensors
from robustbench_bio.diagnosis.campaign import pick_device, probe
from robustbench_bio.diagnosis.comparisons import contradictions
from robustbench_bio.evaluation.evaluate import evaluate
from robustbench_bio.evaluation.store import Store
from robustbench_bio.evaluation.worst_case import worst_case
from robustbench_bio.nets.base import Net
from robustbench_bio.records.base import Precision, Scalar
from robustbench_bio.records.diagnosis import Diagnosis
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.preset import AttackPreset, PresetCell
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Norm, check_eps, parse_eps
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo import loading as zoo

#: Parameters of attacks that are lengths in input units, and so follow the unit of eps.
LENGTHS = frozenset({"step_size", "start_sigma"})


@dataclass(frozen=True)
class Cell:
    """One attack at one radius with one gradient.

    Attributes:
        attack: name of the attack.
        norm: of the threat model.
        eps: radius in input units (pixels for l0).
        written: the radius as the preset writes it, with σ where it is in units of the data's standard deviation.
        gradient: which gradient the attack follows.
        params: parameters of the attack that the preset sets, lengths in input units.
    """

    attack: str
    norm: Norm
    eps: float
    written: str
    gradient: str
    params: dict[str, Scalar]

    def column(self) -> tuple[object, ...]:
        """Return what two cells share that differ in nothing but the gradient."""
        return self.attack, self.norm, self.eps, self.written, tuple(sorted(self.params.items()))

    def settings(self) -> list[str]:
        """Return the parameters, which tell this cell from another of the same attack and threat model."""
        return [f"{name}={value}" for name, value in self.params.items()]


@dataclass(frozen=True)
class Row:
    """One network in a grid.

    Attributes:
        model: id of the zoo, or name of a card file.
        results: one for each cell of the grid; None for a rule gradient of a network without rules.
        diagnosis: of a probe and of what the results say of each other; None where no cell is linf or l2.
        rank: 1 is best, networks that are equal share it; 0 before the ranking.
    """

    model: str
    results: tuple[Result | None, ...]
    diagnosis: Diagnosis | None = None
    rank: int = 0

    @property
    def measured(self) -> list[Result]:
        """The results that there are."""
        return [result for result in self.results if result is not None]

    @cached_property
    def stands(self) -> dict[tuple[str, float], list[bool]]:
        """Which examples withstand every attack and gradient, for each (norm, eps)."""
        return worst_case(self.measured)

    def worst(self, threat: tuple[str, float]) -> float:
        """Return the fraction of the examples that withstand everything within a threat model."""
        return sum(self.stands[threat]) / len(self.stands[threat])

    @property
    def clean_accuracy(self) -> float:
        """Fraction of examples classified correctly without an attack."""
        return self.measured[0].clean_accuracy


@dataclass(frozen=True)
class GridResult:
    """A finished grid.

    Attributes:
        preset: the attacks.
        dataset: name of the data set.
        n: examples of the test split that were attacked.
        sigma: mean standard deviation of the data set, the unit of radii written with σ.
        cells: columns of the grid.
        rows: networks, best first.
        skipped: network → why it was left out.
    """

    preset: AttackPreset
    dataset: str
    n: int
    sigma: float
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> tuple[str, float]:
        """(norm, eps) of the threat model whose worst case ranks the networks."""
        chosen = self.preset.headline()
        return chosen.norm, chosen.value()


def ranked(rows: Iterable[Row], threat: tuple[str, float]) -> tuple[Row, ...]:
    """Return the rows, largest worst case within `threat` first, then larger clean accuracy, then by name.

    Rows of equal worst case share their rank, and the next rank counts them all: 1, 2, 2, 4.
    """
    order = sorted(rows, key=lambda row: (-row.worst(threat), -row.clean_accuracy, row.model))
    scores = [row.worst(threat) for row in order]
    return tuple(replace(row, rank=1 + scores.index(score)) for row, score in zip(order, scores, strict=True))


def shared_meter(result: Result) -> float:
    """Return what one meter shows that is fed clean and adversarial batches alike: the mean of both accuracies.

    The released BioNAS code reports this as robust accuracy. There, an example that is wrong from the start counts
    as robust if the attack happens to mend it; here it never does.
    """
    return (result.clean_accuracy + result.robust_accuracy) / 2


def planned(preset: AttackPreset, sigma: float) -> tuple[Cell, ...]:
    """Return the cells of a preset, in its order, after checking attacks and parameters.

    Args:
        preset: the attacks.
        sigma: mean standard deviation of the data set in input units.

    Raises:
        UserError: an unknown attack or parameter, a norm that the attack does not serve, a missing parameter, a
            radius that is too large.
    """
    return tuple(
        _cell(preset.name, found, eps, gradient, sigma)
        for found in preset.cells for eps in found.eps for gradient in found.gradients
    )  # fmt: skip


def stood_in(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return cells and, after each that follows the exact gradient, what stands in for it where thresholds leave none.

    Of both, a network is put to those that `applies` to it.
    """
    found: list[Cell] = []
    for cell in cells:
        found.append(cell)
        if cell.gradient == "exact" and _follows(cell):
            found += [twin for name in ATTACKED_BY if (twin := replace(cell, gradient=name)) not in (*cells, *found)]
    return tuple(found)


def _cell(preset: str, found: PresetCell, written: str, gradient: str, sigma: float) -> Cell:
    params, eps = found.params, parse_eps(written)
    try:
        make(found.attack, found.norm, params)
        if found.eps_unit == "normalised":
            eps, written = eps * sigma, f"{written} σ"
            params = {name: float(v) * sigma if name in LENGTHS else v for name, v in params.items()}
        check_eps(eps, found.norm)
    except UserError as error:
        raise UserError(f"preset {preset}: {error}") from None
    return Cell(found.attack, found.norm, eps, written, gradient, params)


def find_models(patterns: str) -> list[str]:
    """Return the models that comma-separated ids, paths of cards (.toml) and patterns with * stand for, each once.

    Raises:
        UserError: a part that no model of the zoo and no file matches.
    """
    found: list[str] = []
    for pattern in (part.strip() for part in patterns.split(",")):
        known = catalog.model_ids()
        if pattern.endswith(".toml"):
            folder, name = Path(pattern).parent, Path(pattern).name
            matches = sorted(map(str, folder.glob(name))) if "*" in name else [pattern]
        else:
            matches = [model for model in known if fnmatchcase(model, pattern)]
        if not matches:
            raise UserError(unknown("model", pattern, known))
        found += matches
    return list(dict.fromkeys(found))


def _trained(models: Sequence[str], dataset: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return label → model for those with weights for a data set, and label → reason for the others."""
    there: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for model in models:
        label = Path(model).stem if model.endswith(".toml") else model
        if label in there or label in skipped:
            raise UserError(f"expected models of different names, got {label!r} twice: rename a card file")
        entry = catalog.card(model).datasets.get(dataset)
        if entry is not None and entry.weights:
            there[label] = model
        else:
            skipped[label] = f"no weights for {dataset}" if entry else f"nothing trained for {dataset}"
    if not there:
        names = ", ".join(skipped)
        raise UserError(f"expected a model with weights for {dataset}, got {names} without: train one first")
    return there, skipped


def run(
    preset: str,
    models: str,
    *,
    dataset: str = "digits",
    n_examples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    data_root: Path | None = None,
    data_file: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> GridResult:
    """Run every attack of a preset on every model, or read from the store what was measured before.

    Everything that can be wrong about the call is found before the first attack starts. What is finished is kept
    batch by batch, so that the same call continues where an interrupted one stopped.

    Args:
        preset: name of a preset, or path of one that ends in .toml.
        models: ids, patterns with *, paths of cards; separated by commas.
        dataset: name of a data set, or path of an .npz.
        n_examples: first N of the test split; by default as many as the preset says.
        seed: of the attacks' draws.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder of results.
        data_root: where data sets lie.
        data_file: an .npz that stands in for the data set.
        progress: called with examples done, their total over the whole grid, and what runs now.
        notice: called with a line for each model that is skipped for lack of weights.

    Raises:
        UserError: unknown names, a preset that does not fit the attacks, no model with weights.
    """
    chosen = catalog.preset(preset)
    where = pick_device(device)
    names, skipped = _trained(find_models(models), dataset)
    std = open_dataset(dataset, data_file).std
    sigma = sum(std) / len(std)
    cells = planned(chosen, sigma)
    nets = {label: zoo.load_model(name, dataset, device=where, data_file=data_file) for label, name in names.items()}
    wanted = chosen.n_examples if n_examples is None else n_examples
    examples = load_examples(dataset, "test", wanted, data_root=data_root, data_file=data_file)
    store = Store(out or default_home() / "results")
    for label, reason in skipped.items():
        if notice:
            notice(f"{label} is skipped: {reason}")
    if any(map(has_thresholds, nets.values())):
        cells = stood_in(cells)
    total = len(examples) * sum(applies(cell, net) for net in nets.values() for cell in cells)
    work = Work(examples, Path(dataset).stem, seed, where, store, chosen.probe_examples, progress, total)
    headline = chosen.headline()
    rows = [work.row(label, net, cells, (headline.norm, headline.value())) for label, net in nets.items()]
    best_first = ranked(rows, (headline.norm, headline.value()))
    return GridResult(chosen, Path(dataset).stem, len(examples), sigma, cells, best_first, skipped)


def applies(cell: Cell, net: Net) -> bool:
    """Tell whether a cell can be measured on a network.

    A rule gradient needs rules. An attack that follows the exact gradient needs a network without thresholds, one that
    follows a surrogate needs thresholds.
    """
    kind = Gradient.read(cell.gradient)
    if kind.source == "rule":
        return rules_of(net) is not None
    return bool(kind.surrogate) == (_follows(cell) and has_thresholds(net))


_THRESHOLDS: "weakref.WeakKeyDictionary[Net, bool]" = weakref.WeakKeyDictionary()


def has_thresholds(net: Net) -> bool:
    """Tell whether a network spikes or rounds, so that its exact gradient is zero or misses most of what it does."""
    if net not in _THRESHOLDS:  # a matter of the architecture, asked for every cell of a grid
        device = next(net.parameters()).device
        _THRESHOLDS[net] = stepped(net, torch.zeros(2, *net.inputs.shape, device=device))
    return _THRESHOLDS[net]


def _follows(cell: Cell) -> bool:
    return ATTACKS.get(cell.attack).white_box


@dataclass
class Work:
    """What all measurements of a grid or a board share, and how many examples are done.

    Attributes:
        examples: what is attacked.
        dataset: what results call it.
        seed: of the attacks' draws.
        device: where networks are.
        store: where results and diagnoses are looked up and kept.
        probe_examples: correctly classified examples that the probe looks at.
        progress: called with examples done, their total and what runs now.
        total: examples to be attacked, over all networks and cells.
        done: of these.
        precision: of gradient passes; None for the fastest that is safe here.
    """

    examples: Examples
    dataset: str
    seed: int
    device: str
    store: Store
    probe_examples: int
    progress: Callable[[int, int, str], None] | None
    total: int
    done: int = 0
    precision: Precision | None = None

    def row(self, label: str, net: Net, cells: Sequence[Cell], headline: tuple[str, float]) -> Row:
        """Checks one network, then run every cell on it."""
        found = self.probe(label, net, cells, headline)
        results = tuple(self.measure(label, net, cell) for cell in cells)
        measured = [result for result in results if result is not None]
        return Row(label, results, found and found.joined(contradictions(measured)))

    def probe(self, label: str, net: Net, cells: Sequence[Cell], headline: tuple[str, float]) -> Diagnosis | None:
        """Return a short diagnosis at the headline's radius, or at the first that can be diagnosed."""
        threats = [headline, *((cell.norm, cell.eps) for cell in cells)]
        norm, eps = next((threat for threat in threats if threat[0] in ("linf", "l2")), headline)
        x, y = tensors(self.examples)

        def report(_: int, __: int, name: str) -> None:
            if self.progress:
                self.progress(self.done, self.total, f"{label}: {name}")

        return probe(
            net, (x.to(self.device), y.to(self.device)), norm=norm, eps=eps, seed=self.seed,
            gradient=ATTACKED_BY[-1] if has_thresholds(net) else "exact", label=label,
            store=self.store, n_examples=self.probe_examples, progress=report,
        )  # fmt: skip

    def measure(self, label: str, net: Net, cell: Cell) -> Result | None:
        """Return the result of one cell on one network; None where the network has no rules to attack through."""
        if not applies(cell, net):
            return None
        line = f"{label}: {cell.attack} {cell.norm} {cell.written}, {cell.gradient} gradient"

        def report(done: int, _: int) -> None:
            if self.progress:
                self.progress(self.done + done, self.total, line)

        report(0, 0)
        params: dict[str, Any] = dict(cell.params)
        result = evaluate(
            net,
            tensors(self.examples),
            attack=cell.attack,
            norm=cell.norm,
            eps=cell.eps,
            gradient=cell.gradient,
            seed=self.seed,
            precision=self.precision,
            device=self.device,
            ids=self.examples.ids.tolist(),
            names=(label, self.dataset, "test"),
            store=self.store,
            progress=report,
            **params,
        )
        self.done += len(self.examples)
        report(0, 0)
        return result
