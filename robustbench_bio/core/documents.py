"""Reading TOML and JSON that nobody has to trust. Loads no torch."""

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

from robustbench_bio.core.errors import UserError

#: Characters of a TOML file; the parser takes quadratic time, and cards are a hundredth of this.
MAX_TOML = 20_000

#: Bytes of a TOML file that is read at all; between the two the parser says what is too much.
MAX_TOML_FILE = 1_000_000

#: Parts of a key such as a.b.c, for the same reason.
MAX_PARTS = 32

#: Size of an integer without its sign, as TOML 1.0 has it.
MAX_BITS = 63

_LONG_KEY = re.compile(r"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*)" + f"{{{MAX_PARTS}}}")


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the document of a TOML text; `where` names it in errors.

    Raises:
        UserError: too long, keys of very many parts, integers of more than 64 bits, or not TOML.
    """
    if len(text) > MAX_TOML:
        raise UserError(f"{where}: expected at most {MAX_TOML:,} characters, got more: shorten it")
    if _LONG_KEY.search(text):
        raise UserError(f"{where}: expected keys of at most {MAX_PARTS} parts, got one of more: shorten it")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise UserError(f"{where}: expected TOML, got {error}: mend that line") from None
    # Hexadecimal ones pass the parser at any length, and then no message could print them.
    if any(isinstance(value, int) and value.bit_length() > MAX_BITS for value in _scalars(document)):
        raise UserError(f"{where}: expected integers of at most {MAX_BITS} bits, got a larger one: take a smaller one")
    return document


def _scalars(document: dict[str, Any]) -> Iterator[Any]:
    """Yield every value that is neither a table nor an array."""
    left: list[Any] = [document]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value
        else:
            yield value


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the document of a JSON text that says each thing once; `where` names it in errors.

    Raises:
        UserError: not JSON, a key twice in one object, NaN or infinity, or integers of more than 64 bits.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_integer, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: expected JSON, got {' '.join(str(error).split())}: write it anew") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"the key {twice[:80]!r} twice")
    return document


def _integer(digits: str) -> int:
    # 63 bits have 19 digits; the length first, as thousands of digits take quadratic time.
    if len(digits) > 20 or (number := int(digits)).bit_length() > MAX_BITS:
        raise ValueError(f"an integer of more than {MAX_BITS} bits")
    return number


def _no_number(text: str) -> Any:
    raise ValueError(f"{text}, which JSON has not")
