"""Adversarial examples of one network, tried on another."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from robustbench_bio import catalog
from robustbench_bio.attacks.base import ATTACKS, Attack, Proposal, at_least
from robustbench_bio.attacks.mi_fgsm import MIFGSM
from robustbench_bio.attacks.oracle import Oracle
from robustbench_bio.attacks.pgd import PGD
from robustbench_bio.cards import TrainedNet
from robustbench_bio.errors import UserError
from robustbench_bio.nets import Net
from robustbench_bio.rng import ExampleRng
from robustbench_bio.threat import Norm, Threat


@final
@ATTACKS.register("transfer")
@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """White-box examples made on a source network (Papernot et al. 2016, arXiv:1605.07277).

    The walk on the source never stops early: a point far behind its border transfers better. The attacked network
    is asked once, for its number of classes; what the source is asked costs nothing.

    Args:
        source: id of a zoo network, or path of a card that ends in .toml.
        dataset: which of the card's networks.
        method: the attack that is run on the source, with its exact gradient.
        steps: of that attack.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    white_box: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("source",)

    source: str | None = None
    dataset: str = "digits"
    method: Literal["pgd", "mi-fgsm"] = "pgd"
    steps: int = 40

    def __post_init__(self) -> None:
        at_least(steps=(self.steps, 1))

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, and the hash of the source's weights: a card of the same name may be trained anew."""
        return super().params | {"source_sha256": self._entry.weights_sha256}

    def perturb(self, model: Oracle, x: Tensor, y: Tensor, threat: Threat, rng: ExampleRng) -> Proposal:
        source = self._network.to(x.device)
        classes = model.logits(x).shape[1]
        expected, got = (tuple(x.shape[1:]), classes), (tuple(source.inputs.shape), source.inputs.classes)
        if expected != got:
            raise UserError(
                f"expected a source for inputs {expected[0]} and {classes} classes, got {self.source} for {got[0]} "
                f"and {got[1]}: name a source that was trained on the same data"
            )
        kind = PGD if self.method == "pgd" else MIFGSM
        attack = kind(steps=self.steps, early_exit=False)
        found = attack.perturb(Oracle(source), x, y, threat, rng)
        return found._replace(queries=torch.ones_like(y))

    @cached_property
    def _entry(self) -> TrainedNet:
        found = catalog.card(self._source).datasets.get(self.dataset)
        if found is None or found.weights is None:
            raise UserError(f"expected a source with weights for {self.dataset}, got {self.source}: name another")
        return found

    @cached_property
    def _network(self) -> Net:
        from robustbench_bio.zoo import load_model

        return load_model(self._source, self.dataset)

    @property
    def _source(self) -> str:
        if self.source is None:
            raise UserError("expected a source for transfer, got none: name a source, such as source=bp-resnet20")
        return self.source
