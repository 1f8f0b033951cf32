"""The start of a process: imports without garbage collection. Light: no torch here."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import torch and Lightning in the body without garbage collection, which finds nothing while they are imported.

    What the modules hold lives as long as the process, so later collections, and the last one when the process ends,
    skip it (`gc.freeze`). If torch is imported already, this does nothing.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
