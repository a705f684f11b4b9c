"""What a preset says: attacks to run on many networks, and how these are ranked."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from robustbench_bio.core.errors import UserError
from robustbench_bio.records.base import Identifier, Record, Scalar, Text
from robustbench_bio.records.gradient import EXACT, RULE, Gradient
from robustbench_bio.records.threat import Norm, Threat, check_eps, parse_eps


class AskedMeasurement(NamedTuple):
    """One attack at one radius with one gradient, as a preset writes it."""

    attack: "PresetAttack"
    eps: str
    """As people write it, in the attack's unit."""
    gradient: Gradient

    def key(self) -> tuple[Any, ...]:
        """Return what no two measurements of a preset share."""
        attack = self.attack
        params = tuple(sorted(attack.params.items()))
        return attack.attack, attack.norm, attack.eps_unit, parse_eps(self.eps), self.gradient, params


class PresetAttack(Record):
    """One attack of a preset, to be run at each radius and with each gradient."""

    attack: Identifier
    norm: Norm = "linf"
    eps_unit: Literal["input", "normalised"] = "input"
    """normalised: eps and the attack's lengths are in units of the data set's mean standard deviation."""
    eps: list[str] = Field(min_length=1)
    """Radii as people write them, such as "8/255"; whole pixels for l0."""
    gradients: list[Gradient] = Field(default=[RULE, EXACT], min_length=1)
    """Networks without rules are not attacked with "rule", networks with rules not with "own"."""
    params: dict[str, Scalar] = Field(default_factory=dict)

    @field_validator("eps")
    @classmethod
    def _radii_once_each(cls, eps: list[str], info: ValidationInfo) -> list[str]:
        # Only pixels and input units have a largest or smallest radius.
        norm = "l2" if info.data.get("eps_unit") == "normalised" else info.data.get("norm", "l2")
        try:
            radii = [check_eps(parse_eps(text), norm) for text in eps]
        except UserError as error:
            raise ValueError(str(error)) from None
        if len(set(radii)) < len(radii):
            raise ValueError("expected each radius once")
        return eps

    @field_validator("gradients")
    @classmethod
    def _gradients_once_each(cls, gradients: list[Gradient]) -> list[Gradient]:
        if len(set(gradients)) < len(gradients):
            raise ValueError("expected each gradient once")
        return gradients

    @model_validator(mode="after")
    def _pixels_have_no_unit(self) -> Self:
        if self.norm == "l0" and self.eps_unit == "normalised":
            raise ValueError("expected eps_unit input for l0, which counts pixels, got 'normalised'")
        return self

    def measurements(self) -> Iterator[AskedMeasurement]:
        """Yield what the attack is asked for: radii in order, at each of them every gradient."""
        for eps in self.eps:
            for gradient in self.gradients:
                yield AskedMeasurement(self, eps, gradient)


class AttackPreset(Record):
    """Attacks to run on many networks, and how the networks are ranked."""

    name: Identifier
    title: Text
    summary: Text = ""
    reference: Text = ""
    n_examples: int | None = Field(default=None, ge=1, le=10_000_000)
    """First N of the test split; all by default."""
    probe_examples: int = Field(default=64, ge=1, le=10_000_000)
    """Correctly classified examples that the checks before the attacks look at; more where the attacks take long."""
    rank_by: Threat | None = None
    """Threat model whose worst case ranks the networks; the first radius of the first attack by default."""
    robust_meter: Literal["separate", "shared"] = "separate"
    """shared: show also the mean of clean and robust accuracy, which some released code reports as robust accuracy."""
    attacks: list[PresetAttack] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, document: object) -> object:
        if isinstance(document, dict) and "cells" in document:
            raise ValueError("expected [[attacks]], got [[cells]], as it was called before: rename it")
        return document

    def measurements(self) -> list[AskedMeasurement]:
        """Return all that the preset asks for, in its order."""
        return [asked for attack in self.attacks for asked in attack.measurements()]

    @model_validator(mode="after")
    def _measurements_once_each(self) -> Self:
        keys = [asked.key() for asked in self.measurements()]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice:
            raise ValueError(f"expected each measurement once, got {twice[0]} {twice[1]} {twice[3]:g} {twice[4]} twice")
        return self

    @model_validator(mode="after")
    def _every_network_has_a_rank(self) -> Self:
        reached = [
            Threat(asked.attack.norm, parse_eps(asked.eps))
            for asked in self.measurements()
            if asked.attack.eps_unit == "input" and asked.gradient == EXACT
        ]
        if self.headline() not in reached:
            raise ValueError(
                "expected rank_by to name a radius, in input units, of an attack with the exact gradient, "
                f"got {self.headline()}"
            )
        return self

    def headline(self) -> Threat:
        """Return the threat model whose worst case ranks the networks."""
        return self.rank_by or Threat(self.attacks[0].norm, parse_eps(self.attacks[0].eps[0]))
