"""Threat models: which perturbations count, how people write them, and the geometry that attacks need.

Reading and writing a threat model loads no torch; its geometry does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import shortened, unknown

if TYPE_CHECKING:
    from pydantic_core import CoreSchema
    from torch import Tensor

    from robustbench_bio.core.rng import ExampleRng

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[Norm, ...] = get_args(Norm)

#: Radius of each norm where nobody names one: for linf and l2 that of RobustBench's CIFAR-10 boards (Croce et al. 2021,
#: arXiv:2010.09670), for l1 of Croce & Hein 2021 (arXiv:2103.01208), for l0 of Su et al. 2019 (arXiv:1710.08864).
NATURAL_EPS: dict[Norm, float] = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 1.0}

#: Relative slack of the judge for rounding in float32: x + delta is rounded to the grid of x, not of delta.
TOLERANCE = 1e-6

#: The largest radius in any norm; in l1 or l0 an image of a million values can change by no more.
MAX_EPS = 1_000_000


def parse_eps(text: str) -> float:
    """Read one radius: `8/255`, `0.03`.

    Raises:
        UserError: not a number.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        eps = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        eps = math.nan
    if not math.isfinite(eps):
        raise UserError(f"expected eps as a number or a fraction such as 8/255, got {shortened(text)!r}")
    return eps


def format_eps(eps: float, norm: str) -> str:
    """Return a radius as people write it: linf in 255ths where that is exact, pixels for l0."""
    if norm == "l0":
        return f"{eps:g} px"
    steps = eps * 255
    if norm == "linf" and math.isclose(steps, round(steps, 2), rel_tol=1e-9):
        return f"{round(steps, 2):g}/255"
    return f"{eps:g}"


def check_eps(eps: float, norm: str) -> float:
    """Return `eps` if it is a sensible radius for `norm`, else raise `UserError` with the remedy."""
    if norm == "l0":
        if not eps >= 1 or not float(eps).is_integer():
            raise UserError(f"expected eps as a whole number of pixels for l0, got {eps:g}")
    elif not eps > 0 or not math.isfinite(eps):
        raise UserError(f"expected eps > 0, got {eps:g}")
    elif norm == "linf" and eps > 1:
        raise UserError(f"expected eps in (0, 1], got {eps:g}: eps is in input units, did you mean {eps:g}/255?")
    if eps > MAX_EPS:
        raise UserError(f"expected eps up to {MAX_EPS:,}, got {eps:g}: eps is in input units, which lie in [0, 1]")
    return eps


