"""AutoAttack as its authors released it: Croce & Hein 2020, arXiv:2003.01690; on PyPI it is called pyautoattack."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from robustbench_bio.attacks.external.base import BACKENDS, Backend, Cell, Job, Run
from robustbench_bio.records.threat import Norm

_NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_NORMS: frozenset[Norm] = frozenset(_NAMES)

#: Its attacks keep what they find, as ours do.
_KEPT = {"early_exit": True}

_LOG = logging.getLogger("auto-attack")


class _Warnings(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage().partition(" See ")[0])


@contextlib.contextmanager
def _heard(job: Job) -> Iterator[None]:
    """Turn the library's warnings into notices of the result."""
    handler, before = _Warnings(job.tell), _LOG.propagate
    _LOG.addHandler(handler)
    _LOG.propagate = False
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.propagate = before


def _shared(job: Job) -> dict[str, Any]:
    return {"norm": _NAMES[job.threat.norm], "eps": job.threat.eps, "seed": job.seed, "device": job.device}


def _run(job: Job, attack: Any) -> Run:
    def run(x: Tensor, y: Tensor) -> Tensor:
        with _heard(job):
            x_adv: Tensor = attack.perturb(x, y)
        return x_adv

    return run


def _apgd(job: Job, loss: str) -> Run:
    from pyautoattack.autopgd_base import APGDAttack

    ours = job.attack
    return _run(
        job,
        APGDAttack(
            job.net, loss=loss, n_iter=ours.steps, n_restarts=ours.restarts, rho=ours.rho,
            use_largereps=job.threat.norm == "l1", logger=_LOG, **_shared(job),
        ),
    )  # fmt: skip


def _apgd_ce(job: Job) -> Run:
    return _apgd(job, "ce")


def _apgd_dlr(job: Job) -> Run:
    return _apgd(job, "dlr")


def _apgd_t(job: Job) -> Run:
    from pyautoattack.autopgd_base import APGDAttack_targeted

    ours = job.attack
    return _run(
        job,
        APGDAttack_targeted(
            job.net, n_iter=ours.steps, n_restarts=ours.restarts, rho=ours.rho, logger=_LOG,
            n_target_classes=job.targets(ours.targets), use_largereps=job.threat.norm == "l1", **_shared(job),
        ),
    )  # fmt: skip


def _fab_t(job: Job) -> Run:
    from pyautoattack.fab_pt import FABAttack_PT

    ours = job.attack
    return _run(
        job,
        FABAttack_PT(
            job.net, targeted=True, n_iter=ours.steps, n_restarts=ours.restarts, alpha_max=ours.alpha_max,
            eta=ours.eta, beta=ours.beta, n_target_classes=job.targets(ours.targets), **_shared(job),
        ),
    )  # fmt: skip


def _square(job: Job) -> Run:
    from pyautoattack.square import SquareAttack

    ours = job.attack
    # Its first point is one query more.
    return _run(
        job,
        SquareAttack(
            job.net, n_queries=ours.queries - 1, p_init=ours.p_init, n_restarts=ours.restarts, **_shared(job)
        ),
    )  # fmt: skip


def _autoattack(job: Job) -> Run:
    """Return the version "standard", which under l1 has square too; its members take no steps once they are made."""
    from pyautoattack import AutoAttack
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT

    ours, shared, sparse = job.attack, _shared(job), job.threat.norm == "l1"
    large = {"use_largereps": sparse, "logger": _LOG}
    attack = AutoAttack(job.net, version="standard", **shared)
    attack.verbose = False
    attack.apgd = APGDAttack(job.net, n_iter=ours.steps, n_restarts=5 if sparse else 1, **large, **shared)
    attack.apgd_targeted = APGDAttack_targeted(
        job.net, n_iter=ours.steps, n_target_classes=job.targets(5 if sparse else 9), **large, **shared
    )
    attack.fab = FABAttack_PT(job.net, n_iter=ours.steps, n_target_classes=job.targets(9), **shared)
    attack.square.n_queries = ours.queries

    def run(x: Tensor, y: Tensor) -> Tensor:
        with _heard(job):
            x_adv: Tensor = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
        return x_adv

    return run


BACKENDS.register("autoattack")(
    Backend(
        "pyautoattack",
        {
            "apgd-ce": Cell(_NORMS, _apgd_ce, _KEPT),
            "apgd-dlr": Cell(_NORMS, _apgd_dlr, _KEPT, classes=3),
            "apgd-t": Cell(_NORMS, _apgd_t, _KEPT, classes=4),
            "fab-t": Cell(_NORMS, _fab_t),
            "square": Cell(frozenset({"linf", "l2"}), _square),
            "autoattack": Cell(_NORMS, _autoattack, classes=4),
        },
    )
)
