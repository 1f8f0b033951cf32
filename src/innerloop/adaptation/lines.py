"""Lines of C++: loops over tensors, functions that lines share, and the plan of the memory that lines name."""

import functools
import math
import re
from collections.abc import Mapping, Sequence

POINTER = re.compile(r"\b(?:in|b)\d+\b|\bcopy\b")
"""What a line calls the memory of an input, of a result, and of a copy."""


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def index_of(shape: Sequence[int], strides: Sequence[int]) -> str:
    terms = [f"i{d} * {s}" for d, (n, s) in enumerate(zip(shape, strides, strict=True)) if n > 1 and s]
    return " + ".join(terms) or "0"


def loops(shape: Sequence[int], strides: Sequence[int], body: str) -> str:
    """Return loops over all entries, along the last of which neighbours in memory lie if it has these strides."""
    order = sorted((d for d, n in enumerate(shape) if n != 1), key=lambda d: -strides[d])
    return "".join([*(f"for (int i{d} = 0; i{d} < {shape[d]}; i{d}++) " for d in order), "{ ", body, " }"])


def outlined(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the lines as calls of functions, of which lines that differ in their tensors only share one.

    The inner steps repeat each other, and the compiler takes long over one long function.
    """
    functions: dict[str, str] = {}
    calls = []
    for line in lines:
        pointers = list(dict.fromkeys(POINTER.findall(line)))
        names = {pointer: f"p{i}" for i, pointer in enumerate(pointers)}
        body = POINTER.sub(functools.partial(_renamed, names), line)
        name = functions.setdefault(body, f"f{len(functions)}")
        calls.append(f"{name}({', '.join(pointers)});")
    parameters = [sorted(set(re.findall(r"\bp\d+\b", body)), key=lambda p: int(p[1:])) for body in functions]
    return calls, [
        f"static __attribute__((noinline)) void {name}({', '.join(f'T* {p}' for p in names)}) {{ {body} }}"
        for (body, name), names in zip(functions.items(), parameters, strict=True)
    ]


def _renamed(names: Mapping[str, str], found: re.Match[str]) -> str:
    return names[found[0]]


def planned(lines: Sequence[str], sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return where each result b0, b1, … begins in memory that later results use again, and the size of that memory."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for i, line in enumerate(lines):
        for name in map(int, re.findall(r"\bb(\d+)\b", line)):
            first.setdefault(name, i)
            last[name] = i
    offsets, size = [0] * len(sizes), 0
    for b in sorted(first, key=lambda b: first[b]):
        need, begin = -(-sizes[b] // 16) * 16, 0
        alive = [o for o in first if (first[o], o) < (first[b], b) and last[o] >= first[b]]
        taken = sorted((offsets[o], sizes[o]) for o in alive)
        for offset, n in taken:
            if begin + need <= offset:
                break
            begin = max(begin, -(-(offset + n) // 16) * 16)
        offsets[b], size = begin, max(size, begin + need)
    return offsets, size
