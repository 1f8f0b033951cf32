"""The C++ source of a recorded graph of one task's operations."""

import math
import operator
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from innerloop.adaptation.lines import contiguous, index_of, loops, outlined, planned
from innerloop.nets import kernels

aten = torch.ops.aten

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
    aten.eq.Tensor: "{} == {}",
    aten.exp.default: "std::exp({})",
    aten.ge.Scalar: "{} >= {}",
    aten.gt.Scalar: "{} > {}",
    aten.le.Scalar: "{} <= {}",
    aten.log.default: "std::log({})",
    aten.logical_and.default: "({} != 0) && ({} != 0)",
    aten.logical_and_.default: "({} != 0) && ({} != 0)",
    aten.logical_not.default: "{} == 0",
    aten.lt.Scalar: "{} < {}",
    aten.mul.Scalar: "{} * {}",
    aten.mul.Tensor: "{} * {}",
    aten.ne.Scalar: "{} != {}",
    aten.neg.default: "-{}",
    aten.pow.Tensor_Scalar: "power({}, {})",
    aten.relu.default: "relu({})",
    aten.sqrt.default: "std::sqrt({})",
    aten.sub.Scalar: "{} - {}",
    aten.sub.Tensor: "{} - {}",
    aten.tanh.default: "std::tanh({})",
    aten.where.self: "{} != 0 ? {} : {}",
    aten._to_copy.default: "{}",
    aten.clone.default: "{}",
}
IN_PLACE = {aten.div_.Scalar, aten.logical_and_.default}
WHOLE = {
    aten.arange.start_step,
    aten.cat.default,
    aten.full_like.default,
    aten.scalar_tensor.default,
    aten.sum.dim_IntList,
    aten.where.self,
}
"""What may return whole numbers, such as classes, which are kept as floating-point numbers."""
CONSTANTS = {aten.full.default: 1, aten.full_like.default: 1, aten.scalar_tensor.default: 0}
"""Operation -> the place of the value among its arguments."""
KERNELS: dict[Any, Any] = {operation._opoverload: operation for operation in kernels.OPERATIONS}
REDUCTIONS = {
    aten.any.dim: ("0", "({} != 0) || ({} != 0)"),
    aten.amax.default: ("-HUGE_VAL", "larger({}, {})"),
    aten.mean.default: ("0", "{} + {}"),
    aten.sum.dim_IntList: ("0", "{} + {}"),
}
"""Operation -> the value that it begins with, and a step."""
KERNEL = "kernels"
MOST = 2**18
"""Numbers that a task computes, from which on it does not stay in the cache, and calls cost little beside them."""
LOOPS = files(__package__).joinpath("native.cpp").read_text()


class Unsupported(Exception):
    """The recorded operations are not of the few that are translated, or a task is too large."""


