"""Measures what the claims ask for, or reads it from the store: the same call again continues where one stopped."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from evidence.records import RADII, SIGMA, SMALL, STEPS, USUAL, Ask, Evidence, Noise, Published, Seen, replicate
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.datasets import tensors
from robustbench_bio.evaluation.judge import data_hash
from robustbench_bio.evaluation.plan import Measurement, Plan, Settings, Slice, Subject
from robustbench_bio.evaluation.planning import models_like, preset_measurements
from robustbench_bio.evaluation.runner import Runner
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.base import Record, Sha256
from robustbench_bio.records.gradient import EXACT, RULE
from robustbench_bio.records.preset import AttackPreset
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Threat, parse_eps
from robustbench_bio.zoo import catalog
from robustbench_bio.zoo.loading import DataSource
from robustbench_bio.zoo.measures import gradient_variance

#: How many batches of train images of which size gradients are compared over; each is drawn from as many images as all.
NOISE_BATCHES, NOISE_BATCH = 16, 64


class NoiseAsked(Record):
    """What decides the gradient noise of a network."""

    network_sha256: Sha256
    data_sha256: Sha256
    batches: int
    batch_size: int
    seed: int


class NoiseFound(Record):
    """Gradient noise over signal, of what the rules hand down and of the exact gradient."""

    rule: float
    exact: float


@dataclass
class Study:
    """What is measured, of which networks, and where it is kept.

    Attributes:
        n: images that are attacked, the first of the test split.
        draws: of the batches whose gradients are compared; below 2 leaves gradients out.
        fast: measure as few train images as the algorithm takes.
        each: called with the networks, yields them one by one and tells which it is.
        progress: called often while a network is measured.
    """

    published: Published
    source: DataSource
    store: Store
    n: int
    draws: int = 5
    settings: Settings = field(default_factory=Settings)
    fast: bool = False
    each: Callable[[Sequence[str]], Iterator[str]] = iter
    progress: Progress = silent

    def models(self, patterns: str) -> list[str]:
        """Return the networks of the claims, and their further seeds, that match patterns and have weights.

        One that was not trained as long as its family's network under bp, in equal batches on images that grew alike,
        is left out: a difference shall be of the rules.

        Raises:
            UserError: a pattern that matches no network of the zoo, or nothing that is left.
        """
        asked_for = self.published.networks()
        matching = [model for model in models_like(patterns, catalog.model_ids()) if _base(model) in asked_for]
        trained = [model for model in matching if _training(model, self.source.dataset) is not None]
        models = [model for model in trained if self._as_long(model)]
        if not models:
            raise UserError(
                f"expected networks of the claims with weights for {self.source.dataset}, got none of {patterns!r}: "
                "train one first"
            )
        return sorted(models, key=lambda model: (asked_for.index(_base(model)), model))

    def _as_long(self, model: str) -> bool:
        """Tell whether a network was trained as its family's one under bp was; yes where that one was not."""
        family = next(one for one in self.published.families if _base(model).endswith(f"-{one.id}"))
        reference = _training(f"bp-{family.id}", self.source.dataset)
        return reference is None or _training(model, self.source.dataset) == reference

    def run(self, models: Sequence[str]) -> Evidence:
        """Return what was measured of the networks."""
        preset, sigma = catalog.preset(self.published.preset), self.source.sigma()
        released = released_radii(preset)
        asks = asked(self.published, preset, sigma)
        examples = Slice.load(self.source, self.n)
        networks: dict[str, dict[int, dict[Ask, Seen]]] = {}
        noise: dict[str, dict[int, list[Noise]]] = {}
        days = []
        for model in self.each(models):
            base, seed = replicate(model)
            subject = Subject(model, self.source.network(model, self.settings.device))
            results = self._attacked(subject, examples, asks)
            days += [result.provenance.created[:10] for result in results.values()]
            networks.setdefault(base, {})[seed] = {ask: _seen(result) for ask, result in results.items()}
            if self.draws > 1:
                noise.setdefault(base, {})[seed] = self._noise(subject)
        return Evidence(
            self.source.dataset, self.n, len(self.source.open().classes), released, networks, noise,
            {one.attack: ", ".join(one.settings()) for ask, one in asks.items() if not ask.eps.endswith(SIGMA)},
            {_base(model): self._card(model) for model in models}, max(days),
        )  # fmt: skip

    def _card(self, model: str) -> tuple[str, str]:
        """Return the title of a network, and what it learned from for how long."""
        card = catalog.card(model)
        trained = card.datasets[self.source.dataset]
        return card.title, f"{trained.trained_on}, {trained.recipe.epochs} epochs"

    def _attacked(self, subject: Subject, examples: Slice, asks: dict[Ask, Measurement]) -> dict[Ask, Result]:
        """Return the results of one network: through the rule where it has one, else through the exact gradient."""
        mine = {ask: one for ask, one in asks.items() if _applies(ask, subject.has_rules)}
        runner = Runner(Plan(examples, (subject,), tuple(mine.values()), self.settings), self.store, self.progress)
        return {ask: runner.measure(subject, measurement) for ask, measurement in mine.items()}

    def _noise(self, subject: Subject) -> list[Noise]:
        """Return the gradient noise over signal for each draw of the batches."""
        batch = 4 if self.fast else NOISE_BATCH
        rows = self.source.examples("train", NOISE_BATCHES * batch)
        x, y = tensors(rows)
        data = data_hash(x, y, rows.ids.tolist())
        x, y = x.to(self.settings.device), y.to(self.settings.device)
        noise = []
        for seed in range(self.draws):
            question = NoiseAsked(
                network_sha256=subject.fingerprint(x[:8]), data_sha256=data, batches=NOISE_BATCHES, batch_size=batch,
                seed=seed,
            )  # fmt: skip
            name = f"{subject.label}-gradient-noise"
            found = self.store.recall(question, name, NoiseFound)
            if found is None:
                found = self._noise_of_draw(subject, x, y, question)
                self.store.remember(question, name, found)
            noise.append(Noise(found.rule, found.exact))
        return noise

    def _noise_of_draw(self, subject: Subject, x: Tensor, y: Tensor, asked: NoiseAsked) -> NoiseFound:
        net: Any = subject.net
        found = gradient_variance(
            net, x, y, batches=asked.batches, batch_size=asked.batch_size, seed=asked.seed, progress=self.progress
        )
        sides = [side.relative if side else None for side in (found.by_rule, found.exact)]
        rule, exact = (math.nan if side is None else side for side in sides)
        if math.isnan(rule + exact):
            raise UserError(
                f"expected gradients of {subject.label} that are finite and not zero: leave out --noise-draws"
            )
        return NoiseFound(rule=rule, exact=exact)


