"""A named collection of plug-ins that is filled by scanning a folder."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from robustbench_bio.core.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Plug-ins of one kind by name; importing every module of `package` fills it on first use.

    Args:
        kind: what a member is called in messages, such as "attack".
        package: dotted name of the package whose modules register members; a new member is one new file.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._members: dict[str, T] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds its object under `name`; a name taken twice is an error.

        The same class of the same module may come again, as when the cell of a notebook is run once more.
        """

        def add(member: T) -> T:
            if name in self._members and _origin(self._members[name]) != _origin(member):
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._members[name] = member
            return member

        return add

    def get(self, name: str) -> T:
        """Return the member called `name`, or raise `UserError` with the nearest names."""
        self._scan()
        if name not in self._members:
            raise UserError(unknown(self.kind, name, self._members))
        return self._members[name]

    def names(self) -> list[str]:
        """Return all names in alphabetical order."""
        self._scan()
        return sorted(self._members)

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield (name, member) in alphabetical order."""
        for name in self.names():
            yield name, self._members[name]

    def __contains__(self, name: object) -> bool:
        self._scan()
        return name in self._members

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        try:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        except BaseException:
            self._scanned = False  # a plug-in that fails must not hide those after it from the next caller
            raise


def _origin(member: object) -> tuple[object, ...]:
    """Return where a class or function was defined; anything else is only equal to itself."""
    name = getattr(member, "__qualname__", None)
    return (getattr(member, "__module__", None), name) if name else (id(member),)


def unknown(kind: str, name: str, known: "dict[str, T] | list[str]") -> str:
    """Return the message for a name that does not exist, with near misses first."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(sorted(known)) or 'none'}"
    return f"unknown {kind} {name!r}: {hint}"
