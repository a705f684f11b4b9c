"""foolbox: Rauber et al. 2020, JOSS 5(53) 2607."""

from typing import Any

from robustbench_bio.attacks.external.base import BACKENDS, Backend, Cell, Job, Run
from robustbench_bio.records.threat import Norm

_NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2"}
_NORMS: frozenset[Norm] = frozenset(_NAMES)

#: Its loops walk to the end and return the last point.
_LAST_POINT = {"early_exit": False}


def _attack(job: Job, name: str, restarts: int = 1, **settings: Any) -> Run:
    """Return the attack; of its restarts, all for all examples, the first success counts."""
    from foolbox import attacks
    from foolbox.models.pytorch import PyTorchModel

    attack = getattr(attacks, _NAMES[job.threat.norm] + name)(**settings)
    if restarts > 1:
        attack = attack.repeat(restarts)
    model = PyTorchModel(job.net, bounds=job.threat.bounds, device=job.device)
    # The first of three is what was found, the second is clipped to the ball: the judge wants to see the former.
    return lambda x, y: attack(model, x, y, epsilons=job.threat.eps)[0]


def _fgsm(job: Job) -> Run:
    return _attack(job, "FastGradientAttack")


def _pgd(job: Job) -> Run:
    ours = job.attack
    step = 2.5 * job.threat.eps / ours.steps if ours.step_size is None else ours.step_size
    return _attack(
        job, "ProjectedGradientDescentAttack", ours.restarts,
        abs_stepsize=step, steps=ours.steps, random_start=ours.random_start,
    )  # fmt: skip


def _mi_fgsm(job: Job) -> Run:
    """Return its attack, which unlike the paper sums up signs (l2: unit vectors), not gradients of unit l1 norm."""
    ours = job.attack
    step = job.threat.eps / ours.steps if ours.step_size is None else ours.step_size
    return _attack(
        job, "MomentumIterativeFastGradientMethod",
        abs_stepsize=step, steps=ours.steps, momentum=ours.decay, random_start=False,
    )  # fmt: skip


BACKENDS.register("foolbox")(
    Backend(
        "foolbox",
        {
            "fgsm": Cell(_NORMS, _fgsm),
            "pgd": Cell(_NORMS, _pgd, _LAST_POINT),
            "mi-fgsm": Cell(_NORMS, _mi_fgsm, _LAST_POINT),
        },
    )
)
