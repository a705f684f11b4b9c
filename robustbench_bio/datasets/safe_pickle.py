"""Arrays out of pickles of strangers, without running what the pickles ask for."""

import math
import pickle
import re
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from robustbench_bio.core.errors import UserError
from robustbench_bio.core.files import opened

#: Bytes of a pickle; those of ImageNet at 16 × 16 have a tenth of this.
MAX_BYTES = 2**30

_NUMBERS = re.compile(r"[biuf][1248]")

# A pickle may call what find_class returns and may set its state. So everything that find_class returns is a
# class of this module whose __init__ and __setstate__ store or refuse, and nothing of numpy is ever called by
# the file. __setstate__ is defined on each class so that BUILD on the class itself, which would otherwise set
# attributes of the class, is a call with too few arguments.


class _Dtype:
    """Stands for numpy.dtype: a name and a byte order."""

    def __init__(self, name: object, *flags: object) -> None:
        del flags
        self._name = name
        self._order: object = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise ValueError("arrays of structures")
        self._order = state[1]

    def value(self) -> np.dtype[Any]:
        if not isinstance(self._name, str) or not _NUMBERS.fullmatch(self._name):
            raise ValueError(f"arrays of {self._name!r} instead of numbers")
        if self._order not in {"|", "<", ">", "="}:
            raise ValueError("an unknown byte order")
        return np.dtype(f"{self._order}{self._name}")


class _Array:
    """Stands for numpy.ndarray, and for the function that makes an empty one to be filled by its state."""

    def __init__(self, *ignored: object) -> None:
        del ignored
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self._state = shape, dtype, "F" if fortran else "C", data

    def value(self) -> NDArray[Any]:
        shape, dtype, order, data = self._state
        if isinstance(data, str):  # a byte string of Python 2
            data = data.encode("latin1")
        if not (isinstance(dtype, _Dtype) and isinstance(data, bytes | bytearray) and isinstance(shape, tuple)):
            raise TypeError("an array that is not made of plain bytes")
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("an impossible shape")
        kind = dtype.value()
        if len(data) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{len(data)} bytes for an array of shape {list(shape)} and type {kind}")
        return np.frombuffer(data, kind).reshape(shape, order=order)


class _ArrayFromBuffer(_Array):
    """Stands for the function of numpy that protocol 5 uses."""

    def __init__(self, data: object, dtype: object, shape: object, order: object) -> None:
        self._state = shape, dtype, "F" if order == "F" else "C", data

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        raise TypeError("an array that is filled twice")


class _Bytes(bytes):
    """Stands for _codecs.encode, with which protocols before 3 write bytes."""

    def __new__(cls, text: str, encoding: str = "latin1") -> "_Bytes":
        if encoding not in {"latin1", "latin-1"}:
            raise ValueError(f"bytes encoded as {encoding!r}")
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: object) -> None:
        raise TypeError("bytes with a state")


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _ArrayFromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _ArrayFromBuffer,
    ("_codecs", "encode"): _Bytes,
}


@final
class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        """Return our stand-in for a name that numpy arrays need; refuse every other."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STAND_INS[module, name]


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Return the named arrays of a pickled dict whose values are arrays of numbers or lists of integers.

    Reads what Python 2 and 3, numpy 1 and 2 and pickle protocols 0 to 5 write. No global of the file is
    looked up, imported or called; other entries of the dict are not looked at.

    Raises:
        UserError: the file is missing, is cut off, lacks a name, or asks for anything but plain arrays.
    """
    try:
        with opened(path, MAX_BYTES) as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        return {name: _as_array(content[name]) for name in names}
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"expected {path} to be a pickled dict of plain arrays with {' and '.join(names)}, got "
            f"({reason}): nothing of it was run; fetch the file again from a source that you trust"
        ) from error


def _as_array(value: object) -> NDArray[Any]:
    if isinstance(value, _Array):
        return value.value()
    if isinstance(value, list) and all(type(item) is int for item in value):
        return np.array(value, np.int64)
    raise TypeError(f"a {type(value).__name__} instead of an array")
