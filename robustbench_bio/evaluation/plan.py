"""What is to be measured: networks, examples, attacks, and how; made once, at the edge, from what a caller asks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from robustbench_bio.attacks import ATTACKS, Attack, make, rules_of
from robustbench_bio.attacks.access.mean_prediction import DRAWS, is_random
from robustbench_bio.attacks.access.surrogate import ATTACKED_BY, stepped
from robustbench_bio.attacks.external import NATIVE, peer
from robustbench_bio.core.errors import UserError
from robustbench_bio.datasets import tensors
from robustbench_bio.evaluation.fingerprint import fingerprint, fleeting, state_sha256
from robustbench_bio.evaluation.given import Data, examples_of
from robustbench_bio.evaluation.judge import data_hash
from robustbench_bio.records.base import Precision, Scalar
from robustbench_bio.records.gradient import EXACT, Gradient
from robustbench_bio.records.result import EvalSpec
from robustbench_bio.records.threat import Threat
from robustbench_bio.zoo.loading import DataSource, source_network


@dataclass(frozen=True)
class Slice:
    """The examples that are attacked.

    Attributes:
        x: float32 [N, C, H, W] in [0, 1], on the CPU or where the network is.
        y: int64 [N].
        ids: row of each example in its split; they key the random streams.
        dataset, split: as results call them.
    """

    x: Tensor
    y: Tensor
    ids: tuple[int, ...]
    dataset: str = "data"
    split: str = "test"

    @classmethod
    def load(cls, source: DataSource, n: int | None = None) -> Self:
        """Return the first n test examples of a data set, all by default.

        Raises:
            UserError: the data is not here, or has fewer.
        """
        examples = source.examples("test", n)
        return cls(*tensors(examples), tuple(examples.ids.tolist()), Path(source.dataset).stem)

    @classmethod
    def given(cls, data: Data, ids: Sequence[int] | None, dataset: str, split: str) -> Self:
        """Return a slice of a caller's own examples; raises `UserError` where they cannot be attacked."""
        x, y = examples_of(data)
        rows = tuple(range(len(y))) if ids is None else tuple(int(i) for i in ids)
        if len(rows) != len(y) or len(set(rows)) != len(y):
            raise UserError(
                f"expected one distinct id for each of {len(y)} examples, got {len(rows)} ids, "
                f"{len(set(rows))} distinct"
            )
        return cls(x, y, rows, dataset, split)

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def sha256(self) -> str:
        """Hash of pixels, labels and rows, which specs carry."""
        return data_hash(self.x, self.y, self.ids)

    def rows(self, rows: Sequence[int]) -> Self:
        """Return some of the examples, by their places."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        return replace(self, x=self.x[index], y=self.y[index], ids=tuple(self.ids[row] for row in rows))

    def to(self, device: str | torch.device) -> Self:
        """Return the same examples on a device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))


@dataclass(eq=False)
class Subject:
    """A network that is measured, with what has to be found out about it once.

    Attributes:
        label: what results call it.
        net: in eval mode.
    """

    label: str
    net: nn.Module
    _fingerprints: dict[tuple[int, ...], str] = field(default_factory=dict, repr=False)
    _fleeting: frozenset[str] | None = field(default=None, repr=False)
    _stepped: bool | None = field(default=None, repr=False)

    @property
    def has_rules(self) -> bool:
        """Whether there is a rule's gradient to follow."""
        return rules_of(self.net) is not None

    def has_thresholds(self, x: Tensor) -> bool:
        """Tell whether the network spikes or rounds, so that its exact gradient misses most of what it does.

        x is [n, C, H, W] on the network's device; two of the inputs are looked at, once.
        """
        if self._stepped is None:
            self._stepped = stepped(self.net, x[:2])
        return self._stepped

    def state(self, x: Tensor) -> str:
        """Return a hash of what an attack may not change; x [n, C, H, W] tells what a forward pass changes anyway."""
        if self._fleeting is None:
            self._fleeting = fleeting(self.net, x)
        return state_sha256(self.net, self._fleeting)

    def fingerprint(self, x: Tensor) -> str:
        """Return the network's fingerprint, worked out once for each shape of inputs."""
        key = tuple(x.shape[1:])
        if key not in self._fingerprints:
            self._fingerprints[key] = fingerprint(self.net, x)
        return self._fingerprints[key]


def default_attack(backend: str = NATIVE) -> str:
    """Return the attack that runs where none is named: swift, or the one that other libraries have as well."""
    return "swift" if backend == NATIVE else "pgd"


@dataclass(frozen=True)
class Measurement:
    """One attack at one radius with one gradient.

    Attributes:
        params: its parameters as they were asked for, lengths in input units.
        written: the radius as a preset writes it, with σ where it is in units of the data's standard deviation.
    """

    attack: str
    threat: Threat
    gradient: Gradient = EXACT
    params: dict[str, Any] = field(default_factory=dict)
    backend: str = NATIVE
    written: str = ""

    def built(self, precision: Precision | None = None) -> Attack:
        """Return the attack; raises `UserError` for a name, norm, parameter or library that does not fit."""
        if self.backend == NATIVE:
            attack = make(self.attack, self.threat.norm, self.params)
        else:
            attack = peer(self.backend, self.attack, self.threat.norm, self.params, precision)
        return attack.with_networks(source_network)

    def check(self) -> None:
        """Raise `UserError` for a name, norm or parameter that does not fit; loads no network."""
        make(self.attack, self.threat.norm, self.params)

    @property
    def white_box(self) -> bool:
        """Whether the attack follows a gradient of the network."""
        return ATTACKS.get(self.attack).white_box

    def but_for_gradient(self) -> tuple[object, ...]:
        """Return what two measurements share that differ in nothing but the gradient."""
        return self.attack, self.threat, self.written, self.backend, tuple(sorted(self.params.items()))

    def settings(self) -> list[str]:
        """Return the parameters, which tell this from another measurement of the same attack and threat model."""
        return [f"{name}={value}" for name, value in self.params.items()]

    def line(self) -> str:
        """Return what runs, in a line."""
        library = "" if self.backend == NATIVE else f", {self.backend}"
        radius = f"{self.threat.norm} {self.written}" if self.written else str(self.threat)
        return f"{self.attack} {radius}, {self.gradient} gradient{library}"


