"""Recorded operations of one task as a C++ function that loops over the tasks, so that a task stays in the cache."""

import ctypes
import math
import operator
import platform
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

aten = torch.ops.aten

MOST = 2**18
"""Limit on the numbers that a task computes. Larger tasks leave the cache, and libraries have more threads."""
ARM = platform.machine() in ("arm64", "aarch64")
FLAGS = f"""-O2 -ftree-vectorize {"-mcpu" if ARM else "-march"}=native -std=c++17 -shared -fPIC
-ffp-contract=fast -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math"""
"""Products and sums are fused and sums reordered, but infinity and NaN are kept."""

VIEWS = {
    aten.alias.default,
    aten.detach.default,
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.view.default,
    operator.getitem,
}
PARTS = {aten.split_with_sizes.default, aten.unbind.int}
"""What has several views of a tensor, of which getitem takes one."""
POINTWISE = {
    aten.abs.default: "std::abs({})",
    aten.add.Scalar: "{} + {}",
    aten.add.Tensor: "{} + {}",
    aten.div.Scalar: "{} / {}",
    aten.div.Tensor: "{} / {}",
    aten.div_.Scalar: "{} / {}",
    aten.eq.Scalar: "{} == {}",
    aten.exp.default: "std::exp({})",
    aten.ge.Scalar: "{} >= {}",
    aten.gt.Scalar: "{} > {}",
    aten.le.Scalar: "{} <= {}",
    aten.log.default: "std::log({})",
    aten.logical_and.default: "({} != 0) && ({} != 0)",
    aten.logical_and_.default: "({} != 0) && ({} != 0)",
    aten.lt.Scalar: "{} < {}",
    aten.mul.Scalar: "{} * {}",
    aten.mul.Tensor: "{} * {}",
    aten.neg.default: "-{}",
    aten.pow.Tensor_Scalar: "power({}, {})",
    aten.relu.default: "relu({})",
    aten.sqrt.default: "std::sqrt({})",
    aten.sub.Scalar: "{} - {}",
    aten.sub.Tensor: "{} - {}",
    aten.tanh.default: "std::tanh({})",
    aten.where.self: "{} != 0 ? {} : {}",
}
IN_PLACE = {aten.div_.Scalar, aten.logical_and_.default}
CONSTANTS = {aten.full.default: 1, aten.full_like.default: 1, aten.scalar_tensor.default: 0}
"""Operation -> the place of the value among its arguments."""

PRELUDE = r"""
#include <cmath>
#include <cstring>
constexpr int L = 32 / sizeof(T);
typedef T V __attribute__((vector_size(32), aligned(sizeof(T))));
#define UNROLL _Pragma("GCC unroll 16")

static inline T relu(T x) { return x <= 0 ? T(0) : x; }
static inline T clamp(T x, T low, T high) { return x < low ? low : x > high ? high : x; }
static inline T power(T x, T n) { return n == 2 ? x * x : std::pow(x, n); }

// R rows and Q vectors of columns of C = A B, where B and C have rows of N. They are summed in registers.
template <int R, int Q, int K, int N, int a0, int a1>
static inline __attribute__((always_inline)) void block(const T* A, const T* B, T* C) {
  V sum[R][Q] = {};
  for (int k = 0; k < K; k++)
    UNROLL for (int q = 0; q < Q; q++) {
      V b = *(const V*)(B + k * N + q * L);
      UNROLL for (int r = 0; r < R; r++) sum[r][q] += A[r * a0 + k * a1] * b;
    }
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int q = 0; q < Q; q++) *(V*)(C + r * N + q * L) = sum[r][q];
}

// C = A B, (M, K) times (K, N), with strides a0, a1 and b0, b1. C is contiguous.
template <int M, int K, int N, int a0, int a1, int b0, int b1>
static __attribute__((noinline)) void mm(const T* __restrict A, const T* __restrict B, T* __restrict C, T* copy) {
  if (N > 1 && (b1 != 1 || b0 != N)) {
    for (int k = 0; k < K; k++)
      for (int j = 0; j < N; j++) copy[k * N + j] = B[k * b0 + j * b1];
    B = copy;
  }
  constexpr int stride = N > 1 ? N : b0, vectors = N / L, wide = vectors / 5, rest = vectors % 5;
  constexpr int R = M % 5 == 0 ? 5 : M % 4 == 0 ? 4 : M % 2 == 0 ? 2 : 1;
  for (int i = 0; i < M; i += R) {
    for (int w = 0; w < wide; w++) block<R, 5, K, N, a0, a1>(A + i * a0, B + w * 5 * L, C + i * N + w * 5 * L);
    if constexpr (rest > 0) block<R, rest, K, N, a0, a1>(A + i * a0, B + wide * 5 * L, C + i * N + wide * 5 * L);
    for (int r = i; r < i + R; r++)
      for (int j = vectors * L; j < N; j++) {
        T sum = 0;
        for (int k = 0; k < K; k++) sum += A[r * a0 + k * a1] * B[k * stride + j];
        C[r * N + j] = sum;
      }
  }
}
"""