def asked(published: Published, preset: AttackPreset, sigma: float) -> dict[Ask, Measurement]:
    """Return all that is asked of a network, each once: the curve, the claims of robustness, the quirks.

    `sigma` is the mean standard deviation of the data, the unit of normalised radii.
    """
    released, attacks = released_radii(preset), [claim.attack for claim in published.claims if claim.attack]
    honest = [("pgd", eps) for eps in RADII]
    honest += [(attack, eps) for attack in attacks if attack != "one-pixel" for eps in (SMALL, released[attack])]
    honest += [("fgsm", USUAL)]
    asks: dict[Ask, Measurement] = {}
    for attack, eps in honest:
        for gradient in (RULE, EXACT):
            threat = Threat.checked("linf", eps)
            asks[Ask(attack, eps, str(gradient))] = Measurement(attack, threat, gradient, _params(attack, preset))
    for attack in ("pgd", "fgsm"):
        threat = Threat("linf", parse_eps(USUAL) * sigma)
        for gradient in (RULE, EXACT):
            asks[Ask(attack, USUAL + SIGMA, str(gradient))] = Measurement(
                attack, threat, gradient, _params(attack, preset), written=USUAL + SIGMA
            )
    for measurement in preset_measurements(preset, sigma):
        if measurement.attack in attacks and (measurement.threat.norm == "l0" or measurement.written.endswith(SIGMA)):
            asks.setdefault(Ask(measurement.attack, measurement.written, str(measurement.gradient)), measurement)
    return asks


def released_radii(preset: AttackPreset) -> dict[str, str]:
    """Return attack → the first radius at which the preset runs it in input units, as people write it."""
    radii: dict[str, str] = {}
    for one in preset.attacks:
        if one.eps_unit == "input":
            radii.setdefault(one.attack, one.eps[0])
    return radii


def _params(attack: str, preset: AttackPreset) -> dict[str, Any]:
    """Return the parameters of an attack that is not held back: many steps of PGD, of others what is released."""
    if attack == "pgd":
        return {"steps": STEPS}
    return dict(next(one.params for one in preset.attacks if one.attack == attack))


def _applies(ask: Ask, has_rules: bool) -> bool:
    """Tell whether to ask it: nothing through a rule without one; what only explains the rule's, not exactly too."""
    if ask.gradient == "rule":
        return has_rules
    return not has_rules or not ask.eps.endswith(SIGMA) or ask.eps == USUAL + SIGMA


def _seen(result: Result) -> Seen:
    return Seen(result.outcomes_record.clean_correct(), result.outcomes_record.robust_correct())


def _base(model: str) -> str:
    """Return the network that a model is a seed of; its own id where it has other cells."""
    base, _ = replicate(model)
    if base == model or base not in catalog.model_ids():
        return model
    return base if catalog.card(base).net == catalog.card(model).net else model


def _training(model: str, dataset: str) -> tuple[int, int, list[int]] | None:
    """Return for how many epochs, in batches of what size, on images of which sizes; None for one without weights."""
    entry = catalog.card(model).datasets.get(dataset)
    if entry is None or entry.weights is None:
        return None
    return entry.recipe.epochs, entry.recipe.batch_size, entry.recipe.grow
