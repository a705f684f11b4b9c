"""Is the measured robustness real? Every check for gradient masking on one network."""

import time

import torch
from torch import Tensor, nn

from robustbench_bio.attacks.access.mean_prediction import DRAWS, MeanPrediction, is_random
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.numerics import full_float32
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.diagnosis.checks import Checks
from robustbench_bio.diagnosis.classifier import no_classifier
from robustbench_bio.evaluation.given import Data, examples_of
from robustbench_bio.evaluation.judge import PROBES, check_batches, checked_logits
from robustbench_bio.evaluation.network import Network, device_of, network_of
from robustbench_bio.records.diagnosis import Diagnosis
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.threat import Norm, Threat


@full_float32()
def diagnose(
    model: Network,
    data: Data,
    *,
    norm: Norm = "linf",
    eps: float | str | None = None,
    gradient: str | Gradient = "exact",
    source: Network | None = None,
    n_examples: int = 200,
    steps: int = 20,
    queries: int = 300,
    seed: int = 0,
    progress: Progress = silent,
) -> Diagnosis:
    """Look for gradient masking in a network before anybody believes its robustness.

    The checks are those of AutoAttack (random output, zero gradients, range, few classes, Square or transfer beats
    white-box), the classic ones (Athalye et al. 2018, arXiv:1802.00420; Carlini et al. 2019, arXiv:1902.06705), and
    ours: the network's own backward pass, its rules' and that of a surrogate for its thresholds, each held against
    the gradient of the traced forward pass, which finite differences in float64 confirm. Before all of them comes the
    question whether there is a classifier at all (`no_classifier`); where there is none, nothing else is tried.

    Args:
        model: any module in eval mode or function of x, x [n, C, H, W] in [0, 1] → logits [n, K].
        data: (x [N, C, H, W] in [0, 1], y [N]) or what else `evaluate` takes.
        norm: "linf" or "l2".
        eps: radius in input units, by default 8/255 for linf and 0.5 for l2.
        gradient: of the white-box attacks: "exact", "eot:K" for a random network, or "surrogate:NAME" for one with
            thresholds, whose own backward pass is then another stand-in: weak perhaps, but not false.
        source: another network for the same data, whose adversarial examples are tried on this one.
        n_examples: correctly classified examples to look at, the first ones.
        steps: of PGD; the check for unfinished attacks takes four times as many.
        queries: of Square.
        seed: of every draw.
        progress: called before every check with checks done, checks in all, and the name of the next.

    Raises:
        UserError: network or data cannot be used.
    """
    started = time.perf_counter()
    if norm not in ("linf", "l2"):
        raise UserError(f"expected norm linf or l2 for a diagnosis, got {norm!r}")
    threat, kind = Threat.checked(norm, eps), Gradient.read(gradient)
    if kind.claimed:
        raise UserError(f"expected gradient exact, eot:K or surrogate:NAME to hold others against, got {str(kind)!r}")
    x, y = examples_of(data)
    threat.check_room(x.shape[1:])
    net = network_of(model, x)
    x, y = x.to(device_of(net)), y.to(device_of(net))
    other = None if source is None else network_of(source, x, device_of(net))
    random = is_random(net, x[:PROBES])
    if not random:
        check_batches(net, x[:PROBES])
    draws = DRAWS if kind.draws and random else 1
    judged = MeanPrediction(net, draws, seed, "judge") if draws > 1 else net
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):  # a random network draws from it
        logits = _first_logits(judged, x, y, n_examples)
        answers = logits.argmax(1)
        checks = [no_classifier(answers, y[: len(logits)], logits.shape[1])]
        right = (answers == y[: len(logits)]).nonzero().flatten()[:n_examples]
        if not checks[0].fired:
            x, y, logits = x[right], y[right], logits[right]
            checks += Checks(net, judged, x, y, logits, threat, kind, draws, steps, queries, seed).all(other, progress)
    return Diagnosis.of(checks, len(right), time.perf_counter() - started, threat)


def _first_logits(model: nn.Module, x: Tensor, y: Tensor, wanted: int) -> Tensor:
    """Return the logits of the first examples, of as many as hold the wanted number of correctly classified ones."""
    kept: list[Tensor] = []
    right = 0
    for first in range(0, len(y), 256):
        part = slice(first, first + 256)
        kept.append(checked_logits(model, x[part], y[part]))
        right += int((kept[-1].argmax(1) == y[part]).sum())
        if right >= wanted:
            break
    return torch.cat(kept)
