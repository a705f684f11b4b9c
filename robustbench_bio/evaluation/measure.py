"""One measurement: look it up, gate, attack batch by batch, judge, keep."""

import datetime
import platform
import time
from dataclasses import dataclass, field
from importlib import metadata

import torch
from torch import Tensor, nn

from robustbench_bio.attacks import WhiteBoxModel
from robustbench_bio.attacks.access.mean_prediction import MeanPrediction
from robustbench_bio.attacks.external import BACKENDS, NATIVE
from robustbench_bio.core.numerics import full_float32
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.evaluation import migration
from robustbench_bio.evaluation.fingerprint import state_sha256
from robustbench_bio.evaluation.judge import AttackViolation, checked_logits, gate, judge
from robustbench_bio.evaluation.plan import Job, Settings, Slice
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.result import Outcomes, Provenance, Result


@full_float32()
def measure(
    job: Job, examples: Slice, settings: Settings, store: Store | None = None, progress: Progress = silent
) -> Result:
    """Return what comes of a measurement, from the store if it was made before.

    What is finished is kept batch by batch, so that the same call continues where an interrupted one stopped.

    Args:
        job: network, attack and spec.
        examples: what is attacked.
        settings: batch size and device; the rest stands in the spec.
        store: where results are looked up and kept; None keeps nothing.
        progress: called after every batch with examples done, their total, and "".

    Raises:
        UserError: the network cannot be evaluated as it is.
        AttackViolation: the attack left the threat model or changed the network.
    """
    if store is not None:
        known = store.get(job.spec) or migration.recall(store, job.spec, job.subject.net)
        if known is not None:
            return known
        store.check_writable()
    return _Run(job, examples, settings, store).result(progress)


@dataclass
class _Run:
    """A measurement while it runs."""

    job: Job
    examples: Slice
    settings: Settings
    store: Store | None
    white_box: WhiteBoxModel = field(init=False)
    judged: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        spec, net = self.job.spec, self.job.subject.net
        self.white_box = WhiteBoxModel(net, spec.gradient, spec.precision, draws=spec.draws, seed=spec.seed)
        self.judged = MeanPrediction(net, spec.draws, spec.seed, "judge") if spec.draws > 1 else net

    @property
    def name(self) -> str:
        """The attack, with its library if it is not ours."""
        return self.job.spec.attack if self.job.spec.backend == NATIVE else repr(self.job.attack)

    def result(self, progress: Progress) -> Result:
        """Gate, attack what no stored batch covers yet, and put everything together."""
        spec, examples = self.job.spec, self.examples
        before = state_sha256(self.job.subject.net)
        few = examples.rows(range(min(8, len(examples)))).to(self.settings.device)
        gate(self.judged, self.job.attack, self.white_box, few.x, examples.y, spec.threat)
        notices = self.white_box.notices
        notices += _remarks(spec.gradient, spec.draws)
        started = time.perf_counter()
        parts = self.store.parts(spec) if self.store else []
        done = {row for part in parts for row in part.id}
        if done:
            notices.append(f"{len(done)} examples come from an earlier run that stopped: not in seconds")
        left = [place for place, row in enumerate(examples.ids) if row not in done]
        for first in range(0, len(left), self.settings.batch_size):
            part = self.batch(examples.rows(left[first : first + self.settings.batch_size]))
            # Before the batch is kept: a later run would take it for a sound part of this measurement.
            if state_sha256(self.job.subject.net) != before:
                raise AttackViolation(f"parameters or buffers of the network changed under {self.name}")
            parts.append(part)
            if self.store:
                self.store.put_part(spec, part)
            progress(sum(map(len, parts)), len(examples), "")
        seconds = time.perf_counter() - started
        result = Result(
            spec=spec,
            outcomes_record=Outcomes.joined(parts, examples.ids),
            provenance=provenance(seconds, torch.device(self.settings.device), spec.backend, notices),
        )
        if self.store:
            self.store.put(result)
        return result

    def batch(self, batch: Slice) -> Outcomes:
        """Attack the correctly classified examples of one batch and judge what comes back."""
        x, y = batch.x.to(self.settings.device), batch.y.to(self.settings.device)
        clean = checked_logits(self.judged, x, y).argmax(1)
        right = (clean == y).nonzero().flatten()
        adversarial, size = clean.clone(), torch.zeros(len(y))
        queries, steps = torch.zeros_like(y), torch.zeros_like(y)
        if len(right) > 0:
            rows = [batch.ids[place] for place in right.tolist()]
            rng = ExampleRng(self.job.spec.seed, rows, self.job.spec.attack)
            proposal = self.job.attack.perturb(self.white_box, x[right], y[right], self.job.spec.threat, rng)
            adversarial[right], sizes = self.judge(x[right], proposal.x_adv, y[right])
            size[right.cpu()] = sizes.float().cpu()
            queries[right], steps[right] = proposal.queries, proposal.steps
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
            return judge(self.judged, x, x_adv, y, self.job.spec.threat)
        except AttackViolation as violation:
            raise AttackViolation(f"{self.name}: {violation}") from None


def _remarks(gradient: Gradient, draws: int) -> list[str]:
    """Return what a reader must know of a measurement with an expectation over draws."""
    if draws > 1:
        return [f"a random network: judged by the mean class probabilities of {draws} forward passes per input"]
    if gradient.draws and gradient.source != "rule":
        return [f"eot:{gradient.draws} averages equal gradients: this network is not random, exact gives the same"]
    return []


def provenance(seconds: float, device: torch.device, backend: str, notices: list[str]) -> Provenance:
    """Return where a result comes from: time, machine, versions."""
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
