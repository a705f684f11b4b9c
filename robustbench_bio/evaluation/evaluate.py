"""From a network and examples to a result: gate, attack, judge, outcomes."""

import contextlib
import dataclasses
import datetime
import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_bio.attacks import Attack, WhiteBoxModel, make
from robustbench_bio.attacks.access.mean_prediction import DRAWS, MeanPrediction, is_random
from robustbench_bio.attacks.external import BACKENDS, NATIVE, peer
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.numerics import full_float32
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.evaluation.judge import AttackViolation, check_data, checked_logits, fingerprint, gate, judge
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.base import Precision
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.result import EvalSpec, Outcomes, Provenance, Result
from robustbench_bio.records.threat import Norm, Threat, check_eps
from robustbench_bio.zoo.loading import source_network

#: Called with the number of examples done so far and their total.
Progress = Callable[[int, int], None]


@full_float32()
def evaluate(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    attack: str = "pgd",
    norm: Norm = "linf",
    eps: float = 8 / 255,
    gradient: str = "exact",
    backend: str = NATIVE,
    seed: int = 0,
    batch_size: int = 256,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
    ids: Sequence[int] | None = None,
    names: tuple[str, str, str] = ("model", "data", "test"),
    store: Store | None = None,
    progress: Progress | None = None,
    **params: Any,
) -> Result:
    """Measure how many examples a network still classifies correctly under an attack.

    Args:
        model: any module in eval mode, x [n, C, H, W] in [0, 1] → logits [n, K], normalisation inside.
        data: (x float32 [N, C, H, W] in [0, 1], y [N] of any integer type).
        attack: name of an attack.
        norm: "linf", "l2", "l1" or "l0", as the attack serves.
        eps: radius in input units (pixels for l0).
        gradient: "exact" differentiates the forward pass; "rule" asks the network's learning rules;
            "surrogate:NAME" puts a smooth stand-in under thresholds; "eot:K" averages K draws, and a network that is
            random is then attacked and judged by its mean answer over 20 draws (`MeanPrediction`). Also "rule+eot:K".
        backend: "native", or the library that runs the attack; its draws belong to batches.
        seed: of the attack's draws; each example has its own stream, so batches do not matter.
        batch_size: examples attacked together, at least 1.
        precision: of gradient passes, None for the fastest that is safe here; the judge is always float32, and so
            is every backend but the native one.
        device: where to run; None is where the model's parameters are.
        ids: row of each example in its data set, 0…N−1 by default.
        names: model, data set and split, as the result shall call them.
        store: where finished results are looked up and kept; None keeps nothing.
        progress: called after every batch.
        **params: parameters of the attack, such as steps.

    Returns:
        Spec, outcomes per example and provenance; accuracies are functions of the outcomes.

    Raises:
        UserError: network, data or parameters cannot be used as they are.
        AttackViolation: the attack left the threat model or changed the network.
    """
    threat = Threat(norm, check_eps(eps, norm))
    kind = Gradient.read(gradient)
    chosen = make(attack, norm, params) if backend == NATIVE else peer(backend, attack, norm, params, precision)
    chosen = chosen.with_networks(source_network)
    x, y = data
    check_data(x, y)
    x, y = x.detach(), y.long()
    if batch_size < 1:
        raise UserError(f"expected batch_size >= 1, got {batch_size}")
    where = torch.device(device) if device is not None else _device_of(model)
    rows = list(range(len(y))) if ids is None else [int(i) for i in ids]
    if len(rows) != len(y) or len(set(rows)) != len(y):
        raise UserError(
            f"expected one distinct id for each of {len(y)} examples, got {len(rows)} ids, {len(set(rows))} distinct"
        )
    model = model.to(where)
    votes = DRAWS if kind.draws and is_random(model, x[:8].to(where)) else 1
    spec = EvalSpec.read(
        {
            "model": names[0],
            "weights_sha256": fingerprint(model),
            "dataset": names[1],
            "split": names[2],
            "n": len(y),
            "data_sha256": data_hash(x, y, rows),
            "attack": attack,
            "params": chosen.params,
            "norm": norm,
            "eps": eps,
            "gradient": str(kind),
            "backend": backend,
            "precision": precision or (_fastest_precision(where) if backend == NATIVE else "float32"),
            "seed": seed,
            "votes": votes,
        }
    )
    if store is not None:
        found = store.get(spec)
        if found is not None:
            return found
    white_box = WhiteBoxModel(model, spec.gradient, spec.precision, draws=votes, seed=seed)
    judged = MeanPrediction(model, votes, seed, "judge") if votes > 1 else model
    if store is not None:
        store.check_writable()
    gate(judged, chosen, white_box, x.to(where), y.to(where), threat)
    white_box.notices += _remarks(kind, votes)
    run = _Run(model, judged, white_box, chosen, threat, spec)
    return run.over(x, y, rows, batch_size, where, store, progress)


