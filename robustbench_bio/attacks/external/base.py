"""What a backend is: another library that runs an attack with the parameters of ours."""

import contextlib
import dataclasses
import hashlib
import importlib
import io
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_bio.attacks import Attack, Proposal, WhiteBoxModel, make, rules_of
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import Registry, unknown
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.records.base import Precision, Scalar
from robustbench_bio.records.gradient import Gradient
from robustbench_bio.records.threat import NORMS, Norm, Threat
from robustbench_bio.rules import LayerRules

#: The attacks of this package, which need no library.
NATIVE = "native"

#: A library's attack with its parameters set: x [n, C, H, W], y [n] → x_adv.
Perturb = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """What a library is asked to do, once for each batch.

    Attributes:
        net: the network; counts what it is asked.
        attack: our attack, for its parameters.
        shape: (C, H, W) of the inputs.
        seed: for libraries that want one; the global generators are seeded already.
        notice: takes what a reader of the result should know.
    """

    net: nn.Module
    attack: Any
    threat: Threat
    shape: tuple[int, int, int]
    classes: int
    device: torch.device
    seed: int
    notice: Callable[[str], None]

    def targets(self, wanted: int) -> int:
        """Return how many wrong classes there are to aim at, at most `wanted`."""
        if self.classes <= wanted:
            self.notice(f"{wanted} target classes asked for, {self.classes - 1} used: there are {self.classes} classes")
        return min(wanted, self.classes - 1)


@dataclass(frozen=True)
class PeerAttack:
    """How one library runs one of our attacks.

    Attributes:
        norms: the threat models that it serves.
        build: returns the library's attack with the parameters of a job; raises `UserError` where it cannot.
        fixed: parameters of ours that the library does not have, with what it always does instead; None where
            that is no single value.
        classes: fewer classes than this make the library fail.
    """

    norms: frozenset[Norm]
    build: Callable[[Job], Perturb]
    fixed: Mapping[str, Scalar | None] = field(default_factory=dict)
    classes: int = 2


@dataclass(frozen=True)
class Backend:
    """A library and what it can run.

    Attributes:
        module: the name to import and to install.
        attacks: name of one of ours → how the library runs it.
    """

    module: str
    attacks: Mapping[str, PeerAttack]

    def require(self) -> None:
        """Raise `UserError` with the remedy unless the library can be imported."""
        try:
            importlib.import_module(self.module)
        except ImportError:
            raise UserError(
                f'expected {self.module}, which is not installed: pip install "robustbench-bio[backends]"'
            ) from None


BACKENDS: Registry[Backend] = Registry("backend", "robustbench_bio.attacks.external")


def names() -> list[str]:
    """Return what may be asked for: ours first."""
    return [NATIVE, *BACKENDS.names()]


