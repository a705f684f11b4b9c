"""From names to a plan: models of the zoo, data sets, attacks or presets, as the command line gives them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self, cast, get_args

import torch

from robustbench_bio.attacks import ATTACKS, WhiteBoxModel
from robustbench_bio.attacks.access.comparison import followed, own_differs
from robustbench_bio.attacks.external import BACKENDS, NATIVE, Peer, names
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import unknown
from robustbench_bio.evaluation.plan import Measurement, Plan, Settings, Slice, Subject, default_attack
from robustbench_bio.records.base import Precision
from robustbench_bio.records.gradient import EXACT, OWN, RULE, Gradient
from robustbench_bio.records.preset import AskedMeasurement, AttackPreset
from robustbench_bio.records.threat import Threat, check_eps, parse_eps
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import DataSource

#: Parameters of attacks that are lengths in input units, and so follow the unit of eps.
LENGTHS = frozenset({"step_size", "start_sigma"})

#: What follows the attack that runs where none is named on networks with thresholds, and a budget that keeps it to a
#: minute for 500 digits.
SEARCH, SEARCH_BUDGET = "coordinate", {"queries": 1300, "restarts": 1}


@dataclass(frozen=True)
class AskedAttack:
    """An attack as `biorobust eval` is asked for it.

    Attributes:
        attack: its name, or None for what finds most in seconds (`default_attack`), and behind it `SEARCH` for a
            network with thresholds.
        threats: one for each radius.
        gradient: text of a gradient, "both" for rule (own without rules) and exact, or None for what fits the network.
        backend: "native", a library, or "all": native first, then every library that can do the same.
    """

    attack: str | None
    threats: Sequence[Threat]
    params: Mapping[str, Any] = field(default_factory=dict)
    gradient: str | None = None
    backend: str = NATIVE

    @classmethod
    def read(cls, attack: str | None, norm: str | None, eps: str | None, **asked: Any) -> Self:
        """Return an attack asked for in texts; norm and radii are natural to the attack where they are None.

        Raises:
            UserError: an unknown attack or norm, a radius that is none.
        """
        runs = ATTACKS.get(attack or default_attack(asked.get("backend", NATIVE)))
        return cls(attack, Threat.several(runs.natural_norm() if norm is None else norm, eps), **asked)

    @property
    def name(self) -> str:
        """The attack that runs."""
        return self.attack or default_attack(self.backend)

    def measurements(self, backend: str, gradients: Sequence[Gradient]) -> Iterator[Measurement]:
        """Yield every radius and gradient through one library."""
        for threat, gradient in itertools.product(self.threats, gradients):
            yield Measurement(self.name, threat, gradient, dict(self.params), backend)
        if self.attack is None and backend == NATIVE and gradients[-1].surrogate:
            for threat in self.threats:
                if threat.norm in ATTACKS.get(SEARCH).norms:
                    yield Measurement(SEARCH, threat, gradients[-1], dict(SEARCH_BUDGET))

    def check(self) -> None:
        """Raise `UserError` for a name, norm or parameter that does not fit, before anything is loaded."""
        for threat in self.threats:
            Measurement(self.name, threat, params=dict(self.params)).check()
        if self.backend not in (*names(), "all"):
            raise UserError(unknown("backend", self.backend, [*names(), "all"]))


def eval_plan(
    model: str,
    source: DataSource,
    asked: AskedAttack,
    *,
    n_examples: int | None = None,
    settings: Settings,
    notice: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Return the plan of one network under one attack, at every radius and with every gradient asked for.

    Everything that can be wrong about the call is found here, before the first attack starts.

    `notice` is called with one line if "all" has to leave libraries out.

    Raises:
        UserError: unknown names, or a network, attack and library that do not go together.
    """
    asked.check()
    net = source.network(model, settings.device)
    examples = Slice.load(source, n_examples)
    x = examples.x[:8].to(settings.device)
    follows = ATTACKS.get(asked.name).white_box or asked.gradient is not None
    gradients = gradients_of(net, asked.gradient, x) if follows else [EXACT]
    for gradient in gradients:
        WhiteBoxModel(net, gradient)  # complains now of a rule gradient without rules

    def check(backend: str) -> None:
        for measurement in asked.measurements(backend, gradients):
            library = measurement.built(settings.precision)
            if isinstance(library, Peer):
                library.check(net, measurement.gradient, measurement.threat, x[:1])

    backends = _backends(asked.backend, check, notice)
    asked_for = tuple(measurement for backend in backends for measurement in asked.measurements(backend, gradients))
    return Plan(examples, (Subject(label_of(model), net),), asked_for, settings, as_asked=True)


def _backends(asked: str, check: Callable[[str], None], notice: Callable[[str], None]) -> list[str]:
    """Return the backends to run; with "all", those that `check` refuses by a `UserError` are left out."""
    if asked != "all":
        if asked != NATIVE:
            check(asked)
        return [asked]
    kept, left_out = [NATIVE], []
    for library in BACKENDS.names():
        try:
            check(library)
        except UserError as reason:
            left_out.append(f"{library} ({reason})")
        else:
            kept.append(library)
    if left_out:
        notice(f"left out: {'; '.join(left_out)}")
    return kept


