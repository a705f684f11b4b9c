"""A named collection of plug-ins that is filled by scanning a folder and the entry points of installed packages."""

import difflib
import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from robustbench_bio.core.errors import UserError

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: Group → what its plug-ins failed with; the groups that have been imported. Several registries may share a group.
_failures: dict[str, list[str]] = {}


class Registry(Generic[T]):
    """Plug-ins of one kind by name; importing every module of `package` fills it on first use.

    Packages of other people join through entry points. What they name is imported after the package's own modules;
    one that fails is logged in one line and hides no other member, and so is one that takes a name that is taken.

    Args:
        kind: what a member is called in messages, such as "attack".
        package: dotted name of the package whose modules register members; a new member is one new file.
        group: of the entry points; `robustbench_bio.attacks` for the kind "attack", unless told otherwise.
        known: members that are looked up without importing anything. Who imports the package registers them again,
            and equal ones are no clash.
    """

    def __init__(self, kind: str, package: str, *, group: str = "", known: Mapping[str, T] | None = None) -> None:
        self.kind = kind
        self.group = group or f"robustbench_bio.{kind}s"
        self._package = package
        self._known = dict(known or {})
        self._members: dict[str, T] = dict(self._known)
        self._scanned = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds its object under `name`; a name taken twice is an error.

        The same class of the same module may come again, as when the cell of a notebook is run once more.
        """

        def add(member: T) -> T:
            if self._is_foreign(member):
                # Its module may be imported before the first look-up; the package's own members still come first.
                self._scan_package()
            if name in self._members and not _same(self._members[name], member):
                origins = f"by {_origin(self._members[name])} and by {_origin(member)}"
                raise ValueError(f"{self.kind} {name!r} is registered twice, {origins}: give one of them another name")
            self._members[name] = member
            return member

        return add

    def get(self, name: str) -> T:
        """Return the member called `name`, or raise `UserError` with the nearest names."""
        if name in self._known:
            return self._known[name]
        self._scan()
        if name not in self._members:
            raise UserError("; ".join([unknown(self.kind, name, self._members), *_failures.get(self.group, ())]))
        return self._members[name]

    def registered(self) -> dict[str, T]:
        """Return the members so far, without importing anything."""
        return dict(self._members)

    def names(self) -> list[str]:
        """Return all names in alphabetical order."""
        self._scan()
        return sorted(self._members)

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield (name, member) in alphabetical order."""
        for name in self.names():
            yield name, self._members[name]

    def __contains__(self, name: object) -> bool:
        if name in self._known:
            return True
        self._scan()
        return name in self._members

    def _is_foreign(self, member: T) -> bool:
        module = getattr(member, "__module__", None)
        return isinstance(module, str) and module.partition(".")[0] != self._package.partition(".")[0]

    def _scan(self) -> None:
        self._scan_package()
        if self.group not in _failures:
            _failures[self.group] = []
            _failures[self.group] += filter(None, map(_failure, entry_points(group=self.group)))

    def _scan_package(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        try:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        except BaseException:
            self._scanned = False  # a module that fails must not hide those after it from the next caller
            raise


def _failure(point: EntryPoint) -> str:
    """Import what an entry point names; return what went wrong, which is that plug-in's mistake and no one else's."""
    try:
        point.load()
    except Exception as error:  # noqa: BLE001
        origin = point.dist.name if point.dist else "an unknown package"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        failure = f"plug-in {point.name!r} of {origin} ({point.group}) failed to load: {reason}"
        _log.warning(failure)
        return failure
    return ""


def _same(one: object, other: object) -> bool:
    """Tell whether two members are one: equal, or a class or function of one name and module, defined anew."""
    return one == other or (hasattr(one, "__qualname__") and _origin(one) == _origin(other))


def _origin(member: object) -> str:
    """Return where a class or function was defined; anything else is only told by what it is."""
    name = getattr(member, "__qualname__", None)
    return f"{getattr(member, '__module__', None)}.{name}" if name else repr(member)


def shortened(text: str, most: int = 120) -> str:
    """Return a text of strangers as messages quote it: the whole only if it is short."""
    return text if len(text) <= most else f"{text[:most]}…"


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that does not exist, with near misses first."""
    names, name = list(known), shortened(name)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(sorted(names)) or 'none'}"
    return f"unknown {kind} {name!r}: {hint}"