@dataclasses.dataclass(frozen=True)
class _Run:
    model: nn.Module
    judged: nn.Module
    white_box: WhiteBoxModel
    attack: Attack
    threat: Threat
    spec: EvalSpec

    @property
    def name(self) -> str:
        """The attack, with its library if it is not ours."""
        return self.spec.attack if self.spec.backend == NATIVE else repr(self.attack)

    def over(
        self,
        x: Tensor,
        y: Tensor,
        rows: list[int],
        batch_size: int,
        where: torch.device,
        store: Store | None,
        progress: Progress | None,
    ) -> Result:
        """Attack what no stored batch covers yet, batch by batch, and put everything together."""
        started = time.perf_counter()
        parts = store.parts(self.spec) if store else []
        done = {row for part in parts for row in part.id}
        todo = [i for i, row in enumerate(rows) if row not in done]
        if done:
            self.white_box.notices.append(f"{len(done)} examples come from an earlier run that stopped: not in seconds")
        for first in range(0, len(todo), batch_size):
            index = torch.tensor(todo[first : first + batch_size])
            part = self.batch(x[index].to(where), y[index].to(where), [rows[i] for i in index.tolist()])
            # Before the batch is kept: a later run would take it for a sound part of this measurement.
            if fingerprint(self.model) != self.spec.weights_sha256:
                raise AttackViolation(f"parameters or buffers of the network changed under {self.name}")
            parts.append(part)
            if store:
                store.put_part(self.spec, part)
            if progress:
                progress(sum(map(len, parts)), len(rows))
        result = Result(
            spec=self.spec,
            outcomes_record=Outcomes.joined(parts, rows),
            provenance=_provenance(time.perf_counter() - started, where, self.spec.backend, self.white_box.notices),
        )
        if store:
            store.put(result)
        return result

    def batch(self, x: Tensor, y: Tensor, rows: list[int]) -> Outcomes:
        """Attack the correctly classified examples of one batch and judge what comes back."""
        clean = checked_logits(self.judged, x, y).argmax(1)
        right = (clean == y).nonzero().flatten()
        adversarial, size = clean.clone(), torch.zeros(len(y))
        queries, steps = torch.zeros_like(y), torch.zeros_like(y)
        if len(right) > 0:
            rng = ExampleRng(self.spec.seed, [rows[i] for i in right.tolist()], self.spec.attack)
            proposal = self.attack.perturb(self.white_box, x[right], y[right], self.threat, rng)
            try:
                predicted, sizes = judge(self.judged, x[right], proposal.x_adv, y[right], self.threat)
            except AttackViolation as violation:
                raise AttackViolation(f"{self.name}: {violation}") from None
            adversarial[right] = predicted
            size[right.cpu()] = sizes.float().cpu()
            queries[right], steps[right] = proposal.queries, proposal.steps
        return Outcomes(
            id=rows,
            label=y.tolist(),
            clean_prediction=clean.tolist(),
            adversarial_prediction=adversarial.tolist(),
            distance=[round(v, 9) for v in size.tolist()],
            queries=queries.tolist(),
            steps=steps.tolist(),
        )


def _remarks(kind: Gradient, votes: int) -> list[str]:
    """Return what a reader must know of a measurement with an expectation over draws."""
    if votes > 1:
        return [f"a random network: judged by the mean class probabilities of {votes} forward passes per input"]
    if kind.draws and kind.source != "rule":
        return [f"eot:{kind.draws} averages equal gradients: this network is not random, exact gives the same"]
    return []


def _device_of(model: nn.Module) -> torch.device:
    with contextlib.suppress(StopIteration):
        return next(model.parameters()).device
    return torch.device("cpu")


def _fastest_precision(device: torch.device) -> Precision:
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def data_hash(x: Tensor, y: Tensor, rows: list[int]) -> str:
    """Return the hash of examples x [N, C, H, W], labels y [N] and their rows in the data set."""
    digest = hashlib.sha256(f"{tuple(x.shape)}|{rows}".encode())
    digest.update(x.detach().cpu().float().contiguous().numpy().tobytes())
    digest.update(y.detach().cpu().long().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _provenance(seconds: float, device: torch.device, backend: str, notices: list[str]) -> Provenance:
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
