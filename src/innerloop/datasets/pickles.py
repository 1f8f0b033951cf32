"""Pickles that data sets come in, read without trusting them."""

import pickle
from typing import IO, Any

import numpy as np

from innerloop.episodes import InputError


def load(file: IO[bytes], origin: str) -> dict[str, Any]:
    """A pickled dictionary of arrays, lists, numbers and strings. Keys are text, strings of Python 2 are bytes.

    A pickle may name any function and have it called, and these files are handed from one person to the next: so
    nothing can be named here but what puts arrays together. Raises InputError with `origin` for all other pickles.
    """
    try:
        content = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # of any type: a damaged pickle raises what its instructions run into
        raise InputError(f"{origin} is not a whole pickle of arrays: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{origin} holds a {type(content).__name__}, there should be a dictionary")
    return {text(key): value for key, value in content.items()}


def text(name: Any) -> str:
    """A key or a name, whichever Python wrote it."""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _dtype(kind: Any, align: Any = False, copy: Any = False) -> np.dtype:
    # Python 2 wrote numbers for the two flags, of which numpy 2.4 warns.
    return np.dtype(kind, bool(align), bool(copy))


# What numpy's own pickles name, in each of its versions.
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
