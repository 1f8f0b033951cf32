"""A safe reader for the pickles that data sets are distributed in."""

import pickle
from typing import IO, Any

import numpy as np

from innerloop.episodes import InputError


def load(file: IO[bytes], origin: str) -> dict[str, Any]:
    """Return a pickled dictionary of arrays, lists, numbers and strings.

    Keys are returned as str. Values that Python 2 wrote as str are returned as bytes.

    A pickle can name any function to be called when it is loaded, and these files come from untrusted sources. So only
    the functions that rebuild arrays are allowed. Raises InputError with `origin`, the path, for all other pickles.
    """
    try:
        content = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise any exception
        raise InputError(f"{origin} is not a valid pickle of arrays: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{origin} holds a {type(content).__name__}, there should be a dictionary")
    return {text(key): value for key, value in content.items()}


def text(name: Any) -> str:
    """Return a key or a name as str, whether Python 2 or Python 3 wrote it."""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _dtype(kind: Any, align: Any = False, copy: Any = False) -> np.dtype:
    # Python 2 wrote the two flags as numbers, and numpy 2.4 warns if they are not bool.
    return np.dtype(kind, bool(align), bool(copy))


# The functions that pickled arrays name, for every version of numpy.
_ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): lambda characters, encoding: characters.encode("latin1"),  # bytes, in protocol 2
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", np.empty(0).__reduce__()[0]),
            ("multiarray", "scalar", np.int64().__reduce__()[0]),
            ("numeric", "_frombuffer", np.empty(0).__reduce_ex__(5)[0]),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _ARRAYS[module, name]
