"""`evaluate`: one network, some examples, one attack."""

from collections.abc import Sequence
from typing import Any

import torch

from robustbench_bio.attacks import ATTACKS
from robustbench_bio.attacks.external import NATIVE
from robustbench_bio.core.progress import Progress, silent
from robustbench_bio.evaluation.given import Data
from robustbench_bio.evaluation.measure import measure
from robustbench_bio.evaluation.network import Network, device_of, network_of
from robustbench_bio.evaluation.plan import Measurement, Settings, Slice, Subject, default_attack, prepare
from robustbench_bio.evaluation.store import Store
from robustbench_bio.records.base import Precision
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.result import Result
from robustbench_bio.records.threat import Norm, Threat


def evaluate(
    model: Network,
    data: Data,
    *,
    attack: str | None = None,
    norm: Norm | None = None,
    eps: float | str | None = None,
    gradient: str | Gradient = "exact",
    backend: str = NATIVE,
    seed: int = 0,
    batch_size: int = 256,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
    ids: Sequence[int] | None = None,
    names: tuple[str, str, str] = ("model", "data", "test"),
    store: Store | None = None,
    progress: Progress = silent,
    **params: Any,
) -> Result:
    """Measure how many examples a network still classifies correctly under an attack.

    Args:
        model: any module in eval mode or function of x, x float32 [n, C, H, W] in [0, 1] → logits [n, K],
            normalisation inside.
        data: (x [N, C, H, W] in [0, 1], or uint8 in 0…255, y [N] of any integer type) as tensors or arrays, or a
            `DataLoader` or `Dataset` of them, see `examples_of`.
        attack: its name; by default swift, which finds nearly what AutoAttack does at a small part of its price, and
            pgd of another library.
        norm: "linf", "l2", "l1" or "l0", as the attack serves; by default linf, or what else is natural to the attack.
        eps: radius in input units (pixels for l0), a number or a text such as "8/255"; by default what is natural to
            the norm: 8/255 for linf, 0.5 for l2, 12 for l1, one pixel for l0.
        gradient: "exact" differentiates the forward pass; "rule" asks the network's learning rules; "own" asks
            autograd for the backward pass of its modules, as other libraries do; "surrogate:NAME" puts a smooth
            stand-in under thresholds; "eot:K" averages K draws, and a network that is random is then attacked and
            judged by its mean prediction over 20 draws. Also "rule+eot:K" and so on.
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
    attack = attack or default_attack(backend)
    threat = Threat.checked(ATTACKS.get(attack).natural_norm() if norm is None else norm, eps)
    measurement = Measurement(attack, threat, Gradient.read(gradient), params, backend)
    examples = Slice.given(data, ids, *names[1:])
    net = network_of(model, examples.x, device)
    settings = Settings(seed, batch_size, precision, device_of(net) if device is None else device)
    subject = Subject(names[0], net)
    return measure(prepare(subject, measurement, examples, settings), store, progress)
