"""AutoAttack as its authors released it: Croce & Hein 2020, arXiv:2003.01690; on PyPI it is called pyautoattack."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from robustbench_bio.attacks.external.base import BACKENDS, Backend, Job, PeerAttack, Perturb
from robustbench_bio.records.threat import Norm

_NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_NORMS: frozenset[Norm] = frozenset(_NAMES)

#: Its attacks keep what they find, as ours do.
_KEPT = {"early_exit": True}

_LOG = logging.getLogger("auto-attack")


class _Warnings(logging.Handler):
    def __init__(self, notice: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._notice = notice

    def emit(self, record: logging.LogRecord) -> None:
        self._notice(record.getMessage().partition(" See ")[0])


@contextlib.contextmanager
def _warnings_as_notices(job: Job) -> Iterator[None]:
    """Turn the library's warnings into notices of the result."""
    handler, before = _Warnings(job.notice), _LOG.propagate
    _LOG.addHandler(handler)
    _LOG.propagate = False
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.propagate = before


def _with_notices(job: Job, attack: Callable[[Tensor, Tensor], Any]) -> Perturb:
    def perturb(x: Tensor, y: Tensor) -> Tensor:
        with _warnings_as_notices(job):
            x_adv: Tensor = attack(x, y)
        return x_adv

    return perturb


def _shared(job: Job) -> dict[str, Any]:
    return {"norm": _NAMES[job.threat.norm], "eps": job.threat.eps, "seed": job.seed, "device": job.device}


def _budget(job: Job) -> dict[str, Any]:
    return {"n_iter": job.attack.steps, "n_restarts": job.attack.restarts} | _shared(job)


def _logged(job: Job) -> dict[str, Any]:
    return {"use_largereps": job.threat.norm == "l1", "logger": _LOG}


def _apgd(job: Job, loss: str) -> Perturb:
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(job.net, loss=loss, rho=job.attack.rho, **_logged(job), **_budget(job))
    return _with_notices(job, attack.perturb)


def _apgd_ce(job: Job) -> Perturb:
    return _apgd(job, "ce")


def _apgd_dlr(job: Job) -> Perturb:
    return _apgd(job, "dlr")


def _apgd_t(job: Job) -> Perturb:
    from pyautoattack.autopgd_base import APGDAttack_targeted

    options = {"rho": job.attack.rho, "n_target_classes": job.targets(job.attack.targets)}
    return _with_notices(job, APGDAttack_targeted(job.net, **options, **_logged(job), **_budget(job)).perturb)


def _fab_t(job: Job) -> Perturb:
    from pyautoattack.fab_pt import FABAttack_PT

    ours, classes = job.attack, job.targets(job.attack.targets)
    biases = {"alpha_max": ours.alpha_max, "eta": ours.eta, "beta": ours.beta}
    attack = FABAttack_PT(job.net, targeted=True, n_target_classes=classes, **biases, **_budget(job))
    return _with_notices(job, attack.perturb)


def _square(job: Job) -> Perturb:
    from pyautoattack.square import SquareAttack

    ours = job.attack
    budget = {"n_queries": ours.queries - 1, "n_restarts": ours.restarts}  # its first point is one query more
    return _with_notices(job, SquareAttack(job.net, p_init=ours.p_init, **budget, **_shared(job)).perturb)


def _autoattack(job: Job) -> Perturb:
    """Return the version "standard", which under l1 has square too; its members take no steps once they are made."""
    from pyautoattack import AutoAttack
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT

    ours, shared, sparse = job.attack, _shared(job), job.threat.norm == "l1"
    steps = {"n_iter": ours.steps} | shared
    targets = job.targets(5 if sparse else 9)
    attack = AutoAttack(job.net, version="standard", **shared)
    attack.verbose = False
    attack.apgd = APGDAttack(job.net, n_restarts=5 if sparse else 1, **_logged(job), **steps)
    attack.apgd_targeted = APGDAttack_targeted(job.net, n_target_classes=targets, **_logged(job), **steps)
    attack.fab = FABAttack_PT(job.net, n_target_classes=job.targets(9), **steps)
    attack.square.n_queries = ours.queries
    return _with_notices(job, lambda x, y: attack.run_standard_evaluation(x, y, batch_size=len(x))[0])


BACKENDS.register("autoattack")(
    Backend(
        "pyautoattack",
        {
            "apgd-ce": PeerAttack(_NORMS, _apgd_ce, _KEPT),
            "apgd-dlr": PeerAttack(_NORMS, _apgd_dlr, _KEPT, classes=3),
            "apgd-t": PeerAttack(_NORMS, _apgd_t, _KEPT, classes=4),
            "fab-t": PeerAttack(_NORMS, _fab_t),
            "square": PeerAttack(frozenset({"linf", "l2"}), _square),
            "autoattack": PeerAttack(_NORMS, _autoattack, classes=4),
        },
    )
)
