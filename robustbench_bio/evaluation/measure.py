"""One measurement: look it up, gate, attack batch by batch, judge, keep."""

import datetime
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from typing import Self

import torch
from torch import Tensor, nn

from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.access.mean_prediction import MeanPrediction
from robustbench_bio.attacks.access.white_box import ZERO_SHARE
from robustbench_bio.attacks.external import BACKENDS, NATIVE
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.numerics import full_float32
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.evaluation import migration
from robustbench_bio.evaluation.judge import AttackViolation, checked_logits, gate, judge
from robustbench_bio.evaluation.plan import PreparedMeasurement, Slice
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.result import Outcomes, Provenance, Result


@full_float32()
def measure(prepared: PreparedMeasurement, store: Store | None = None, progress: Progress = silent) -> Result:
    """Return what comes of a measurement, from the store if it was made before.

    What is finished is kept batch by batch, so that the same call continues where an interrupted one stopped.
    `progress` is called after every batch with examples done, their total, and "".

    Raises:
        UserError: the network cannot be evaluated as it is.
        AttackViolation: the attack left the threat model or changed the network.
    """
    spec, examples, batch_size = prepared.spec, prepared.examples, prepared.settings.batch_size
    if store is not None:
        known = store.get(spec) or migration.recall(store, spec, prepared.subject.net)
        if known is not None:
            if not _of_examples(known.outcomes_record, examples) or len(known.outcomes_record) != len(examples):
                raise UserError(f"{store.path(spec)} holds outcomes of other examples: it was edited, delete it")
            return known
        store.check_writable()
    attacked = _AttackedNetwork.of(prepared)
    started, parts = time.perf_counter(), _stored_parts(prepared, store)
    finished = {row for part in parts for row in part.id}
    if finished:
        attacked.notices.append(f"{len(finished)} examples come from an earlier run that stopped: not in seconds")
    unfinished = [place for place, row in enumerate(examples.ids) if row not in finished]
    for first in range(0, len(unfinished), batch_size):
        part = attacked.batch(examples.rows(unfinished[first : first + batch_size]))
        parts.append(part)
        if store:
            store.put_part(spec, part)
        progress(sum(map(len, parts)), len(examples), "")
    attacked.notices.extend(_zeros(attacked.white_box))
    result = Result(
        spec=spec,
        outcomes_record=Outcomes.joined(parts, examples.ids),
        provenance=provenance(prepared, time.perf_counter() - started, attacked.notices),
    )
    if store:
        store.put(result)
    return result


def _stored_parts(prepared: PreparedMeasurement, store: Store | None) -> list[Outcomes]:
    """Return the finished batches of an earlier run, those of other examples or of examples twice left out."""
    parts: list[Outcomes] = []
    finished: set[int] = set()
    for part in store.parts(prepared.spec) if store else []:
        if _of_examples(part, prepared.examples) and not finished & set(part.id):
            parts.append(part)
            finished |= set(part.id)
    return parts


def _of_examples(outcomes: Outcomes, examples: Slice) -> bool:
    """Tell whether outcomes are of some of these examples, each once, with their labels: a seal proves no origin."""
    labels = dict(zip(examples.ids, examples.y.tolist(), strict=True))
    once = len(set(outcomes.id)) == len(outcomes.id)
    return once and all(labels.get(row) == label for row, label in zip(outcomes.id, outcomes.label, strict=True))