def gradients_of(net: torch.nn.Module, asked: str | None, x: torch.Tensor) -> list[Gradient]:
    """Return the gradients to measure.

    Default: exact, or surrogates where thresholds leave no exact gradient; both where only some of the examples have
    one. Before them rule where the network has rules, own where its modules hand down another gradient.

    `asked` is the text of a gradient, "both" for exact and what the network says it is (its rules', its own without
    any), or None for the default. x holds a few inputs [n, C, H, W] to compare gradients at.
    """
    has_rules = Subject("", net).has_rules
    if asked == "both":
        return [RULE if has_rules else OWN, EXACT]
    if asked is not None:
        return [Gradient.read(asked)]
    gradients = followed(net, x)
    return [*([RULE] if has_rules else [OWN] if own_differs(net, x) else []), *gradients]


def label_of(model: str) -> str:
    """Return what results call a model: its id, or the name of its card file."""
    return Path(model).stem if model.endswith(".toml") else model


def read_settings(*, seed: int, batch_size: int = 256, precision: str = "auto", device: str = "auto") -> Settings:
    """Return settings from the options of a command line; raises `UserError`."""
    known = ["auto", *get_args(Precision)]
    if precision not in known:
        raise UserError(unknown("precision", precision, known))
    chosen = None if precision == "auto" else cast("Precision", precision)
    return Settings(seed, batch_size, chosen, pick_device(device))


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


def preset_measurements(preset: AttackPreset, sigma: float) -> tuple[Measurement, ...]:
    """Return the measurements of a preset, in its order, after checking attacks and parameters.

    `sigma` is the mean standard deviation of the data set in input units.

    Raises:
        UserError: an unknown attack or parameter, a norm that the attack does not serve, a missing parameter, a
            radius that is too large.
    """
    try:
        return tuple(_in_input_units(asked, sigma) for asked in preset.measurements())
    except UserError as error:
        raise UserError(f"preset {preset.name}: {error}") from None


def _in_input_units(asked: AskedMeasurement, sigma: float) -> Measurement:
    attack, params, eps, written = asked.attack, dict(asked.attack.params), parse_eps(asked.eps), asked.eps
    Measurement(attack.attack, Threat(attack.norm, eps), asked.gradient, params).check()
    if attack.eps_unit == "normalised":
        eps, written = eps * sigma, f"{written} σ"
        params = {name: float(value) * sigma if name in LENGTHS else value for name, value in params.items()}
    threat = Threat(attack.norm, check_eps(eps, attack.norm))
    return Measurement(attack.attack, threat, asked.gradient, params, written=written)


def models_like(patterns: str, known: Sequence[str]) -> list[str]:
    """Return the models that comma-separated ids, paths of cards (.toml) and patterns with * stand for, each once.

    Raises:
        UserError: a part that no known model and no file matches.
    """
    matched: list[str] = []
    for pattern in (part.strip() for part in patterns.split(",")):
        if pattern.endswith(".toml"):
            folder, name = Path(pattern).parent, Path(pattern).name
            matches = sorted(map(str, folder.glob(name))) if "*" in name else [pattern]
        else:
            matches = [model for model in known if fnmatchcase(model, pattern)]
        if not matches:
            raise UserError(unknown("model", pattern, list(known)))
        matched += matches
    return list(dict.fromkeys(matched))


@dataclass(frozen=True)
class PresetPlan:
    """The plan of a preset on many networks.

    Attributes:
        sigma: mean standard deviation of the data set, the unit of radii written with σ.
        skipped: network → why it was left out.
    """

    preset: AttackPreset
    plan: Plan
    sigma: float
    skipped: dict[str, str]


def preset_plan(
    preset: AttackPreset, patterns: str, source: DataSource, *, n_examples: int | None = None, settings: Settings
) -> PresetPlan:
    """Return the plan of every attack of a preset on every model that has weights for a data set.

    `patterns` are ids, patterns with * and paths of cards, separated by commas. By default as many examples as the
    preset says, the first of the test split.

    Raises:
        UserError: unknown names, a preset that does not fit the attacks, no model with weights.
    """
    models, skipped = _trained(models_like(patterns, catalog.model_ids()), source.dataset)
    sigma = source.sigma()
    measurements = preset_measurements(preset, sigma)
    subjects = tuple(Subject(label, source.network(model, settings.device)) for label, model in models.items())
    examples = Slice.load(source, preset.n_examples if n_examples is None else n_examples)
    plan = Plan(examples, subjects, measurements, settings).with_surrogates()
    return PresetPlan(preset, plan, sigma, skipped)


def _trained(models: Sequence[str], dataset: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return label → model for those with weights for a data set, and label → reason for the others."""
    trained: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for model in models:
        label = label_of(model)
        if label in trained or label in skipped:
            raise UserError(f"expected models of different names, got {label!r} twice: rename a card file")
        entry = catalog.card(model).datasets.get(dataset)
        if entry is not None and entry.weights:
            trained[label] = model
        else:
            skipped[label] = f"no weights for {dataset}" if entry else f"nothing trained for {dataset}"
    if not trained:
        without = ", ".join(skipped)
        raise UserError(f"expected a model with weights for {dataset}, got {without} without: train one first")
    return trained, skipped
