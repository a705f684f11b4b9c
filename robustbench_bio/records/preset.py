"""What a preset says: attacks to run on many networks, and how these are ranked."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from robustbench_bio.core.errors import UserError
from robustbench_bio.records.base import GradientText, Identifier, Record, Scalar
from robustbench_bio.records.threat import check_eps, parse_eps


class Radius(Record):
    """A threat model as a preset names it."""

    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    eps: str

    @field_validator("eps")
    @classmethod
    def _a_radius(cls, eps: str, info: ValidationInfo) -> str:
        _checked([eps], info)
        return eps

    def value(self) -> float:
        """Return eps in input units, pixels for l0."""
        return parse_eps(self.eps)


class PresetCell(Record):
    """One attack of a preset, to be run at each radius and with each gradient."""

    attack: Identifier
    norm: Literal["linf", "l2", "l1", "l0"] = "linf"
    eps_unit: Literal["input", "normalised"] = "input"
    """normalised: eps and the attack's lengths are in units of the data set's mean standard deviation."""
    eps: list[str] = Field(min_length=1)
    """Radii as people write them, such as "8/255"; whole pixels for l0."""
    gradients: list[GradientText] = Field(default=["rule", "exact"], min_length=1)
    """Networks without rules are not attacked with "rule"."""
    params: dict[str, Scalar] = Field(default_factory=dict)

    @field_validator("eps")
    @classmethod
    def _radii_once_each(cls, eps: list[str], info: ValidationInfo) -> list[str]:
        radii = _checked(eps, info)
        if len(set(radii)) < len(radii):
            raise ValueError("expected each radius once")
        return eps

    @field_validator("gradients")
    @classmethod
    def _gradients_once_each(cls, gradients: list[GradientText]) -> list[GradientText]:
        if len(set(gradients)) < len(gradients):
            raise ValueError("expected each gradient once")
        return gradients

    @model_validator(mode="after")
    def _pixels_have_no_unit(self) -> Self:
        if self.norm == "l0" and self.eps_unit == "normalised":
            raise ValueError("expected eps_unit input for l0, which counts pixels, got 'normalised'")
        return self


class AttackPreset(Record):
    """Attacks to run on many networks, and how the networks are ranked."""

    name: Identifier
    title: str
    summary: str = ""
    reference: str = ""
    n_examples: int | None = Field(default=None, ge=1)
    """First N of the test split; all by default."""
    probe_examples: int = Field(default=64, ge=1)
    """Correctly classified examples that the probe before the attacks looks at; more where the attacks take long."""
    rank_by: Radius | None = None
    """Threat model whose worst case ranks the networks; the first radius of the first cell by default."""
    robust_meter: Literal["separate", "shared"] = "separate"
    """shared: show also the mean of clean and robust accuracy, which some released code reports as robust accuracy."""
    cells: list[PresetCell] = Field(min_length=1)

    @model_validator(mode="after")
    def _cells_once_each(self) -> Self:
        seen = [
            (cell.attack, cell.norm, cell.eps_unit, parse_eps(eps), gradient, sorted(cell.params.items()))
            for cell in self.cells for eps in cell.eps for gradient in cell.gradients
        ]  # fmt: skip
        twice = next((one for i, one in enumerate(seen) if one in seen[:i]), None)
        if twice:
            raise ValueError(f"expected each measurement once, got {twice[0]} {twice[1]} {twice[3]:g} {twice[4]} twice")
        return self

    @model_validator(mode="after")
    def _every_network_has_a_rank(self) -> Self:
        chosen = self.headline()
        reached = [
            (cell.norm, parse_eps(eps))
            for cell in self.cells if cell.eps_unit == "input" and "exact" in cell.gradients for eps in cell.eps
        ]  # fmt: skip
        if (chosen.norm, chosen.value()) not in reached:
            raise ValueError(
                "expected rank_by to name a radius, in input units, of a cell with the exact gradient, "
                f"got {chosen.norm} {chosen.eps}"
            )
        return self

    def headline(self) -> Radius:
        """Return the threat model whose worst case ranks the networks."""
        return self.rank_by or Radius(norm=self.cells[0].norm, eps=self.cells[0].eps[0])


def _checked(eps: Sequence[str], info: ValidationInfo) -> list[float]:
    """Return radii as numbers; ValueError for one that the norm beside it does not take."""
    norm = info.data.get("norm", "l2")
    # Only pixels and input units have a largest or smallest radius.
    norm = "l2" if info.data.get("eps_unit") == "normalised" else norm
    try:
        return [check_eps(parse_eps(text), norm) for text in eps]
    except UserError as error:
        raise ValueError(str(error)) from None