def _rows(values: "Tensor", like: "Tensor") -> "Tensor":
    """Reshape [n] so that it broadcasts over `like` [n, ...]."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def _l2(values: "Tensor") -> "Tensor":
    import torch

    norm: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norm


def _soft_threshold(length: "Tensor", room: "Tensor", budget: float) -> "Tensor":
    """Return the smallest t >= 0 with Σ min(max(length − t, 0), room) ≤ budget for each row: [n, d], [n, d] → [n].

    The sum falls in straight pieces as t grows; they meet where a value leaves the border of its room or becomes 0.
    """
    import torch

    kinks, order = torch.cat([length, (length - room).clamp_min(0)], 1).sort(dim=1, descending=True)
    falling = torch.where(order < length.shape[1], 1, -1).cumsum(1)[:, :-1]
    total = torch.nn.functional.pad((falling * -kinks.diff(dim=1)).cumsum(1), (1, 0))
    # The piece in which the budget is reached starts at the last kink where the sum is below it.
    last = ((total < budget).sum(1, keepdim=True) - 1).clamp_min(0)
    inner = last.clamp_max(falling.shape[1] - 1)
    slope = falling.gather(1, inner).clamp_min(1)
    cut = kinks.gather(1, last) - (budget - total.gather(1, last)) / slope
    within = torch.minimum(length, room).sum(1, keepdim=True) <= budget
    return torch.where(within, 0, cut.clamp_min(0)).squeeze(1)


@dataclass(frozen=True)
class Threat:
    """All x_adv with ‖x_adv − x‖ ≤ eps inside the box `bounds`.

    Args:
        norm: "linf", "l2", "l1", or "l0" (number of changed pixels, all channels of a pixel counted once).
        eps: radius in input units (8/255, not 8), or the number of pixels for l0; 0 allows nothing.
        bounds: smallest and largest legal input value.
    """

    norm: Norm
    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(unknown("norm", self.norm, list(NORMS)))
        if not self.eps >= 0:
            raise UserError(f"expected eps >= 0, got {self.eps}")

    @classmethod
    def checked(cls, norm: str, eps: float | str | None = None) -> Self:
        """Return a threat model with a sensible radius, which may be written as text, such as "8/255".

        None stands for the radius that is natural to the norm, see `NATURAL_EPS`.

        Raises:
            UserError: an unknown norm, no number, or a radius that makes no sense for the norm.
        """
        if norm not in NORMS:
            raise UserError(unknown("norm", norm, list(NORMS)))
        if eps is None:
            eps = NATURAL_EPS[norm]
        return cls(norm, check_eps(parse_eps(eps) if isinstance(eps, str) else eps, norm))

    @classmethod
    def several(cls, norm: str, radii: str | None) -> list[Self]:
        """Return a threat model for each of several radii, separated by commas; None and errors as for `checked`."""
        threats = [cls.checked(norm, radius) for radius in ([None] if radii is None else radii.split(","))]
        if len(set(threats)) < len(threats):
            raise UserError(f"expected each radius once, got {radii}: leave one out")
        return threats

    def check_room(self, shape: Sequence[int]) -> None:
        """Raise `UserError` if no two inputs of this shape [C, H, W] lie as far apart as eps."""
        width, values = self.bounds[1] - self.bounds[0], math.prod(shape)
        diameter = {"linf": width, "l2": width * values**0.5, "l1": width * values, "l0": values / shape[0]}[self.norm]
        if self.eps > diameter:
            raise UserError(
                f"expected eps <= {diameter:g} in {self.norm} for inputs {tuple(shape)}, no two of which lie further "
                f"apart, got {self.eps:g}: eps is in {'pixels' if self.norm == 'l0' else 'input units'}"
            )

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps, self.norm)}"

    def document(self) -> dict[str, Any]:
        """Return norm and eps as records hold them; the box is [0, 1] there."""
        return {"norm": self.norm, "eps": self.eps}

    @classmethod
    def read(cls, document: object) -> Self:
        """Return the threat model that a record holds, its radius as a number or as people write it.

        Raises:
            ValueError: not a table of norm and eps, or one that `checked` refuses.
        """
        if isinstance(document, cls):
            return document
        if not isinstance(document, dict) or not document.keys() <= {"norm", "eps"} or "eps" not in document:
            raise ValueError('expected a threat model such as {norm = "linf", eps = "8/255"}')
        norm, eps = document.get("norm", "linf"), document["eps"]
        if not isinstance(norm, str) or isinstance(eps, bool) or not isinstance(eps, str | int | float):
            raise ValueError('expected norm as a text and eps as a number or a text such as "8/255"')  # noqa: TRY004
        try:
            return cls.checked(norm, eps if isinstance(eps, str) else float(eps))
        except (UserError, OverflowError) as error:
            raise ValueError(str(error)) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> "CoreSchema":
        from pydantic_core import core_schema

        written = core_schema.plain_serializer_function_ser_schema(cls.document)
        return core_schema.no_info_plain_validator_function(cls.read, serialization=written)

    def size(self, delta: "Tensor") -> "Tensor":
        """Return the norm of each perturbation: delta [n, C, H, W] → float32 [n]."""
        flat = delta.flatten(1)
        match self.norm:
            case "linf":
                return flat.abs().amax(1)
            case "l2":
                return _l2(delta)
            case "l1":
                return flat.abs().sum(1)
            case "l0":
                return delta.abs().amax(1).gt(0).flatten(1).sum(1).to(delta.dtype)

    def contains(self, x: "Tensor", x_adv: "Tensor") -> "Tensor":
        """Tell for each example whether x_adv is legal, up to float32 rounding: bool [n]."""
        low, high = self.bounds
        inside = ((x_adv >= low) & (x_adv <= high)).flatten(1).all(1)
        # Each pixel of x_adv carries half a unit in the last place of values near 1; norms add them up.
        pixels = x[0].numel()
        slack = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels), "l0": 0.0}[self.norm] * TOLERANCE
        small: Tensor = self.size(x_adv - x) <= self.eps * (1 + TOLERANCE) + slack
        return inside & small

    def project(self, x: "Tensor", x_adv: "Tensor") -> "Tensor":
        """Return the nearest legal point to x_adv around x (for l2: ball, then box, which stays in the ball).

        Both arguments and the result are [n, C, H, W], x within the bounds. For l1 it is the nearest point of
        ball and box together (Croce & Hein 2021, arXiv:2103.01208, sec. 2.2): ball, then box, would give away much
        of a budget that few values share. Raises `NotImplementedError` for l0, whose attacks keep to their ball
        by construction.
        """
        import torch

        low, high = self.bounds
        match self.norm:
            case "linf":
                return torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps).clamp(low, high)
            case "l2":
                delta = x_adv - x
                scale = (self.eps / self.size(delta).clamp_min(1e-12)).clamp_max(1.0)
                return (x + delta * _rows(scale, x)).clamp(low, high)
            case "l1":
                delta = x_adv - x
                room = torch.where(delta > 0, high - x, x - low)
                length = delta.abs()
                cut = _soft_threshold(length.flatten(1), room.flatten(1), self.eps)
                return (x + delta.sign() * (length - _rows(cut, x)).clamp_min(0)).clamp(low, high)
            case _:
                raise NotImplementedError(f"no projection onto the {self.norm} ball")

    def random_start(self, x: "Tensor", rng: "ExampleRng") -> "Tensor":
        """Return a legal point drawn uniformly from the ball around x, cut to the box: [n, C, H, W]."""
        match self.norm:
            case "linf":
                delta = (rng.uniform(x.shape[1:], x) * 2 - 1) * self.eps
            case "l2":
                direction = rng.normal(x.shape[1:], x)
                # The volume within radius r grows as r^d, so U^(1/d) is uniform in the ball.
                radius = rng.uniform((), x) ** (1 / x[0].numel()) * self.eps
                delta = direction * _rows(radius / self.size(direction).clamp_min(1e-12), x)
            case "l1":
                # d of d + 1 exponential variables over their sum are uniform in the simplex (Barthe et al. 2005).
                signed = rng.uniform((x[0].numel() + 1,), x) * 2 - 1
                drawn = -signed.abs().clamp_min(1e-30).log()
                share = (drawn / drawn.sum(1, keepdim=True) * signed.sign())[:, 1:]
                delta = self.eps * share.view_as(x)
            case _:
                raise NotImplementedError(f"no random start in the {self.norm} ball")
        return self.project(x, x + delta)

    def steepest(self, gradient: "Tensor") -> "Tensor":
        """Return the unit-norm direction of steepest ascent, argmax over ‖d‖ ≤ 1 of ⟨gradient, d⟩: [n, C, H, W].

        For l1 that is a single value of each example, the one with the largest gradient.
        """
        import torch

        match self.norm:
            case "linf":
                return gradient.sign()
            case "l2":
                return gradient / _rows(_l2(gradient).clamp_min(1e-30), gradient)
            case "l1":
                flat = gradient.flatten(1)
                largest = flat.abs().argmax(1, keepdim=True)
                return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(gradient)
            case _:
                raise NotImplementedError(f"no steepest direction for {self.norm}")