class CompilerError(Exception):
    """There is no C++ compiler, or it failed."""


class Unsupported(Exception):
    """The recorded operations are not of the few that are translated, or a task is too large."""


def native(function: Callable, shared: Sequence[Tensor], stacked: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """Return (*shared, *stacked) -> the sums over the tasks of the tensors that the function returns for each.

    function: of the shared tensors and those of one task. stacked: the tensors of all tasks. The returned function is
        for tensors of these shapes, and runs on one thread.
    Raises Unsupported for operations that are not translated, and CompilerError if there is no working compiler.
    """
    dtypes = {t.dtype for t in (*shared, *stacked)}
    if dtypes not in ({torch.float32}, {torch.float64}) or any(t.device.type != "cpu" for t in (*shared, *stacked)):
        raise Unsupported("only float32 or float64 on the CPU")
    decompositions = {**core_aten_decompositions(), aten.addmm.default: _addmm}
    one = [*(t.contiguous() for t in shared), *(t[0].contiguous() for t in stacked)]
    recorded = make_fx(function, decomposition_table=decompositions)(*one)
    recorded.graph.eliminate_dead_code()
    program = _Program(recorded, dtypes.pop(), len(shared))
    run = _library(program.source).run
    run.argtypes, run.restype = [ctypes.c_void_p] * 3 + [ctypes.c_int], None
    scratch = torch.empty(program.size, dtype=one[0].dtype)

    def sums(*tensors: Tensor) -> list[Tensor]:
        inputs = [t.contiguous() for t in tensors]
        outputs = [torch.empty(shape, dtype=scratch.dtype) for shape in program.shapes]
        run(_pointers(inputs), _pointers(outputs), scratch.data_ptr(), len(inputs[-1]))
        return outputs

    return sums


def _library(source: str) -> ctypes.CDLL:
    """Return the compiled source. It takes two seconds, so nothing is kept that somebody else could exchange."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/task.cpp", f"{folder}/task.so"]
        try:
            compiler = get_cpp_compiler()
            Path(files[0]).write_text(source)
            subprocess.run([compiler, *FLAGS.split(), files[0], "-o", files[1]], check=True, capture_output=True)
            return ctypes.CDLL(files[1])
        except (OSError, subprocess.CalledProcessError, InvalidCxxCompiler) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
            raise CompilerError(f"{type(error).__name__}: {said.splitlines()[0]}") from error


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Any:
    return torch.mm(a, b) + bias if beta == alpha == 1 else NotImplemented


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


class _Program:
    """The C++ source of a graph, the size of the memory that it needs for its results, and the shapes of its outputs.

    shared: number of inputs that all tasks share.
    """

    def __init__(self, recorded: GraphModule, dtype: torch.dtype, shared: int) -> None:
        self.dtype, self.size, self.copied = dtype, 0, 0
        self.lines: list[str] = []
        self.places: dict[Node, tuple[str, Sequence[int], Sequence[int]]] = {}
        """Where a tensor is in memory: a pointer, its shape and its strides."""
        self.computed: dict[tuple, str] = {}
        inputs, outputs = [], []
        for node in recorded.graph.nodes:
            if node.op == "output":
                outputs = list(node.args[0])
            elif node.op == "placeholder":
                inputs.append(node)
                self.places[node] = f"in{len(inputs) - 1}", *_layout(node)
            elif node.op == "call_function":
                self._add(node)
            else:
                raise Unsupported(node.op)
        self.shapes = [_layout(node)[0] for node in outputs]
        self.source = self._function(inputs, outputs, shared)
        self.size += self.copied

    def _function(self, inputs: Sequence[Node], outputs: Sequence[Node], shared: int) -> str:
        sizes = [math.prod(_layout(node)[0]) for node in inputs]
        if self.size + self.copied + sum(sizes) > MOST:
            raise Unsupported("a task is too large")
        begin, end = [], []
        for i, node in enumerate(outputs):
            pointer, shape, strides = self.places[node]
            begin.append(f"std::memset(out[{i}], 0, sizeof(T) * {math.prod(shape)});")
            place = f"out[{i}][{_index(shape, _contiguous(shape))}]"
            end.append(_loops(shape, f"{place} += {pointer}[{_index(shape, strides)}];"))
        tasks = [f"const T* in{i} = in[{i}]{'' if i < shared else f' + t * {n}'};" for i, n in enumerate(sizes)]
        head = 'extern "C" void run(T** in, T** out, T* s, int tasks) {'
        kind = "float" if self.dtype == torch.float32 else "double"
        loop = [f"T* copy = s + {self.size};", "for (int t = 0; t < tasks; t++) {", *tasks, *self.lines, *end, "}}"]
        return "\n".join([f"typedef {kind} T;", PRELUDE, head, *begin, *loop])

    def _add(self, node: Node) -> None:
        """Add the lines that compute a node. The same operation on the same tensors is computed once."""
        if node.target in PARTS:
            return
        shape, strides = _layout(node)
        if node.target in VIEWS:
            part = node.args[0]
            assert isinstance(part, Node)
            source = part.args[0] if part.target in PARTS else part
            assert isinstance(source, Node)
            pointer, *layout = self.places[source]
            self.places[node] = f"({pointer} + {_begin(node, *layout)})", shape, strides
            return
        self._refuse(node, shape, strides)
        key = (node.target, str(map_arg(node.args, lambda n: str(self.places[n]))), *shape, *strides)
        if key not in self.computed:
            self.computed[key] = pointer = f"(s + {self.size})"
            self.size += -(-math.prod(shape) // 16) * 16
            self.lines.append(self._lines(node, pointer, shape, strides))
        self.places[node] = self.computed[key], shape, strides

    def _refuse(self, node: Node, shape: Sequence[int], strides: Sequence[int]) -> None:
        """Raise Unsupported for a type, a layout or a change in place that the lines of a node would not respect."""
        value, source = node.meta["val"], node.args[0]
        if value.dtype not in (self.dtype, torch.bool) or node.kwargs.keys() & {"alpha"}:
            raise Unsupported(f"{node.target} {value.dtype} {node.kwargs}")
        if math.prod(shape) != 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)):
            raise Unsupported(f"{node.target} with strides {strides}")
        sole = isinstance(source, Node) and source.target in POINTWISE and len(source.users) == 1
        if node.target in IN_PLACE and not sole:
            raise Unsupported("a tensor that is used and changed in place")

    def _lines(self, node: Node, pointer: str, shape: Sequence[int], strides: Sequence[int]) -> str:
        target, place = node.target, f"{pointer}[{_index(shape, strides)}]"
        if target in POINTWISE:
            return _loops(shape, f"{place} = {POINTWISE[target].format(*(self._entry(a, shape) for a in node.args))};")
        if target == aten.clamp.default:
            low, high = [*node.args[1:], None][:2]
            entry = self._entry(node.args[0], shape)
            bounds = [self._entry(number, ()) if number is not None else "" for number in (low, high)]
            return _loops(shape, f"{place} = clamp({entry}, {bounds[0] or '-HUGE_VAL'}, {bounds[1] or 'HUGE_VAL'});")
        if target == aten.cat.default:
            return self._concatenated(node, pointer, strides)
        if target in CONSTANTS:
            return _loops(shape, f"{place} = {self._entry(node.args[CONSTANTS[target]], shape)};")
        operands = [self.places[a] for a in node.args if isinstance(a, Node)]
        if target == aten.mm.default:
            (a, (m, k), a_strides), (b, (_, n), b_strides) = operands
            self.copied = max(self.copied, k * n)
            numbers = ", ".join(map(str, (m, k, n, *a_strides, *b_strides)))
            if tuple(strides) != _contiguous(shape):
                raise Unsupported("a transposed product")
            return f"mm<{numbers}>({a}, {b}, {pointer}, copy);"
        if target not in (aten.sum.dim_IntList, aten.mean.default):
            raise Unsupported(str(target))
        ((terms, inner, inner_strides),) = operands
        of_all = target == aten.mean.default or not node.args[1]
        summed = range(len(inner)) if of_all else [d % len(inner) for d in node.args[1]]  # type: ignore
        kept = iter(strides if len(shape) < len(inner) else [s for d, s in enumerate(strides) if d not in summed])
        into = [0 if d in summed else next(kept) for d in range(len(inner))]
        text = f"std::memset({pointer}, 0, sizeof(T) * {math.prod(shape)});"
        text += _loops(inner, f"{pointer}[{_index(inner, into)}] += {terms}[{_index(inner, inner_strides)}];")
        return text + (f"*{pointer} /= {math.prod(inner)};" if target == aten.mean.default else "")

    def _concatenated(self, node: Node, pointer: str, strides: Sequence[int]) -> str:
        parts, dim = cast(tuple[list[Node], int], (*node.args, 0)[:2])
        text, begun = "", 0
        for part in parts:
            source, shape, source_strides = self.places[part]
            into = f"{pointer}[{begun} + {_index(shape, strides)}]"
            text += _loops(shape, f"{into} = {source}[{_index(shape, source_strides)}];")
            begun += shape[dim] * strides[dim]
        return text

    def _entry(self, operand: Any, shape: Sequence[int]) -> str:
        """Return the entry of an operand, a number or a tensor that is broadcast to this shape, inside of loops."""
        if not isinstance(operand, Node):
            if isinstance(operand, bool) or not isinstance(operand, float | int) or not math.isfinite(operand):
                raise Unsupported(f"the operand {operand}")
            return f"T({operand!r})"
        pointer, own, strides = self.places[operand]
        wide = [0] * (len(shape) - len(own)) + [0 if n == 1 else s for n, s in zip(own, strides, strict=True)]
        return f"{pointer}[{_index(shape, wide)}]"


def _layout(node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    value = node.meta["val"] if isinstance(node, Node) else None
    if not isinstance(value, Tensor):
        raise Unsupported(f"{node} is no tensor")
    return tuple(value.shape), tuple(value.stride())


def _begin(view: Node, shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return where a view of a tensor of this shape begins in it: the number of entries before."""
    args: Any = view.args
    if view.target == operator.getitem:
        part, i = args
        sizes, dim = [*part.args[1:], 0][:2] if part.target == aten.split_with_sizes.default else (None, 0)
        if part.target == aten.unbind.int:
            dim = [*part.args[1:], 0][0]
        return (sum(sizes[:i]) if sizes else i) * strides[dim]
    if view.target in (aten.select.int, aten.slice.Tensor):
        dim, begin = args[1], args[2] or 0
        return max(begin + shape[dim] if begin < 0 else min(begin, shape[dim]), 0) * strides[dim]
    return 0


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def _index(shape: Sequence[int], strides: Sequence[int]) -> str:
    terms = [f"i{d} * {s}" for d, (n, s) in enumerate(zip(shape, strides, strict=True)) if n > 1 and s]
    return " + ".join(terms) or "0"


def _loops(shape: Sequence[int], body: str) -> str:
    heads = [f"for (int i{d} = 0; i{d} < {n}; i{d}++) " for d, n in enumerate(shape) if n != 1]
    return "".join([*heads, "{ ", body, " }"])