@dataclass(frozen=True)
class Settings:
    """How measurements are made.

    Attributes:
        precision: of gradient passes, None for the fastest that is safe on the device.
    """

    seed: int = 0
    batch_size: int = 256
    precision: Precision | None = None
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"expected batch_size >= 1, got {self.batch_size}")

    def precision_of(self, backend: str) -> Precision:
        """Return the precision of gradient passes: other libraries take float32."""
        if self.precision is not None or backend != NATIVE:
            return self.precision or "float32"
        on_gpu = torch.device(self.device).type == "cuda"
        return "bfloat16" if on_gpu and torch.cuda.is_bf16_supported() else "float32"


@dataclass(frozen=True)
class Plan:
    """Networks, and the measurements that each is put to as far as they apply to it.

    Attributes:
        as_asked: put every network to every measurement, because the caller named gradients that they take.
    """

    examples: Slice
    subjects: tuple[Subject, ...]
    measurements: tuple[Measurement, ...]
    settings: Settings = Settings()
    as_asked: bool = False

    def __post_init__(self) -> None:
        for measurement in self.measurements:
            measurement.threat.check_room(self.examples.x.shape[1:])

    def applies(self, measurement: Measurement, subject: Subject) -> bool:
        """Tell whether a measurement can be made on a network.

        A rule gradient needs rules; a network without any has its own instead. An attack that follows the exact
        gradient needs a network without thresholds, one that follows a surrogate needs thresholds.
        """
        if self.as_asked:
            return True
        if measurement.gradient.claimed:
            return subject.has_rules == (measurement.gradient.source == "rule")
        return bool(measurement.gradient.surrogate) == (measurement.white_box and self.has_thresholds(subject))

    def has_thresholds(self, subject: Subject) -> bool:
        """Tell whether a network spikes or rounds on the examples, see `Subject.has_thresholds`."""
        return subject.has_thresholds(self.examples.x[:2].to(self.settings.device))

    def applicable(self, subject: Subject) -> list[Measurement]:
        """Return the measurements that a network can be put to."""
        return [measurement for measurement in self.measurements if self.applies(measurement, subject)]

    def with_surrogates(self) -> Self:
        """Return the plan with what stands in for the exact gradient, if a network has thresholds that leave none.

        Each measurement that follows the exact gradient is followed by the same with each surrogate; of both, a
        network is put to those that apply to it.
        """
        if not any(map(self.has_thresholds, self.subjects)):
            return self
        return replace(self, measurements=with_surrogates(self.measurements))


def with_surrogates(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Return measurements and, after each that follows the exact gradient, the same with each surrogate."""
    extended: list[Measurement] = []
    for measurement in measurements:
        extended.append(measurement)
        if measurement.gradient == EXACT and measurement.white_box:
            others = [replace(measurement, gradient=gradient) for gradient in ATTACKED_BY]
            extended += [other for other in others if other not in (*measurements, *extended)]
    return tuple(extended)


@dataclass(frozen=True)
class PreparedMeasurement:
    """A measurement of one network, ready to run; the spec is everything that decides the outcome."""

    subject: Subject
    attack: Attack
    spec: EvalSpec
    examples: Slice
    settings: Settings

    @property
    def attack_name(self) -> str:
        """The attack as errors name it, with its library if it is not ours."""
        return self.spec.attack if self.spec.backend == NATIVE else repr(self.attack)


def prepare(subject: Subject, measurement: Measurement, examples: Slice, settings: Settings) -> PreparedMeasurement:
    """Return a measurement of one network, ready to run.

    The network must be on the device of the settings.

    Raises:
        UserError: an attack, parameter or data that does not fit.
    """
    measurement.threat.check_room(examples.x.shape[1:])
    attack = measurement.built(settings.precision)
    x = examples.x[:8].to(settings.device)
    draws = DRAWS if measurement.gradient.draws and is_random(subject.net, x) else 1
    params: dict[str, Scalar | None] = attack.record
    spec = EvalSpec.read(
        {
            "model": subject.label,
            "network_sha256": subject.fingerprint(x),
            "dataset": examples.dataset,
            "split": examples.split,
            "n": len(examples),
            "data_sha256": examples.sha256,
            "attack": measurement.attack,
            "params": params,
            "threat": measurement.threat,
            "gradient": measurement.gradient,
            "backend": measurement.backend,
            "precision": settings.precision_of(measurement.backend),
            "seed": settings.seed,
            "draws": draws,
            "batch_size": settings.batch_size if draws > 1 or measurement.backend != NATIVE else None,
        }
    )
    return PreparedMeasurement(subject, attack, spec, examples, settings)
