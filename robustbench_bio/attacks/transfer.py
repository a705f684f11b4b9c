"""Adversarial examples of one network, tried on another."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self, final

import torch
from torch import Tensor

from robustbench_bio.attacks.access.white_box import WhiteBoxModel
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal
from robustbench_bio.attacks.mi_fgsm import MIFGSM
from robustbench_bio.attacks.pgd import PGD
from robustbench_bio.core.errors import UserError
from robustbench_bio.core.parameters import at_least
from robustbench_bio.core.rng import ExampleRng
from robustbench_bio.nets import Net
from robustbench_bio.records.threat import Norm, Threat


class SourceNetwork(NamedTuple):
    """A network that lends its adversarial examples.

    Attributes:
        net: in eval mode.
        sha256: of its weights, for the record: a card of the same name may be trained anew.
    """

    net: Net
    sha256: str


@final
@ATTACKS.register("transfer")
@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """White-box examples made on a source network (Papernot et al. 2016, arXiv:1605.07277).

    The run on the source never stops early: a point far behind its border transfers better. The attacked network
    is asked once, for its number of classes; what the source is asked costs nothing.

    Args:
        source: id of a zoo network, or path of a card that ends in .toml.
        dataset: which of the card's networks.
        method: the attack that is run on the source, with its exact gradient.
        steps: of that attack.
        network: what `source` names, once it is loaded: an attack finds no networks itself.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    white_box: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("source",)

    source: str | None = None
    dataset: str = "digits"
    method: Literal["pgd", "mi-fgsm"] = "pgd"
    steps: int = 40
    network: SourceNetwork | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        at_least(steps=(self.steps, 1))

    def with_networks(self, load: Callable[[str, str], SourceNetwork]) -> Self:
        if self.source is None:
            raise UserError("expected a source for transfer, got none: name a source, such as source=bp-resnet20")
        return replace(self, network=load(self.source, self.dataset))

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, and the hash of the source's weights."""
        own = {name: getattr(self, name) for name in ("source", "dataset", "method", "steps")}
        return own | {"source_sha256": self._loaded.sha256}

    def perturb(self, model: WhiteBoxModel, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        source = self._loaded.net.to(x.device)
        classes = model.logits(x).shape[1]
        expected, got = (tuple(x.shape[1:]), classes), (tuple(source.inputs.shape), source.inputs.classes)
        if expected != got:
            raise UserError(
                f"expected a source for inputs {expected[0]} and {classes} classes, got {self.source} for {got[0]} "
                f"and {got[1]}: name a source that was trained on the same data"
            )
        kind = PGD if self.method == "pgd" else MIFGSM
        attack = kind(steps=self.steps, early_exit=False)
        proposal = attack.perturb(WhiteBoxModel(source), x, y, threat, rng)
        return proposal._replace(queries=torch.full_like(y, model.answer_cost))

    @property
    def _loaded(self) -> SourceNetwork:
        if self.network is None:
            raise UserError(f"expected the network of source {self.source!r}, got none: load it with `with_networks`")
        return self.network
