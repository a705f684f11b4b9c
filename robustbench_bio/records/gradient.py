"""Which gradient an attack follows, as one text."""

from dataclasses import dataclass
from typing import Literal, Self

from robustbench_bio.core.errors import UserError

#: What a gradient's text may be.
FORMS = "exact, rule, surrogate:NAME, eot:K, rule+eot:K or surrogate:NAME+eot:K"

#: Draws that an expectation may average; more would be a slip of the finger.
MOST_DRAWS = 10_000


@dataclass(frozen=True)
class Gradient:
    """How the input gradient comes about.

    `exact` differentiates the forward pass, `rule` asks the network's learning rules, `surrogate:NAME` differentiates
    the forward pass with a smooth stand-in for every threshold and rounding. `+eot:K` averages K draws of a random
    network or rule (expectation over transformation: Athalye et al. 2018, arXiv:1707.07397); `eot:K` alone is exact.

    Attributes:
        source: where the gradient comes from.
        surrogate: name of the stand-in, "" for the other sources.
        draws: K; 0 without expectation.
    """

    source: Literal["exact", "rule", "surrogate"]
    surrogate: str = ""
    draws: int = 0

    @classmethod
    def read(cls, text: str) -> Self:
        """Read a gradient's text; raises `UserError` for anything but `FORMS`."""
        source, plus, eot = text.partition("+")
        if source.startswith("eot:") and not eot:
            source, eot = "exact", source
        kind, _, name = source.partition(":")
        draws = _draws(eot) if plus or eot else 0
        if draws is None or kind not in ("exact", "rule", "surrogate") or bool(name) != (kind == "surrogate"):
            raise UserError(f"expected a gradient such as {FORMS}, got {text!r}")
        return cls(kind, name, draws)  # type: ignore[arg-type]

    def __str__(self) -> str:
        source = f"surrogate:{self.surrogate}" if self.surrogate else self.source
        if not self.draws:
            return source
        return f"eot:{self.draws}" if source == "exact" else f"{source}+eot:{self.draws}"


def _draws(text: str) -> int | None:
    name, _, number = text.partition(":")
    if name != "eot" or not number.isascii() or not number.isdigit() or not 1 <= len(number) <= 5:
        return None
    return int(number) if 1 <= int(number) <= MOST_DRAWS else None
