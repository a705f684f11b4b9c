"""Which gradient an attack follows, as one text."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.registry import shortened

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

#: What a gradient's text may be.
FORMS = "exact, rule, own, surrogate:NAME, eot:K, rule+eot:K, own+eot:K or surrogate:NAME+eot:K"

Source = Literal["exact", "rule", "own", "surrogate"]

#: Draws that an expectation may average; more would be a slip of the finger.
MOST_DRAWS = 10_000


@dataclass(frozen=True)
class Gradient:
    """How the input gradient comes about.

    `exact` differentiates the forward pass, `rule` asks the network's learning rules, `own` asks PyTorch for the
    backward pass of the network's modules, whatever their custom functions hand down, `surrogate:NAME` differentiates
    the forward pass with a smooth stand-in for every threshold and rounding. `+eot:K` averages K draws of a random
    network or rule (expectation over transformation: Athalye et al. 2018, arXiv:1707.07397); `eot:K` alone is exact.
    """

    source: Source
    surrogate: str = ""
    """Name of the stand-in, "" for the other sources."""
    draws: int = 0
    """K; 0 without expectation."""

    @classmethod
    def read(cls, text: "str | Gradient") -> "Gradient":
        """Read a gradient's text, or return one that was read; raises `UserError` for anything but `FORMS`."""
        if isinstance(text, Gradient):
            return text
        source, plus, eot = text.partition("+")
        if source.startswith("eot:") and not eot:
            source, eot = "exact", source
        kind, _, name = source.partition(":")
        draws = _draws(eot) if plus or eot else 0
        if draws is None or kind not in get_args(Source) or bool(name) != (kind == "surrogate"):
            raise UserError(f"expected a gradient such as {FORMS}, got {shortened(text)!r}")
        return cls(kind, name, draws)  # type: ignore[arg-type]

    def __str__(self) -> str:
        source = f"surrogate:{self.surrogate}" if self.surrogate else self.source
        if not self.draws:
            return source
        return f"eot:{self.draws}" if source == "exact" else f"{source}+eot:{self.draws}"

    @property
    def claimed(self) -> bool:
        """Whether the network says what it is, by its rules or its modules: it may be false."""
        return self.source in ("rule", "own")

    def held_against(self, others: "Iterable[Gradient]") -> "Gradient | None":
        """Return the exact gradient among others that shows a claimed one false: of as many draws if there is one."""
        exact = [other for other in others if other.source == "exact" and self.claimed]
        return min(exact, key=lambda other: (other.draws != self.draws, other.draws), default=None)

    @classmethod
    def _of_record(cls, value: object) -> "Gradient":
        if not isinstance(value, str | Gradient):
            raise ValueError(f"expected a text such as {FORMS}")  # noqa: TRY004  (pydantic asks for it)
        try:
            return cls.read(value)
        except UserError as error:
            raise ValueError(str(error)) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> "CoreSchema":
        """Let records hold a gradient as its text."""
        from pydantic_core import core_schema

        written = core_schema.to_string_ser_schema()
        return core_schema.no_info_plain_validator_function(cls._of_record, serialization=written)


#: What most attacks of this package follow: the derivative of the forward pass, and what learning rules hand down; and
#: what any network's modules do.
EXACT, RULE, OWN = Gradient("exact"), Gradient("rule"), Gradient("own")


def _draws(text: str) -> int | None:
    name, _, number = text.partition(":")
    if name != "eot" or not number.isascii() or not number.isdigit() or not 1 <= len(number) <= 5:
        return None
    return int(number) if 1 <= int(number) <= MOST_DRAWS else None
