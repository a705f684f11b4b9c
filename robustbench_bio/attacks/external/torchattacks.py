"""torchattacks: Kim 2020, arXiv:2010.01950."""

from typing import Any

from torch import Tensor

from robustbench_bio.attacks.external.base import BACKENDS, Backend, Job, PeerAttack, Perturb
from robustbench_bio.core.errors import UserError
from robustbench_bio.records.threat import Norm

_NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2"}
_LINF: frozenset[Norm] = frozenset({"linf"})
_BOTH: frozenset[Norm] = frozenset(_NAMES)

#: The published loops make all steps and return the last point.
_LAST_POINT = {"early_exit": False}

#: The members of AutoAttack keep what they find, as ours do.
_KEPT = {"early_exit": True}

#: Differential evolution does not run with fewer members.
_FEWEST_MEMBERS = 5


def _attack(job: Job, name: str, **settings: Any) -> Perturb:
    import torchattacks

    attack = getattr(torchattacks, name)(job.net, **settings)
    attack.set_device(job.device)
    run: Perturb = attack
    return run


def _normed(job: Job, name: str, **settings: Any) -> Perturb:
    return _attack(job, name, norm=_NAMES[job.threat.norm], eps=job.threat.eps, seed=job.seed, **settings)


def _unmoved(x: Tensor, y: Tensor) -> Tensor:
    del y
    return x


def _fgsm(job: Job) -> Perturb:
    return _attack(job, "FGSM", eps=job.threat.eps)


def _pgd(job: Job) -> Perturb:
    ours, eps = job.attack, job.threat.eps
    if job.threat.norm == "l2" and eps == 0:
        return _unmoved  # it would divide 0 by 0
    name = "PGD" if job.threat.norm == "linf" else "PGDL2"
    return _attack(job, name, eps=eps, alpha=ours.step_at(eps), steps=ours.steps, random_start=ours.random_start)


def _tpgd(job: Job) -> Perturb:
    ours, eps = job.attack, job.threat.eps
    return _attack(job, "TPGD", eps=eps, alpha=ours.step_at(eps), steps=ours.steps)


def _mi_fgsm(job: Job) -> Perturb:
    ours, eps = job.attack, job.threat.eps
    return _attack(job, "MIFGSM", eps=eps, alpha=ours.step_at(eps), steps=ours.steps, decay=ours.decay)


def _apgd(job: Job, loss: str, steps: int, restarts: int = 1, rho: float = 0.75) -> Perturb:
    return _normed(job, "APGD", loss=loss, steps=steps, n_restarts=restarts, rho=rho)


def _apgd_ce(job: Job) -> Perturb:
    return _apgd(job, "ce", job.attack.steps, job.attack.restarts, job.attack.rho)


def _apgd_dlr(job: Job) -> Perturb:
    return _apgd(job, "dlr", job.attack.steps, job.attack.restarts, job.attack.rho)


def _apgd_t(job: Job) -> Perturb:
    ours, classes = job.attack, job.targets(job.attack.targets) + 1
    return _normed(job, "APGDT", steps=ours.steps, n_restarts=ours.restarts, rho=ours.rho, n_classes=classes)


def _fab_t(job: Job) -> Perturb:
    ours, classes = job.attack, job.targets(job.attack.targets) + 1
    biases = {"alpha_max": ours.alpha_max, "eta": ours.eta, "beta": ours.beta}
    return _normed(
        job, "FAB", multi_targeted=True, steps=ours.steps, n_restarts=ours.restarts, n_classes=classes, **biases
    )


def _square(job: Job) -> Perturb:
    ours = job.attack
    # Its first point is one query more.
    return _normed(job, "Square", n_queries=ours.queries - 1, p_init=ours.p_init, n_restarts=ours.restarts)


def _one_pixel(job: Job) -> Perturb:
    ours, pixels = job.attack, int(job.threat.eps)
    if pixels == 0:
        return _unmoved  # it would divide by the number of pixels
    numbers = pixels * (2 + job.shape[0])
    members = max(_FEWEST_MEMBERS, numbers * max(1, ours.population // numbers))
    if members != ours.population:
        raise UserError(
            f"expected a population that torchattacks can have, got {ours.population}: it rounds to multiples of "
            f"{numbers}, at least {_FEWEST_MEMBERS}; try {members}"
        )
    return _attack(job, "OnePixel", pixels=pixels, steps=ours.generations, popsize=ours.population)


def _autoattack(job: Job) -> Perturb:
    """Return the ensemble of `torchattacks.AutoAttack`, which itself has no more than 10 steps, with enough of them."""
    import torchattacks

    ours, classes = job.attack, job.targets(9) + 1
    members = [
        _apgd(job, "ce", ours.steps),
        _normed(job, "APGDT", steps=ours.steps, n_classes=classes),
        _normed(job, "FAB", multi_targeted=True, steps=ours.steps, n_classes=classes),
        _normed(job, "Square", n_queries=ours.queries),
    ]
    attack = torchattacks.MultiAttack(members)
    attack.set_device(job.device)
    run: Perturb = attack
    return run


BACKENDS.register("torchattacks")(
    Backend(
        "torchattacks",
        {
            "fgsm": PeerAttack(_LINF, _fgsm),
            "pgd": PeerAttack(_BOTH, _pgd, _LAST_POINT | {"restarts": 1}),
            "tpgd": PeerAttack(_LINF, _tpgd, _LAST_POINT | {"start_sigma": 0.001}),
            "mi-fgsm": PeerAttack(_LINF, _mi_fgsm, _LAST_POINT),
            "apgd-ce": PeerAttack(_BOTH, _apgd_ce, _KEPT),
            "apgd-dlr": PeerAttack(_BOTH, _apgd_dlr, _KEPT, classes=3),
            "apgd-t": PeerAttack(_BOTH, _apgd_t, _KEPT, classes=4),
            "fab-t": PeerAttack(_BOTH, _fab_t),
            "square": PeerAttack(_BOTH, _square),
            # It draws the weight of the difference anew in every generation, from [0.5, 1).
            "one-pixel": PeerAttack(frozenset({"l0"}), _one_pixel, {"base": "best", "mutation": None}),
            "autoattack": PeerAttack(_BOTH, _autoattack, classes=4),
        },
    )
)
