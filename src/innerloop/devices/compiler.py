"""Source in C++ as functions of this process, compiled for this machine."""

import ctypes
import platform
import subprocess
import tempfile
from pathlib import Path

from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

ARM = platform.machine() in ("arm64", "aarch64")
FLAGS = f"""-ftree-vectorize {"-mcpu" if ARM else "-march"}=native -std=c++17 -shared -fPIC
-ffp-contract=fast -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math"""
"""Products and sums are fused and sums reordered, but infinity and NaN are kept."""


class CompilerError(Exception):
    """There is no C++ compiler, or it failed."""


def library(source: str, level: int = 2) -> ctypes.CDLL:
    """Return the source, compiled at this level of optimization.

    It takes seconds, so nothing is kept that somebody else could exchange.

    Raises CompilerError if there is no working compiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/source.cpp", f"{folder}/library.so"]
        try:
            compiler = get_cpp_compiler()
            Path(files[0]).write_text(source)
            command = [compiler, f"-O{level}", *FLAGS.split(), files[0], "-o", files[1]]
            subprocess.run(command, check=True, capture_output=True)
            return ctypes.CDLL(files[1])
        except (OSError, subprocess.CalledProcessError, InvalidCxxCompiler) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
            raise CompilerError(f"{type(error).__name__}: {said.splitlines()[0]}") from error
