"""The start of a process: imports without garbage collection and without what nobody uses. Light: no torch here."""

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

SIGNAL = "scipy.signal"


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import torch and Lightning in the body without garbage collection, which finds nothing while they are imported.

    What the modules hold lives as long as the process, so later collections, and the last one when the process ends,
    skip it (`gc.freeze`). torchmetrics gets no `scipy.signal`, see `_NotYet`. If torch is imported already, this does
    nothing.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    stand_in = sys.modules.setdefault(SIGNAL, _NotYet(SIGNAL))
    try:
        yield
    finally:
        if isinstance(stand_in, _NotYet):
            stand_in.leave()
        gc.freeze()
        gc.enable()


class _NotYet(ModuleType):
    """scipy.signal until somebody needs it. torchmetrics imports it to give it back a name for a metric of speech.

    It takes a fifth of what importing torch and Lightning takes (`python -X importtime -c "import torch, lightning"`),
    and a run uses neither. Any other name is that of the real module.
    """

    hamming = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever walks over all modules asks for such names
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(SIGNAL), name)

    def leave(self) -> None:
        """Make room for the real module."""
        if sys.modules.get(SIGNAL) is self:
            del sys.modules[SIGNAL]
        package = sys.modules.get("scipy")
        if package is not None and vars(package).get("signal") is self:
            del package.signal