class Program:
    """The C++ source of a graph, the size of the memory that it needs for its results, and the shapes of its outputs.

    shared: number of inputs that all tasks share.
    """

    def __init__(self, recorded: GraphModule, dtype: torch.dtype, shared: int) -> None:
        self.dtype, self.copied = dtype, 0
        self.lines: list[str] = []
        self.buffers: list[int] = []
        """Numbers in the memory of each result, which the lines call b0, b1, …"""
        self.places: dict[Node | tuple[Node, int], tuple[str, Sequence[int], Sequence[int]]] = {}
        """Where a tensor is in memory: a pointer, its shape and its strides. (node, i): one of a kernel's results."""
        self.computed: dict[tuple, list[str]] = {}
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
        self.numbers = sum(self.buffers) + self.copied + sum(math.prod(_layout(node)[0]) for node in inputs)
        """How many numbers a task reads and computes."""
        self.source = self._function(inputs, outputs, shared)

    def _function(self, inputs: Sequence[Node], outputs: Sequence[Node], shared: int) -> str:
        begin, end = [], []
        for i, node in enumerate(outputs):
            pointer, shape, strides = self.places[node]
            begin.append(f"std::memset(out[{i}], 0, sizeof(T) * {math.prod(shape)});")
            place = f"out[{i}][{index_of(shape, contiguous(shape))}]"
            end.append(loops(shape, strides, f"{place} += {pointer}[{index_of(shape, strides)}];"))
        offsets, self.size = planned([*self.lines, *end], self.buffers)
        sizes = [math.prod(_layout(node)[0]) for node in inputs]
        tasks = [f"T* in{i} = in[{i}]{'' if i < shared else f' + t * {n}'};" for i, n in enumerate(sizes)]
        memory = [f"T* const b{i} = s + {offset};" for i, offset in enumerate(offsets)]
        head = 'extern "C" void run(T** in, T** out, T* s, int tasks) {'
        kind = "float" if self.dtype == torch.float32 else "double"
        lines, functions = (self.lines, []) if self.numbers <= MOST else outlined(self.lines)
        loop = [f"T* copy = s + {self.size};", "for (int t = 0; t < tasks; t++) {", *tasks, *lines, *end, "}}"]
        self.size += self.copied
        own = kernels.sources() if any(f"{KERNEL}::" in line for line in self.lines) else []
        return "\n".join([f"typedef {kind} T;", *own, LOOPS, *functions, head, *begin, *memory, *loop])

    def _buffer(self, shape: Sequence[int]) -> str:
        self.buffers.append(math.prod(shape))
        return f"b{len(self.buffers) - 1}"

    def _add(self, node: Node) -> None:
        """Add the lines that compute a node. The same operation on the same tensors is computed once."""
        source = node.args[0] if node.args else None
        if node.target in PARTS:
            return
        if node.target in KERNELS:
            self._add_kernel(node)
            return
        shape, strides = _layout(node)
        if node.target == operator.getitem and isinstance(source, Node) and source.target in KERNELS:
            self.places[node] = self.places[cast(tuple[Node, int], node.args)]
            return
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
            self.computed[key] = [pointer := self._buffer(shape)]
            self.lines.append(self._lines(node, pointer, shape, strides))
        self.places[node] = self.computed[key][0], shape, strides

    def _add_kernel(self, node: Node) -> None:
        """Add the call of one of `innerloop.nets.kernels`, which may have several results."""
        value, several = node.meta["val"], isinstance(node.meta["val"], tuple | list)
        results = list(value) if several else [value]
        key = (node.target, str(map_arg(node.args, lambda n: str(self.places[n]))))
        if key not in self.computed:
            self.computed[key] = into = [self._buffer(result.shape) for result in results]
            inputs = [self.places[a][0] for a in node.args if isinstance(a, Node)]
            tensors = [a.meta["val"] for a in node.args if isinstance(a, Node)]
            numbers = [a for a in node.args if not isinstance(a, Node)]
            name, others, geometry = kernels.call(KERNELS[node.target], tensors, results, numbers)
            kind = "Norm" if "norm" in name else ""
            arguments = ", ".join([*inputs, *into, *(f"T({n!r})" for n in others), "&g"])
            sizes = ", ".join(map(str, map(int, geometry)))
            self.lines.append(f"{{ const {KERNEL}::{kind}Geometry g = {{{sizes}}}; {KERNEL}::{name}({arguments}); }}")
        for i, (pointer, result) in enumerate(zip(self.computed[key], results, strict=True)):
            self.places[(node, i) if several else node] = pointer, tuple(result.shape), tuple(result.stride())

    def _refuse(self, node: Node, shape: Sequence[int], strides: Sequence[int]) -> None:
        """Raise Unsupported for a type, a layout or a change in place that the lines of a node would not respect."""
        value, source = node.meta["val"], node.args[0]
        whole = value.dtype == torch.int64 and node.target in WHOLE
        if (not whole and value.dtype not in (self.dtype, torch.bool)) or node.kwargs.keys() & {"alpha"}:
            raise Unsupported(f"{node.target} {value.dtype} {node.kwargs}")
        if math.prod(shape) != 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)):
            raise Unsupported(f"{node.target} with strides {strides}")
        sole = isinstance(source, Node) and source.target in POINTWISE and len(source.users) == 1
        if node.target in IN_PLACE and not sole:
            raise Unsupported("a tensor that is used and changed in place")

    def _lines(self, node: Node, pointer: str, shape: Sequence[int], strides: Sequence[int]) -> str:
        target, place = node.target, f"{pointer}[{index_of(shape, strides)}]"
        if target in POINTWISE:
            return self._pointwise(POINTWISE[target], node, pointer, shape, strides)
        if target == aten.clamp.default:
            low, high = [*node.args[1:], None][:2]
            entry = self._entry(node.args[0], shape)
            bounds = [self._entry(number, ()) if number is not None else "" for number in (low, high)]
            body = f"{place} = clamp({entry}, {bounds[0] or '-HUGE_VAL'}, {bounds[1] or 'HUGE_VAL'});"
            return loops(shape, strides, body)
        if target == aten.cat.default:
            return self._concatenated(node, pointer, strides)
        if target in CONSTANTS:
            return loops(shape, strides, f"{place} = {self._entry(node.args[CONSTANTS[target]], shape)};")
        if target == aten.arange.start_step:
            begin, step = node.args[0], [*node.args[2:], 1][0]
            return loops(shape, strides, f"{place} = T({begin!r}) + T({step!r}) * {index_of(shape, [1])};")
        if target in (aten.gather.default, aten.scatter.value):
            return self._indexed(node, pointer, shape, strides)
        operands = [self.places[a] for a in node.args if isinstance(a, Node)]
        if target == aten.mm.default:
            (a, (m, k), a_strides), (b, (_, n), b_strides) = operands
            self.copied = max(self.copied, k * n)
            numbers = ", ".join(map(str, (m, k, n, *a_strides, *b_strides)))
            if tuple(strides) != contiguous(shape):
                raise Unsupported("a transposed product")
            return f"mm<{numbers}>({a}, {b}, {pointer}, copy);"
        if target not in REDUCTIONS:
            raise Unsupported(str(target))
        ((terms, inner, inner_strides),) = operands
        of_all = target == aten.mean.default or node.args[1] in (None, [], ())
        summed = range(len(inner)) if of_all else [d % len(inner) for d in _several(node.args[1])]
        kept = iter(strides if len(shape) < len(inner) else [s for d, s in enumerate(strides) if d not in summed])
        into = [0 if d in summed else next(kept) for d in range(len(inner))]
        begin, step = REDUCTIONS[target]
        text = f"for (int i = 0; i < {math.prod(shape)}; i++) {pointer}[i] = {begin};"
        result, term = f"{pointer}[{index_of(inner, into)}]", f"{terms}[{index_of(inner, inner_strides)}]"
        text += loops(inner, contiguous(inner), f"{result} = {step.format(result, term)};")
        return text + (f"*{pointer} /= {math.prod(inner)};" if target == aten.mean.default else "")

    def _pointwise(self, operation: str, node: Node, pointer: str, shape: Sequence[int], strides: Sequence[int]) -> str:
        layouts = [self.places[a][1:] for a in node.args if isinstance(a, Node)]
        if all(layout == (shape, strides) for layout in layouts):  # in the order of memory
            flat, i = [math.prod(shape)], index_of([math.prod(shape)], [1])
            entries = [f"{self.places[a][0]}[{i}]" if isinstance(a, Node) else self._entry(a, ()) for a in node.args]
            return loops(flat, [1], f"{pointer}[{i}] = {operation.format(*entries)};")
        entries = [self._entry(a, shape) for a in node.args]
        return loops(shape, strides, f"{pointer}[{index_of(shape, strides)}] = {operation.format(*entries)};")

    def _indexed(self, node: Node, pointer: str, shape: Sequence[int], strides: Sequence[int]) -> str:
        """Return the lines of gather, (tensor, dim, index), or of scatter, (tensor, dim, index, number)."""
        tensor, dim, index, *number = cast(tuple[Node, int, Node, float], node.args)
        source, own, own_strides = self.places[tensor]
        inner = self.places[index][1]
        gathers = node.target == aten.gather.default

        def at(through: Sequence[int]) -> str:
            others = [0 if d == dim % len(own) else s for d, s in enumerate(through)]
            return f"{index_of(inner, others)} + int({self._entry(index, inner)}) * {through[dim]}"

        if gathers:
            return loops(shape, strides, f"{pointer}[{index_of(shape, strides)}] = {source}[{at(own_strides)}];")
        copy = f"{pointer}[{index_of(shape, strides)}] = {source}[{index_of(shape, own_strides)}];"
        set_to = f"{pointer}[{at(strides)}] = {self._entry(number[0], ())};"
        return loops(shape, strides, copy) + loops(inner, contiguous(inner), set_to)

    def _concatenated(self, node: Node, pointer: str, strides: Sequence[int]) -> str:
        parts, dim = cast(tuple[list[Node], int], (*node.args, 0)[:2])
        text, begun = "", 0
        for part in parts:
            source, shape, source_strides = self.places[part]
            into = f"{pointer}[{begun} + {index_of(shape, strides)}]"
            text += loops(shape, strides, f"{into} = {source}[{index_of(shape, source_strides)}];")
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
        return f"{pointer}[{index_of(shape, wide)}]"


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


def _several(dims: Any) -> Sequence[int]:
    return [dims] if isinstance(dims, int) else dims
