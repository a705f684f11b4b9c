"""What decides a network's answers beside its parameters and buffers: attributes, closures, globals and code."""

import dis
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Packages whose code is a name and a version, and never a user's own.
_LIBRARIES = {*sys.stdlib_module_names, "numpy", "robustbench_bio", "torch", "torchvision"} - {"builtins"}

#: Where calls of an object begin.
_ENTRIES = ("forward", "backward", "__call__")

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)

#: What `nn.Module` itself keeps in every module, hooks of the forward pass and submodules apart.
_OF_MODULES = vars(nn.Module()).keys() - {"_modules", "_forward_hooks", "_forward_pre_hooks"}


def contents(network: object) -> dict[str, str]:
    """Return path → hash of all that is reached from a network and decides its answers.

    That is, of every module, object and function on the way: attributes, tensors and arrays among them, the values of
    closures, defaults and of the globals that are read, and the bytecode of methods that a forward pass may call.
    Parameters and buffers of the network's own modules, which `state_sha256` covers, are left out.
    """
    own = {id(module) for module in network.modules()} if isinstance(network, nn.Module) else set()
    hashes: dict[str, str] = {}
    for path, value in _Walk(own).leaves("", network):
        hashes[path] = hashes.get(path, "") + _sha256(value)  # classes of one name share their paths
    return hashes


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a function reaches by its closure, defaults, globals and attributes, outermost first."""
    walk = _Walk(set())
    for _ in walk.leaves("", function):
        pass
    return walk.modules


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return dtype, shape and bytes of a tensor."""
    content: bytes = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return f"|{tensor.dtype}|{tuple(tensor.shape)}|".encode() + content


def _sha256(value: object) -> str:
    match value:
        case Tensor():
            # A sparse one, or one that a trace left behind, has no bytes to read.
            plain = value.layout == torch.strided and type(value) in {Tensor, nn.Parameter} and not value.is_quantized
            data = tensor_bytes(value) if plain and not value.is_meta else str(value.shape).encode()
        case np.ndarray():
            content = b"" if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
            data = f"{value.dtype}|{value.shape}|".encode() + content
        case CodeType():
            data = value.co_code + repr((value.co_names, [_constant(one) for one in value.co_consts])).encode()
        case _:
            data = repr(value).encode()
    return hashlib.sha256(data).hexdigest()


def _constant(value: object) -> object:
    """Return a constant of code in a form whose text is the same in every process."""
    if isinstance(value, CodeType):
        return _sha256(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value


class _Walk:
    """One walk through what a network holds; every object is visited once.

    Attributes:
        modules: those that were met, outermost first.
    """

    def __init__(self, own: set[int]) -> None:
        self.modules: list[nn.Module] = []
        self._own = own
        self._visited: dict[int, object] = {}  # keeps the objects alive, so that no id is given twice

    def leaves(self, path: str, value: Any) -> Iterator[tuple[str, object]]:
        """Yield path and value of whatever can be hashed below a value."""
        if isinstance(value, _PLAIN):
            yield path, value
            return
        if id(value) in self._visited or len(self._visited) > 100_000:
            return
        self._visited[id(value)] = value
        match value:
            case Tensor() | np.ndarray():
                yield path, value
            case list() | tuple() | dict() | set() | frozenset():
                yield path, len(value)
                yield from self._named(path, _members(value))
            case functools.partial():
                parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
                yield from self._named(path, parts)
            case MethodType(__func__=FunctionType() as function):
                yield from self.leaves(f"{path}.self", value.__self__)
                yield from self._function(path, function, type(value.__self__))
            case FunctionType():
                yield from self._function(path, value, None)
            case ModuleType() | BuiltinFunctionType():
                yield path, value.__name__
            case _:
                yield from self._object(path, value)

    def _named(self, path: str, values: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
        for name, value in values.items():
            yield from self.leaves(f"{path}.{name}", value)

    def _object(self, path: str, value: Any) -> Iterator[tuple[str, object]]:
        cls = value if isinstance(value, type) else type(value)
        yield path, cls.__qualname__
        held: dict[str, Any] = {} if value is cls else dict(getattr(value, "__dict__", {}))
        if isinstance(value, nn.Module):
            self.modules.append(value)
            of_torch = (
                {}
                if id(value) in self._own
                else {**dict(value.named_parameters(recurse=False)), **dict(value.named_buffers(recurse=False))}
            )
            held = {name: one for name, one in held.items() if name not in _OF_MODULES} | of_torch
            hooks = [list(held.pop(name, {}).values()) for name in ("_forward_pre_hooks", "_forward_hooks")]
            held |= {"hooks": hooks}
        elif _is_library(cls) and cls is not SimpleNamespace:
            return
        yield from self._named(path, held)
        yield from self._methods(path, cls, _ENTRIES)

    def _methods(self, path: str, cls: type, names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
        """Yield what the named members of a user's class hold, and of all that they use of the class."""
        for owner in cls.__mro__:
            for name in names if not _is_library(owner) else ():
                member = vars(owner).get(name)
                member = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
                if isinstance(member, FunctionType):
                    yield from self._function(f"{path}:{owner.__qualname__}.{name}", member, cls)
                elif name in vars(owner):
                    yield from self.leaves(f"{path}:{owner.__qualname__}.{name}", member)

    def _function(self, path: str, function: FunctionType, cls: type | None) -> Iterator[tuple[str, object]]:
        if id(function.__code__) in self._visited and cls is not None:
            return  # a method that another one, or itself, calls
        self._visited[id(function.__code__)] = function.__code__
        if _is_library(function):
            yield path, function.__qualname__
            return
        yield path, function.__code__
        yield from self._named(f"{path}()", {"defaults": function.__defaults__, "named": function.__kwdefaults__})
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield from self.leaves(f"{path}()~{name}", cell.cell_contents)
            except ValueError:  # a cell that nothing was put into yet
                continue
        reads, attributes = _names_used(function.__code__)
        globals_read = {name: function.__globals__[name] for name in reads if name in function.__globals__}
        yield from self._named(f"{path}()", globals_read)
        if cls is not None:
            yield from self._methods(path, cls, attributes)


def _members(value: list[Any] | tuple[Any, ...] | dict[Any, Any] | set[Any] | frozenset[Any]) -> dict[str, Any]:
    """Return what a container holds, by keys that are the same in every process."""
    if isinstance(value, dict):
        return {repr(key): one for key, one in value.items() if isinstance(key, _PLAIN)}
    if isinstance(value, set | frozenset):
        return {"": repr(sorted(repr(one) for one in value if isinstance(one, _PLAIN)))}
    return {str(place): one for place, one in enumerate(value)}


def _names_used(code: CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the globals that code reads and the attributes that it asks for, nested functions included."""
    reads: dict[str, None] = {}
    attributes: dict[str, None] = {}
    for step in dis.get_instructions(code):
        if step.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            reads[step.argval] = None
        elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER")):
            attributes[step.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _names_used(constant)
            reads |= dict.fromkeys(inner[0])
            attributes |= dict.fromkeys(inner[1])
    return tuple(reads), tuple(attributes)


def _is_library(thing: type | FunctionType) -> bool:
    return str(thing.__module__).partition(".")[0] in _LIBRARIES
