"""Reading TOML that nobody has to trust. Loads no torch."""

import re
import tomllib
from pathlib import Path
from typing import Any

from robustbench_bio.errors import UserError

#: Characters of a TOML file; the parser takes quadratic time, and cards are a hundredth of this.
MAX_TOML = 20_000

#: Parts of a key such as a.b.c, for the same reason.
MAX_PARTS = 32
_LONG_KEY = re.compile(r"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*)" + f"{{{MAX_PARTS}}}")


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the document of a TOML text; `where` names it in errors.

    Raises:
        UserError: too long, keys of very many parts, or not TOML.
    """
    if len(text) > MAX_TOML:
        raise UserError(f"{where}: expected at most {MAX_TOML:,} characters, got more: shorten it")
    if _LONG_KEY.search(text):
        raise UserError(f"{where}: expected keys of at most {MAX_PARTS} parts, got one of more: shorten it")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise UserError(f"{where}: expected TOML, got {error}: mend that line") from None


def read_text(path: Path) -> str:
    """Return the text of a TOML file, no more of it than `parse_toml` needs to refuse it.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    with path.open(encoding="utf-8") as file:
        return file.read(MAX_TOML + 1)