@dataclass(frozen=True)
class _AttackedNetwork:
    """A network while it is attacked.

    Attributes:
        judged: what answers for the network: itself, or its mean prediction where it is random.
        state: hash of parameters and buffers before the attack.
    """

    prepared: PreparedMeasurement
    white_box: WhiteBoxModel
    judged: nn.Module
    state: str

    @classmethod
    def of(cls, prepared: PreparedMeasurement) -> Self:
        """Return the network once it has passed the gate."""
        spec, net, examples = prepared.spec, prepared.subject.net, prepared.examples
        white_box = WhiteBoxModel(net, spec.gradient, spec.precision, draws=spec.draws, seed=spec.seed)
        judged = MeanPrediction(net, spec.draws, spec.seed, "judge") if spec.draws > 1 else net
        few = examples.rows(range(min(8, len(examples)))).to(prepared.settings.device)
        state = prepared.subject.state(few.x)
        gate(judged, prepared.attack, white_box, few.x, examples.y, spec.threat)
        white_box.notices.extend(_remarks(spec.gradient, spec.draws))
        return cls(prepared, white_box, judged, state)

    @property
    def notices(self) -> list[str]:
        """What a reader of the result should know."""
        return self.white_box.notices

    def batch(self, batch: Slice) -> Outcomes:
        """Attack the correctly classified examples of one batch and judge what comes back."""
        attack, spec, device = self.prepared.attack, self.prepared.spec, self.prepared.settings.device
        x, y = batch.x.to(device), batch.y.to(device)
        clean = checked_logits(self.judged, x, y).argmax(1)
        right = (clean == y).nonzero().flatten()
        adversarial, size = clean.clone(), torch.zeros(len(y))
        queries, steps = torch.zeros_like(y), torch.zeros_like(y)
        if len(right) > 0:
            rng = ExampleRng(spec.seed, [batch.ids[place] for place in right.tolist()], spec.attack)
            self.white_box.zeros.begin()
            proposal = attack.perturb(self.white_box, x[right], y[right], spec.threat, rng)
            adversarial[right], sizes = self.judge(x[right], proposal.x_adv, y[right])
            size[right.cpu()] = sizes.float().cpu()
            queries[right], steps[right] = proposal.queries, proposal.steps
        # Before anybody keeps the batch: a later run would take it for a sound part of this measurement.
        if self.prepared.subject.state(x) != self.state:
            raise AttackViolation(f"parameters or buffers of the network changed under {self.prepared.attack_name}")
        return Outcomes(
            id=list(batch.ids),
            label=y.tolist(),
            clean_prediction=clean.tolist(),
            adversarial_prediction=adversarial.tolist(),
            distance=[round(value, 9) for value in size.tolist()],
            queries=queries.tolist(),
            steps=steps.tolist(),
        )

    def judge(self, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return prediction and perturbation size of each proposal; a violation names the attack."""
        try:
            return judge(self.judged, x, x_adv, y, self.prepared.spec.threat)
        except AttackViolation as violation:
            raise AttackViolation(f"{self.prepared.attack_name}: {violation}") from None


def _remarks(gradient: Gradient, draws: int) -> list[str]:
    """Return what a reader must know of a measurement with an expectation over draws."""
    if draws > 1:
        return [f"a random network: judged by the mean class probabilities of {draws} forward passes per input"]
    if gradient.draws and not gradient.claimed:
        return [f"eot:{gradient.draws} averages equal gradients: this network is not random, exact gives the same"]
    return []


def _zeros(white_box: WhiteBoxModel) -> list[str]:
    """Return what a reader must know where the gradient was zero, so that no attack could follow it."""
    share, kind = white_box.zeros.share(), str(white_box.kind)
    if share <= ZERO_SHARE:
        return []
    others = [other for other in ("surrogate:arctan", "own", "exact") if not other.startswith(white_box.kind.source)]
    whose = f"the {kind} gradient is zero for {share:.0%} of the images, whose robustness to an attack that follows it"
    return [f"{whose} is no result: try gradient {' or '.join(others)}, and attacks without one (square, coordinate)"]


def provenance(prepared: PreparedMeasurement, seconds: float, notices: list[str]) -> Provenance:
    """Return where a result comes from: time, machine, versions."""
    device, backend = torch.device(prepared.settings.device), prepared.spec.backend
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"
    libraries = [] if backend == NATIVE else [BACKENDS.get(backend).module]
    packages = {package: metadata.version(package) for package in ("torch", "numpy", "robustbench-bio", *libraries)}
    return Provenance(
        seconds=seconds,
        device=f"{name}, {platform.machine()}",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        packages=packages | {"python": platform.python_version()},
        notices=notices,
    )