def peer(backend: str, attack: str, norm: Norm, params: dict[str, Any], precision: Precision | None = None) -> "Peer":
    """Return the attack of another library that does what `make(attack, norm, params)` would.

    Raises:
        UserError: what `make` refuses; an unknown backend, one that lacks the attack or the norm, or is not
            installed; or a parameter or precision that it cannot honour.
    """
    if backend not in BACKENDS:
        raise UserError(unknown("backend", backend, names()))
    native, library = make(attack, norm, params), BACKENDS.get(backend)
    theirs = library.attacks.get(attack)
    if theirs is None:
        raise UserError(f"expected an attack that {backend} has ({', '.join(library.attacks)}), got {attack}")
    if norm not in theirs.norms:
        served = ", ".join(sorted(theirs.norms))
        raise UserError(f"expected a norm that {backend} serves with {attack} ({served}), got {norm}")
    for key, value in theirs.fixed.items():
        if key in params and params[key] != value:
            always = "has no such parameter" if value is None else f"has {key} = {value} always"
            raise UserError(
                f"expected parameters that {backend} can honour, got {key} = {params[key]}: its {attack} {always}"
            )
    if precision == "bfloat16":
        raise UserError(f"expected precision float32 for {backend}, got bfloat16: only native has it")
    library.require()
    return Peer(backend=backend, attack=attack, native=native, theirs=theirs)


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Peer(Attack):
    """An attack as another library runs it.

    The library sees the network itself, not a trace of it: with the exact gradient it trusts the network's own
    backward pass ("own" says so), with that of the rules it differentiates the network with its rules attached. It
    draws from the global generators, which are seeded from the seed and the first example of each batch and put back
    afterwards; so unlike ours, its draws depend on the batches. Nothing that it prints gets out; the modes of the
    modules and the gradients of the parameters are as before.

    Queries are counted by the network, rows for all forward passes of the library, its checks included, and
    shared out evenly: each example of a batch has the rounded mean. Steps are not known and stored as 0.

    Args:
        native: our attack with its parameters.
        theirs: how the library runs it.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset(NORMS)

    backend: str
    attack: str
    native: Attack
    theirs: PeerAttack

    def __repr__(self) -> str:
        return f"{self.attack} of {self.backend}"

    @property
    def params(self) -> dict[str, Any]:
        """Parameters with the values that the library works with, for the record."""
        return dataclasses.asdict(self.native) | dict(self.theirs.fixed)

    def brief(self) -> Self:
        return dataclasses.replace(self, native=self.native.brief())

    def check(self, net: nn.Module, gradient: Gradient | str, threat: Threat, x: Tensor) -> None:
        """Raise `UserError` now if the library cannot attack this network, so that nothing is begun in vain."""
        white_box = WhiteBoxModel(net, gradient)
        self._rules(white_box)
        self._build(white_box, _Counted(net), threat, x, seed=0)

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        net = _Counted(model.model)
        seed = _seed(rng.seed, rng.ids[0])
        x = x.detach().contiguous(memory_format=torch.contiguous_format)
        run = self._build(model, net, threat, x, seed)
        with self._rules(model), _isolated(model.model, seed), torch.enable_grad():
            x_adv = run(x.clone(), y.clone()).detach()
        if net.differentiated and model.kind.source == "exact":
            self._notice(model, "trusts the network's own backward pass")
        return Proposal(x_adv, torch.full_like(y, round(net.rows / len(y))), torch.zeros_like(y))

    def _build(self, model: WhiteBoxModel, net: nn.Module, threat: Threat, x: Tensor, seed: int) -> Perturb:
        classes = model.logits(x[:1]).shape[1]
        if classes < self.theirs.classes:
            raise UserError(
                f"expected at least {self.theirs.classes} classes for the {self}, got {classes}: use backend native"
            )
        channels, height, width = x.shape[1:]
        job = Job(
            net=net,
            attack=self.native,
            threat=threat,
            shape=(channels, height, width),
            classes=classes,
            device=x.device,
            seed=seed,
            notice=partial(self._notice, model),
        )
        with _quiet():
            return self.theirs.build(job)

    def _notice(self, model: WhiteBoxModel, text: str) -> None:
        """Tell the reader of the result once, whatever the numbers in the text: each batch may count others."""
        text = f"{self.backend}: {text}"
        if _wording(text) not in map(_wording, model.notices):
            model.notices.append(text)

    def _rules(self, model: WhiteBoxModel) -> contextlib.AbstractContextManager[None]:
        if model.kind.surrogate or model.kind.draws:
            known = "exact, own or rule"
            raise UserError(f"expected gradient {known} for {self.backend}, got {model.kind}: use backend native")
        if model.kind.source != "rule":
            return contextlib.nullcontext()
        rules = rules_of(model.model)
        if not isinstance(rules, LayerRules):
            raise UserError(
                f"expected rules that {self.backend} can differentiate, got predictive coding, which has no backward "
                "pass: use backend native or gradient exact"
            )
        return rules.attached(model.model)


class _Counted(nn.Module):
    """A network that counts the rows it is asked about.

    The library sees this class and not the network's own: torchattacks takes a network whose class is called
    RobModel for one that wants normalised inputs.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.training = False  # this module's own mode; the network's is for the gate to judge
        self.net = net
        self.rows = 0
        self.differentiated = False

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        self.differentiated |= x.requires_grad and torch.is_grad_enabled()
        logits: Tensor = self.net(x)
        return logits


def _seed(seed: int, first: int) -> int:
    """Return 31 bits, which every generator takes."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{first}".encode()).digest()[:4], "little") >> 1


def _wording(text: str) -> str:
    return re.sub(r"[\d.]+", "", text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _isolated(net: nn.Module, seed: int) -> Iterator[None]:
    """Seed the global generators for the block, and leave behind no trace of a library that ran in it."""
    modes = [(module, module.training) for module in net.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in net.parameters()]
    numpy_state, python_state, tracer = np.random.get_state(), random.getstate(), sys.gettrace()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))), _quiet():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            for p, _, _ in parameters:
                p.requires_grad_(False)  # the libraries have no use for the parameters' gradients
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        sys.settrace(tracer)
        for module, mode in modes:
            module.training = mode
        for p, wanted, grad in parameters:
            p.requires_grad_(wanted)
            p.grad = grad
